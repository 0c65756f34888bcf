//! Gemma: Llama with norms of `1 + w`, an embedding scaled by the root of the width, and a tanh GELU gate.

use rillm_nn::NormKind;
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, bias, counts, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["gemma"], spec);

const COUNTS: [(&str, usize); 5] = counts([256_000, 3072, 24_576, 28, 16]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    // The first files say `gelu` and mean its tanh form; other keys for it are not read here.
    let act = match c.activation("hidden_act", Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        act => act,
    };
    family(c, act, 16)
}

/// What all gemmas have in common; `kv_heads` where no key says.
pub(super) fn family(c: &Config<'_>, act: Activation, kv_heads: usize) -> Result<DecoderSpec> {
    if c.flag("use_bidirectional_attention", false)? {
        return Err(c.unsupported("use_bidirectional_attention", "false"));
    }
    let defaults =
        Defaults { tied: true, context: 8192, head_dim: Some(256), kv_heads: Some(kv_heads), ..DEFAULTS };
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
