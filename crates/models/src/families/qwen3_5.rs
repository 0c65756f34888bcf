//! Qwen3.5 (text): Qwen3-Next with a dense feed-forward layer, or with experts in every layer.

use super::qwen3_next::{Sizes, hybrid, ignored, layout, mix};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["qwen3_5_text", "qwen3_5_moe_text"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    if c.model_type()? == "qwen3_5_text" {
        return hybrid(c, &Sizes { dim: 4096, hidden: 12_288, layers: 32, vocab: 248_320 });
    }
    let mut spec = hybrid(c, &Sizes { dim: 2048, hidden: 1, layers: 40, vocab: 248_320 })?;
    mix(c, &mut spec, [256, 8], |_| true)?;
    Ok(spec)
}
