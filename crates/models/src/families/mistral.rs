//! Mistral: Llama with a sliding window.

use super::llama::{DEFAULTS, Defaults, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["mistral"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { context: 131_072, ..DEFAULTS })?;
    // transformers' default where the key is missing; null means no window.
    let window = if c.has("sliding_window") { c.opt_count("sliding_window")? } else { Some(4096) };
    spec.attentions().for_each(|attn| attn.params.window = window);
    Ok(spec)
}
