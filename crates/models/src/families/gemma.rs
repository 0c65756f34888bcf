//! Gemma: Llama with norms of `1 + w`, an embedding scaled by the root of the width, and a tanh GELU gate.

use rillm_nn::NormKind;
use rillm_tensor_core::Activation;

use super::llama::{DEFAULTS, Defaults, bias, follow, map_norms};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["gemma"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    family(c)
}

/// What all gemmas have in common.
pub(super) fn family(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults { tied: true, context: 8192, head_dim: Some(256), ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    map_norms(&mut spec, plus_one);
    spec.embed_scale = Some((spec.dim as f32).sqrt());
    // The first files say `gelu` in `hidden_act` and mean the tanh form, as `hidden_activation` then says.
    let key = if c.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let act = match c.activation(key, Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        act => act,
    };
    let attn_bias = bias(c, "attention_bias")?;
    for layer in &mut spec.layers {
        layer.mlp.act = act;
        (layer.attn.qkv_bias, layer.attn.o_bias) = (attn_bias, attn_bias);
    }
    Ok(spec)
}

fn plus_one(norm: NormKind) -> NormKind {
    match norm {
        NormKind::Rms { eps } => NormKind::RmsPlusOne { eps },
        other => other,
    }
}
