//! LFM2: gated short convolutions, and grouped-query attention with head norms in some layers.

use rillm_nn::{GatedConvSpec, MlpSpec, NormKind, Origin, QkNorm, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, attention, bias, layer_count_or};
use crate::names::{Pairs, renamed};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["lfm2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", 2560)?;
    let mlp = MlpSpec::new([dim, hidden(c)?], Activation::Silu);
    decoder(c, dim, |_| MixerSpec::Mlp(mlp))
}

/// The decoder whose layer `i` has feed-forward layer `mlp(i)`.
pub(super) fn decoder(c: &Config<'_>, dim: usize, mlp: impl Fn(usize) -> MixerSpec) -> Result<DecoderSpec> {
    let norm = NormKind::Rms { eps: c.positive_or("norm_eps", 1e-5)? as f32 };
    let defaults = Defaults { theta: 1_000_000.0, context: 128_000, kv_heads: Some(8), ..DEFAULTS };
    let (mut attn, context) = attention(c, dim, &defaults)?;
    attn.qk_norm = Some(QkNorm::heads(norm));
    let conv = GatedConvSpec { dim, taps: c.count_or("conv_L_cache", 3)?, bias: bias(c, "conv_bias")? };
    let n = layer_count_or(c, "num_hidden_layers", 32)?;
    let listed = c.opt_numbers("full_attn_idxs")?;
    let by_index = |i: usize| {
        let full = listed.as_ref().is_none_or(|list| list.contains(&(i as f64)));
        if full { "full_attention" } else { "conv" }
    };
    let kinds = c.layer_names("layer_types", n, &["conv", "full_attention"], by_index)?;
    let layer = |(i, kind): (usize, &str)| {
        let (name, mixer) = match kind {
            "conv" => ("conv", MixerSpec::GatedConv(conv)),
            _ => ("self_attn", MixerSpec::Attention(attn.clone())),
        };
        let first = BranchSpec::normed(name, mixer, "operator_norm", norm);
        let second = BranchSpec::normed("mlp", mlp(i), "ffn_norm", norm);
        LayerSpec::in_turn([first, second])
    };
    Ok(DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 65_536)?],
            kinds.into_iter().enumerate().map(layer).collect(),
            norm,
            HeadSpec::plain(c.flag("tie_embedding", c.flag("tie_word_embeddings", true)?)?),
        )
    })
}

/// Width inside feed-forward layers: two thirds of what the file says, rounded up, unless that is turned off.
fn hidden(c: &Config<'_>) -> Result<usize> {
    let stated = c.count_or("block_ff_dim", c.count_or("intermediate_size", 12_288)?)?;
    if !c.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(stated);
    }
    let reduced = 2 * stated / 3;
    if c.has("block_ffn_dim_multiplier") && c.get("block_ffn_dim_multiplier").is_none() {
        return Ok(reduced);
    }
    let multiplied = c.multiple("block_ffn_dim_multiplier", 1.0, reduced)?;
    Ok(multiplied.next_multiple_of(c.count_or("block_multiple_of", 256)?).max(1))
}

pub(super) fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| Origin::Tensor(renamed(name, "model.layers.", &TOP, LAYER)))
}

const TOP: [(&str, &str); 1] = [("model.norm", "model.embedding_norm")];
const LAYER: &Pairs = &[
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("self_attn.q_norm", "self_attn.q_layernorm"),
    ("self_attn.k_norm", "self_attn.k_layernorm"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
];
