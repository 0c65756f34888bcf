//! GLM 4 (9B): Llama with biases on queries, keys and values, interleaved rope on half of each head, fused gate and up.

use rillm_nn::{Bias, Origin, WeightSource};
use rillm_tensor_core::Pairing;

use super::common::{DEFAULTS, Defaults, bias_or, follow};
use crate::names::{layer_of, stacked};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["glm"], family) };

/// What GLM and GLM-4 have in common.
pub(super) fn family(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults {
        eps: 1.5625e-7,
        context: 131_072,
        head_dim: Some(128),
        kv_heads: Some(2),
        part: 0.5,
        pairing: Pairing::Interleaved,
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    let qkv_bias = bias_or(c, "attention_bias", true)?;
    spec.attentions().for_each(|attn| (attn.qkv_bias, attn.o_bias) = (qkv_bias, Bias::None));
    Ok(spec)
}

/// `gate_up_proj` holds the gate, then what it opens.
pub(super) fn layout(spec: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    let hidden = spec.layers.first().and_then(|l| l.mlp()).map_or(0, |mlp| mlp.hidden);
    Box::new(move |name| {
        let fused = layer_of(name).and_then(|(i, rest)| {
            let part = match rest {
                "mlp.gate_proj.weight" => 0,
                "mlp.up_proj.weight" => 1,
                _ => return None,
            };
            let (rows, of) = stacked(&[hidden; 2], part);
            Some(Origin::Rows { name: format!("model.layers.{i}.mlp.gate_up_proj.weight"), rows, of })
        });
        fused.unwrap_or_else(|| Origin::Tensor(name.to_owned()))
    })
}
