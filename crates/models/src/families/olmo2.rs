//! OLMo 2: norms after attention and feed-forward layer, and over all queries and all keys.

use rillm_nn::{NormOrder, NormOver, QkNorm};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["olmo2"], family);

/// What OLMo 2 and 3 have in common.
pub(super) fn family(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { eps: 1e-5, ..DEFAULTS })?;
    spec.arrange(Norms::Post);
    let norm = QkNorm { kind: spec.norm, over: NormOver::Row, order: NormOrder::BeforeRope };
    spec.attentions().for_each(|attn| attn.qk_norm = Some(norm));
    biases(&mut spec, bias(c, "attention_bias")?, rillm_nn::Bias::None);
    Ok(spec)
}
