//! Qwen2 and 2.5: Llama with biases on queries, keys and values, and optionally a window in the upper layers.

use rillm_nn::Bias;

use super::common::{DEFAULTS, Defaults, counts, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["qwen2"], spec);

const COUNTS: [(&str, usize); 5] = counts([151_936, 4096, 22_016, 32, 32]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    let mut spec = follow(c, &Defaults { context: 32_768, kv_heads: Some(32), ..DEFAULTS })?;
    spec.attentions().for_each(|attn| attn.qkv_bias = Bias::Added);
    upper_windows(c, &mut spec)?;
    Ok(spec)
}

/// `use_sliding_window`: layers from `max_window_layers` on, or those that `layer_types` names.
pub(super) fn upper_windows(c: &Config<'_>, spec: &mut DecoderSpec) -> Result<()> {
    let window = match c.flag("use_sliding_window", false)? {
        true if c.has("sliding_window") => c.opt_count("sliding_window")?,
        true => Some(4096),
        false => None,
    };
    let first = c.get("max_window_layers").and_then(|v| v.as_u64()).unwrap_or(28) as usize;
    let sliding = c.sliding_layers(spec.layers.len(), |i| window.is_some() && i >= first)?;
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.params.window = window.filter(|_| sliding);
    }
    Ok(())
}
