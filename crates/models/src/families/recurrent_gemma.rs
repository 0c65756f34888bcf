//! RecurrentGemma: Griffin's recurrent blocks in two layers of three, attention with a window in the others, and Gemma's
//! norms, embedding and caps.

use half::bf16;
use rillm_nn::{Bias, GriffinSpec, MlpSpec, NormKind, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, attention, bias, layer_count_or};
use super::mamba2::divides;
use crate::names::renamed;
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["recurrent_gemma"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", 2560)?;
    let norm = NormKind::RmsPlusOne { eps: c.positive_or("rms_norm_eps", 1e-6)? as f32 };
    let act = c.activation("hidden_activation", Activation::GeluTanh)?;
    let defaults = Defaults { part: 0.5, context: 8192, ..DEFAULTS };
    let (mut attn, _) = attention(c, dim, &defaults)?;
    (attn.qkv_bias, attn.o_bias) = (bias(c, "attention_bias")?, Bias::Added);
    attn.params.window = Some(c.count_or("attention_window_size", c.count_or("sliding_window", 2048)?)?);
    let heads = attn.params.heads;
    let inner = c.count_or("lru_width", dim)?;
    divides(c, "num_attention_heads", heads, inner)?;
    let griffin = GriffinSpec { dim, inner, heads, taps: c.count_or("conv1d_width", 4)?, act };
    let mlp = MlpSpec {
        bias: Bias::Added,
        ..MlpSpec::new([dim, (c.count_or("intermediate_size", 7680)? / 2).max(1)], act)
    };
    let layer = |kind: &str| {
        let mixer = match kind {
            "recurrent" => MixerSpec::Griffin(griffin),
            _ => MixerSpec::Attention(attn.clone()),
        };
        let first = BranchSpec::normed("temporal_block", mixer, "temporal_pre_norm", norm);
        let second = BranchSpec::normed("mlp_block", MixerSpec::Mlp(mlp), "channel_pre_norm", norm);
        LayerSpec::in_turn([first, second])
    };
    Ok(DecoderSpec {
        dim,
        vocab: c.count_or("vocab_size", 256_000)?,
        context: None,
        learned_positions: None,
        // transformers keeps the factor in bfloat16.
        embed_scale: Some(bf16::from_f32((dim as f32).sqrt()).to_f32()),
        per_layer: None,
        layers: kinds(c)?.into_iter().map(layer).collect(),
        norm,
        head: HeadSpec {
            softcap: Some(c.positive_or("logits_soft_cap", 30.0)? as f32),
            ..HeadSpec::plain(c.flag("tie_word_embeddings", true)?)
        },
    })
}

/// `block_types`, repeated.
fn kinds<'a>(c: &Config<'a>) -> Result<Vec<&'a str>> {
    const NAMES: [&str; 2] = ["recurrent", "attention"];
    let n = layer_count_or(c, "num_hidden_layers", 26)?;
    let Some(value) = c.get("block_types") else {
        return Ok((0..n).map(|i| NAMES[usize::from(i % 3 == 2)]).collect());
    };
    let list = value.as_array().and_then(|a| a.iter().map(|v| v.as_str()).collect::<Option<Vec<_>>>());
    let list = list.filter(|l| !l.is_empty() && l.iter().all(|name| NAMES.contains(name)));
    let list = list.ok_or_else(|| c.unsupported("block_types", "a list of recurrent and attention"))?;
    Ok(list.into_iter().cycle().take(n).collect())
}

fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    let top = [("model.norm", "model.final_norm")];
    Box::new(move |name| Origin::Tensor(renamed(name, "model.layers.", &top, &[])))
}
