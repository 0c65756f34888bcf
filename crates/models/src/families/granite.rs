//! Granite 3: Llama with factors on the embedding, the scores, the residuals and the logits.

use super::common::{DEFAULTS, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["granite"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &DEFAULTS)?;
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    multipliers(c, &mut spec)?;
    Ok(spec)
}

/// The four factors of Granite.
pub(super) fn multipliers(c: &Config<'_>, spec: &mut DecoderSpec) -> Result<()> {
    let factor = |key| Ok::<_, crate::Error>(c.number_or(key, 1.0)? as f32);
    let used = |x: f32| Some(x).filter(|x| *x != 1.0);
    let scale = factor("attention_multiplier")?;
    spec.attentions().for_each(|attn| attn.params.scale = scale);
    spec.embed_scale = used(factor("embedding_multiplier")?);
    let residual = used(factor("residual_multiplier")?);
    spec.branches().for_each(|branch| branch.factor = residual);
    spec.head.scale = used((1.0 / c.positive_or("logits_scaling", 1.0)?) as f32);
    Ok(())
}
