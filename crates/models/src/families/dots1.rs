//! dots.llm1: Qwen3's attention with windows in some layers, DeepSeek V3's experts.

use rillm_nn::{Bias, QkNorm};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use super::deepseek_v3::{Mixture, ignored, mix, number_or};
use super::mixtral::experts_of;
use super::qwen3_moe::plain_layout;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ignored, ..DecoderFamily::new(&["dots1"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { kv_heads: Some(32), ..DEFAULTS })?;
    biases(&mut spec, bias(c, "attention_bias")?, Bias::None);
    let window = if c.has("sliding_window") { c.opt_count("sliding_window")? } else { Some(4096) };
    let first = number_or(c, "max_window_layers", 62)?;
    let sliding = c.sliding_layers(spec.layers.len(), |i| window.is_some() && i >= first)?;
    let norm = spec.norm;
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.params.window = window.filter(|_| sliding);
        attn.qk_norm = Some(QkNorm::heads(norm));
    }
    let (experts, top_k) = (experts_of(c, "n_routed_experts", 0)?, c.count("num_experts_per_tok")?);
    let moe = Mixture { hidden: 1408, experts, top_k, shared: 0, groups: [1, 1], scale: 1.0, norm: false };
    let dense = number_or(c, "first_k_dense_replace", 0)?;
    mix(c, &mut spec, &moe, |i| i >= dense)?;
    Ok(spec)
}
