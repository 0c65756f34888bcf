//! GLM 4 (0414): GLM with norms after attention and feed-forward layer as well.

use rillm_nn::{Origin, WeightSource};

use super::glm::{family, layout as fused};
use crate::names::renamed;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["glm4"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = family(c)?;
    spec.arrange(Norms::PreAndPost);
    Ok(spec)
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let fused = fused(spec, source);
    Box::new(move |name| {
        let layer = [
            ("post_attention_layernorm", "post_self_attn_layernorm"),
            ("pre_feedforward_layernorm", "post_attention_layernorm"),
            ("post_feedforward_layernorm", "post_mlp_layernorm"),
        ];
        match fused(name) {
            Origin::Tensor(name) => Origin::Tensor(renamed(&name, "model.layers.", &[], &layer)),
            other => other,
        }
    })
}
