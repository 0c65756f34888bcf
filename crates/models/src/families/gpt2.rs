//! GPT-2: LayerNorm, learned positions, biases everywhere, plain feed-forward layers, Conv1D weights.

use rillm_nn::{AttentionSpec, Bias, MlpKind, MlpSpec, NormKind, Origin, WeightSource};
use rillm_tensor_core::{Activation, AttnParams};

use super::common::layer_count;
use crate::names::{self, layer_of, stacked};
use crate::{Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Norms, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["gpt2"], spec) };

pub(super) fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let (dim, heads) = (c.count("n_embd")?, c.count("n_head")?);
    if dim % heads != 0 {
        return Err(c.unsupported("n_head", &format!("a divisor of {dim}")));
    }
    if c.flag("add_cross_attention", false)? {
        return Err(c.unsupported("add_cross_attention", "false"));
    }
    let head_dim = dim / heads;
    let norm = NormKind::Layer { eps: c.positive_or("layer_norm_epsilon", 1e-5)? as f32 };
    let scaled = if c.flag("scale_attn_weights", true)? { (head_dim as f32).powf(-0.5) } else { 1.0 };
    let by_layer = c.flag("scale_attn_by_inverse_layer_idx", false)?;
    let positions = c.count_or("n_positions", 1024)?;
    let mlp = MlpSpec {
        kind: MlpKind::Plain,
        bias: Bias::Added,
        ..MlpSpec::new(
            [dim, c.count_or("n_inner", 4 * dim)?],
            c.activation("activation_function", Activation::GeluTanh)?,
        )
    };
    let layer = |i: usize| {
        let scale = if by_layer { scaled / (i + 1) as f32 } else { scaled };
        let attn = AttentionSpec {
            qkv_bias: Bias::Added,
            o_bias: Bias::Added,
            ..AttentionSpec::new(dim, AttnParams { scale, ..AttnParams::new(heads, heads, head_dim) })
        };
        LayerSpec::new(MixerSpec::Attention(attn), MixerSpec::Mlp(mlp), Norms::Pre, norm)
    };
    Ok(DecoderSpec {
        context: Some(positions),
        learned_positions: Some(positions),
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 50_257)?],
            (0..layer_count(c, "n_layer")?).map(layer).collect(),
            norm,
            HeadSpec::plain(c.flag("tie_word_embeddings", true)?),
        )
    })
}

/// transformers writes `transformer.` or nothing before the names and Conv1D matrices `[in, out]`; mlx-lm writes
/// `model.` and `[out, in]`.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let prefix = prefix(source);
    let (dim, transposed) = (spec.dim, prefix != "model.");
    let hidden = spec.layers.first().map_or(0, |l| l.mlp().map_or(0, |mlp| mlp.hidden));
    Box::new(move |name| {
        let top = match name {
            "model.embed_tokens.weight" => "wte.weight",
            "model.embed_positions.weight" => "wpe.weight",
            "model.norm.weight" => "ln_f.weight",
            "model.norm.bias" => "ln_f.bias",
            _ => "",
        };
        let Some((i, rest)) = layer_of(name).filter(|_| top.is_empty()) else {
            return Origin::Tensor(if top.is_empty() { name.to_owned() } else { format!("{prefix}{top}") });
        };
        let (module, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
        let (stored, widths, part) = match module {
            "input_layernorm" => ("ln_1", vec![], 0),
            "post_attention_layernorm" => ("ln_2", vec![], 0),
            "self_attn.q_proj" => ("attn.c_attn", vec![dim; 3], 0),
            "self_attn.k_proj" => ("attn.c_attn", vec![dim; 3], 1),
            "self_attn.v_proj" => ("attn.c_attn", vec![dim; 3], 2),
            "self_attn.o_proj" => ("attn.c_proj", vec![dim], 0),
            "mlp.up_proj" => ("mlp.c_fc", vec![hidden], 0),
            "mlp.down_proj" => ("mlp.c_proj", vec![dim], 0),
            _ => return Origin::Tensor(name.to_owned()),
        };
        let name = format!("{prefix}h.{i}.{stored}.{kind}");
        if widths.is_empty() {
            return Origin::Tensor(name);
        }
        let (rows, of) = stacked(&widths, part);
        match transposed && kind == "weight" {
            true => Origin::Transposed { name, rows, of },
            false => Origin::Rows { name, rows, of },
        }
    })
}

/// What stands before all names.
pub(super) fn prefix(source: &dyn WeightSource) -> &'static str {
    let there = |prefix: &str| matches!(source.get(&format!("{prefix}wte.weight")), Ok(Some(_)));
    ["model.", "transformer."].into_iter().find(|p| there(p)).unwrap_or("")
}

/// Old files keep the causal mask.
pub(super) fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || names::ignored(spec, name)
}
