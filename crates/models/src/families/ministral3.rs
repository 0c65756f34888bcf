//! Ministral 3: Mistral with queries that grow with the position, and yarn.

use rillm_nn::Temperature;

use super::common::{DEFAULTS, Defaults, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["ministral3"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let Some(rope) = c.rope_object()? else {
        return Err(c.unsupported("rope_parameters", "the parameters of rope"));
    };
    let mut spec = follow(
        c,
        &Defaults {
            eps: 1e-5,
            theta: 1e6,
            context: 262_144,
            head_dim: Some(128),
            kv_heads: Some(8),
            ..DEFAULTS
        },
    )?;
    let temperature = match rope.opt_number("llama_4_scaling_beta")? {
        Some(beta) => {
            let step = rope.count("original_max_position_embeddings")?;
            Some(Temperature { beta: beta as f32, step, offset: 0 })
        }
        None => None,
    };
    let window = c.opt_count("sliding_window")?;
    for attn in spec.attentions() {
        (attn.temperature, attn.params.window) = (temperature, window);
    }
    Ok(spec)
}
