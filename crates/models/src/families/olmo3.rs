//! OLMo 3: OLMo 2 with windows in three layers of four, whose rope is never stretched.

use std::sync::Arc;

use rillm_nn::{RopeScaling, RopeSpec, RotaryEmbedding};

use super::olmo2::family;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["olmo3"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = family(c)?;
    let head_dim = spec.attentions().next().map_or(0, |attn| attn.params.head_dim);
    let full = c.rope(head_dim, 500_000.0, Some("full_attention"))?;
    let nested = c.object("rope_parameters")?.is_some_and(|p| p.get("sliding_attention").is_some());
    let local = match nested {
        true => c.rope(head_dim, 500_000.0, Some("sliding_attention"))?,
        false => RopeSpec { scaling: RopeScaling::None, ..full.clone() },
    };
    let (full, local) = (Arc::new(RotaryEmbedding::new(full)), Arc::new(RotaryEmbedding::new(local)));
    let window = c.count_or("sliding_window", 4096)?;
    let sliding = c.sliding_layers(spec.layers.len(), |i| (i + 1) % 4 != 0)?;
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.params.window = sliding.then_some(window);
        attn.rope = Some(if sliding { local.clone() } else { full.clone() });
    }
    Ok(spec)
}
