//! Gemma 3 (text): Gemma 2 with head norms, five layers of six with a window, and two sets of rope frequencies.

use std::sync::Arc;

use rillm_nn::{QkNorm, RopeScaling, RopeSpec, RotaryEmbedding};
use rillm_tensor_core::Activation;

use super::common::counts;
use super::gemma::family;
use super::gemma2::caps_and_scale;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["gemma3_text"], spec);

/// Files of the models that also see leave out what is the default.
const COUNTS: [(&str, usize); 5] = counts([262_208, 2304, 9216, 26, 8]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    let mut spec = family(c, c.activation("hidden_activation", Activation::GeluTanh)?, 4)?;
    caps_and_scale(c, &mut spec, [None, None])?;
    spec.context = Some(c.count_or("max_position_embeddings", 131_072)?);
    let head_dim = spec.attentions().next().map_or(0, |attn| attn.params.head_dim);
    let global = Arc::new(RotaryEmbedding::new(c.rope(head_dim, 1_000_000.0, Some("full_attention"))?));
    let local = Arc::new(RotaryEmbedding::new(local_rope(c, head_dim)?));
    let window = c.count_or("sliding_window", 4096)?;
    let pattern = c.count_or("sliding_window_pattern", c.count_or("_sliding_window_pattern", 6)?)?;
    let sliding = c.sliding_layers(spec.layers.len(), |i| (i + 1) % pattern != 0)?;
    let qk_norm = QkNorm::heads(spec.norm);
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.params.window = sliding.then_some(window);
        attn.rope = Some(if sliding { local.clone() } else { global.clone() });
        attn.qk_norm = Some(qk_norm);
        // The key is in the configuration's class, but no implementation caps gemma3's scores.
        attn.params.softcap = None;
    }
    Ok(spec)
}

/// Layers with a window: the nested parameters, or `rope_local_base_freq` without scaling.
pub(super) fn local_rope(c: &Config<'_>, head_dim: usize) -> Result<RopeSpec> {
    if c.object("rope_parameters")?.is_some_and(|p| p.get("sliding_attention").is_some()) {
        return c.rope(head_dim, 10_000.0, Some("sliding_attention"));
    }
    let theta = c.positive_or("rope_local_base_freq", 10_000.0)?;
    Ok(RopeSpec { theta, scaling: RopeScaling::None, ..c.rope(head_dim, theta, None)? })
}
