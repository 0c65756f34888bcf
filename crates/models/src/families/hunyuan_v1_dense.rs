//! Hunyuan (dense): Llama with head norms after rope, whose base may be stretched.

use rillm_nn::{NormOrder, NormOver, Origin, QkNorm, WeightSource};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::names::renamed;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["hunyuan_v1_dense"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { eps: 1e-5, ..DEFAULTS })?;
    biases(&mut spec, bias(c, "attention_bias")?, rillm_nn::Bias::None);
    if !c.flag("use_qk_norm", true)? {
        return Ok(spec);
    }
    let norm = QkNorm { kind: spec.norm, over: NormOver::Head, order: NormOrder::AfterRope };
    spec.attentions().for_each(|attn| attn.qk_norm = Some(norm));
    Ok(spec)
}

fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| {
        let layer = [
            ("self_attn.q_norm", "self_attn.query_layernorm"),
            ("self_attn.k_norm", "self_attn.key_layernorm"),
        ];
        Origin::Tensor(renamed(name, "model.layers.", &[], &layer))
    })
}
