//! Nemotron-3 8B, Nemotron-4 and Minitron: LayerNorm of `1 + w`, squared ReLU, rope on half of each head.

use rillm_nn::{MlpKind, NormKind};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["nemotron"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { context: 4096, part: 0.5, ..DEFAULTS })?;
    let norm = c.layer_norm("norm_eps", |eps| NormKind::LayerPlusOne { eps })?;
    spec.map_norms(|_| norm);
    let act = c.activation("hidden_act", Activation::Relu2)?;
    spec.mlps().for_each(|mlp| (mlp.kind, mlp.act) = (MlpKind::Plain, act));
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    Ok(spec)
}
