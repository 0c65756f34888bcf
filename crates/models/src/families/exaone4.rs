//! EXAONE 4: norms after attention and feed-forward layer, head norms, and no rope in layers that see everything while
//! others have a window.

use rillm_nn::QkNorm;

use super::common::{DEFAULTS, Defaults, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["exaone4"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { eps: 1e-5, kv_heads: Some(32), ..DEFAULTS })?;
    spec.arrange(Norms::Post);
    let window = if c.has("sliding_window") { c.opt_count("sliding_window")? } else { Some(4096) };
    // Without a window the pattern says nothing, and is 0.
    let pattern = if window.is_some() { pattern(c)? } else { vec![false] };
    let layers = spec.layers.len();
    let sliding = c.sliding_layers(layers, |i| window.is_some() && pattern[i % pattern.len()])?;
    let qk_norm = QkNorm::heads(spec.norm);
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.qk_norm = Some(qk_norm);
        attn.params.window = window.filter(|_| sliding);
        attn.rope = attn.rope.take().filter(|_| window.is_none() || sliding);
    }
    Ok(spec)
}

/// `sliding_window_pattern`: every how many layers one sees everything, or `L` and `G` for a period of layers.
fn pattern(c: &Config<'_>) -> Result<Vec<bool>> {
    let key = "sliding_window_pattern";
    match c.get(key).and_then(|v| v.as_str()) {
        Some(letters) if !letters.is_empty() && letters.chars().all(|l| matches!(l, 'L' | 'G')) => {
            Ok(letters.chars().map(|l| l == 'L').collect())
        }
        Some(_) => Err(c.unsupported(key, "a number, or letters L and G")),
        None => {
            let n = c.count_or(key, 4)?.min(super::common::MAX_LAYERS + 1);
            Ok((1..=n).map(|i| i != n).collect())
        }
    }
}
