//! OLMoE: Llama with a norm on whole queries and keys, and experts for feed-forward layers.

use rillm_nn::{Bias, NormOrder, NormOver, QkNorm};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use super::qwen2_moe::mix;
use super::qwen3_moe::plain_layout;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ..DecoderFamily::new(&["olmoe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { eps: 1e-5, context: 4096, ..DEFAULTS })?;
    // Unlike OLMo's, it would be after the norms.
    if c.get("clip_qkv").is_some() {
        return Err(c.unsupported("clip_qkv", "null"));
    }
    biases(&mut spec, bias(c, "attention_bias")?, Bias::None);
    let kind = spec.norm;
    let norm = QkNorm { kind, over: NormOver::Row, order: NormOrder::BeforeRope };
    spec.attentions().for_each(|attn| attn.qk_norm = Some(norm));
    let hidden = c.count("intermediate_size")?;
    if c.get("moe_intermediate_size").is_some() {
        return Err(c.unsupported("moe_intermediate_size", "no such key: experts have intermediate_size"));
    }
    mix(c, &mut spec, [hidden, 64, 8], None)?;
    Ok(spec)
}
