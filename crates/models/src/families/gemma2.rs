//! Gemma 2: norms before and after, every other layer with a window, scores and logits capped.

use rillm_tensor_core::Activation;

use super::common::counts;
use super::gemma::family;
use crate::{Config, DecoderFamily, DecoderSpec, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["gemma2"], spec);

const COUNTS: [(&str, usize); 5] = counts([256_000, 2304, 9216, 26, 8]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    let mut spec = family(c, c.activation("hidden_activation", Activation::GeluTanh)?, 4)?;
    caps_and_scale(c, &mut spec, [Some(50.0), Some(30.0)])?;
    let window = c.count_or("sliding_window", 4096)?;
    let sliding = c.sliding_layers(spec.layers.len(), |i| i % 2 == 0)?;
    for (attn, sliding) in spec.attentions().zip(sliding) {
        attn.params.window = sliding.then_some(window);
    }
    Ok(spec)
}

/// `query_pre_attn_scalar`, the caps on scores and logits (`caps` where the key is missing; null is no cap), and the
/// four norms of a layer.
pub(super) fn caps_and_scale(c: &Config<'_>, spec: &mut DecoderSpec, caps: [Option<f64>; 2]) -> Result<()> {
    let cap = |key: &str, default| match c.has(key) {
        true => c.opt_number(key),
        false => Ok(default),
    };
    let attn_cap = cap("attn_logit_softcapping", caps[0])?.map(|x| x as f32);
    spec.head.softcap = cap("final_logit_softcapping", caps[1])?.map(|x| x as f32);
    let scale = c.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32;
    spec.arrange(Norms::PreAndPost);
    for attn in spec.attentions() {
        (attn.params.scale, attn.params.softcap) = (scale, attn_cap);
    }
    Ok(())
}
