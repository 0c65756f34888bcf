//! Gemma: Llama with norms of `1 + w`, an embedding scaled by the root of the width, and a tanh GELU gate.

use rillm_nn::NormKind;
use rillm_tensor_core::Activation;

use super::llama::{DEFAULTS, Defaults, bias, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["gemma"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    // The first files say `gelu` and mean its tanh form; other keys for it are not read here.
    let act = match c.activation("hidden_act", Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        act => act,
    };
    family(c, act)
}

/// What all gemmas have in common.
pub(super) fn family(c: &Config<'_>, act: Activation) -> Result<DecoderSpec> {
    let defaults = Defaults { tied: true, context: 8192, head_dim: Some(256), ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    spec.map_norms(plus_one);
    spec.embed_scale = Some((spec.dim as f32).sqrt());
    let attn_bias = bias(c, "attention_bias")?;
    spec.mlps().for_each(|mlp| mlp.act = act);
    spec.attentions().for_each(|attn| (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias));
    Ok(spec)
}

fn plus_one(norm: NormKind) -> NormKind {
    match norm {
        NormKind::Rms { eps } => NormKind::RmsPlusOne { eps },
        other => other,
    }
}
