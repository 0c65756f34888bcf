//! Mistral: Llama with a sliding window.

use super::common::{DEFAULTS, Defaults, counts, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["mistral"], spec);

const COUNTS: [(&str, usize); 5] = counts([32_000, 4096, 14_336, 32, 32]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    let mut spec = follow(c, &Defaults { context: 131_072, kv_heads: Some(8), ..DEFAULTS })?;
    // transformers' default where the key is missing; null means no window.
    let window = if c.has("sliding_window") { c.opt_count("sliding_window")? } else { Some(4096) };
    spec.attentions().for_each(|attn| attn.params.window = window);
    Ok(spec)
}
