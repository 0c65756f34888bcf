//! Command R7B and A: Command R with windows, and no rope where there is none.

use super::cohere::family;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["cohere2"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = family(c, 10_000.0)?;
    let window = c.count_or("sliding_window", 4096)?;
    let pattern = c.count_or("sliding_window_pattern", c.count_or("_sliding_window_pattern", 4)?)?;
    let sliding = c.sliding_layers(spec.layers.len(), |i| (i + 1) % pattern != 0)?;
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.params.window = sliding.then_some(window);
        attn.rope = attn.rope.take().filter(|_| sliding);
    }
    Ok(spec)
}
