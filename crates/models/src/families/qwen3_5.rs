//! Qwen3.5 (text): Qwen3-Next with a dense feed-forward layer.

use super::qwen3_next::{hybrid, ignored, layout};
use crate::DecoderFamily;

pub(super) const FAMILY: DecoderFamily = DecoderFamily {
    layout,
    ignored,
    ..DecoderFamily::new(&["qwen3_5_text"], |c| hybrid(c, |_, mlp| Ok(mlp)))
};
