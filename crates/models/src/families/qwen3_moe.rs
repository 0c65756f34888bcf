//! Qwen3 MoE: Qwen3 with experts in most layers.

use rillm_nn::{QkNorm, WeightSource};

use super::common::{DEFAULTS, Defaults, bias, follow};
use super::qwen2_moe::mix;
use crate::experts::{self, PLAIN};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ..DecoderFamily::new(&["qwen3_moe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { context: 32_768, kv_heads: Some(4), ..DEFAULTS })?;
    let (bias, norm) = (bias(c, "attention_bias")?, spec.norm);
    let window = match c.flag("use_sliding_window", false)? {
        true if c.has("sliding_window") => c.opt_count("sliding_window")?,
        true => Some(4096),
        false => None,
    };
    for attn in spec.attentions() {
        (attn.qkv_bias, attn.o_bias, attn.params.window) = (bias, bias, window);
        attn.qk_norm = Some(QkNorm::heads(norm));
    }
    mix(c, &mut spec, [768, 128, 8], None)?;
    Ok(spec)
}

/// Experts under the decoder's own names.
pub(super) fn plain_layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    experts::layout(spec, source, PLAIN)
}
