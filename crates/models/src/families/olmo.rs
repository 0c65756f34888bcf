//! OLMo 1: Llama with LayerNorm without parameters, and optionally cut-off projections.

use rillm_nn::NormKind;

use super::common::{DEFAULTS, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["olmo"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &DEFAULTS)?;
    spec.map_norms(|_| NormKind::LayerPlain { eps: 1e-5 });
    biases(&mut spec, bias(c, "attention_bias")?, rillm_nn::Bias::None);
    if c.get("clip_qkv").is_some() {
        let limit = Some(c.positive_or("clip_qkv", 1.0)? as f32);
        spec.attentions().for_each(|attn| attn.clip = limit);
    }
    Ok(spec)
}
