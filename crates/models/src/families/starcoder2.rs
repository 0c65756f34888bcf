//! StarCoder 2: Llama with LayerNorm, biases, a plain feed-forward layer and optionally a window.

use rillm_nn::{MlpKind, NormKind, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, bias_or, biases, follow};
use crate::names::renamed;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["starcoder2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { tied: true, context: 4096, kv_heads: Some(2), ..DEFAULTS })?;
    let norm = c.layer_norm("norm_epsilon", |eps| NormKind::Layer { eps })?;
    spec.map_norms(|_| norm);
    let act = c.activation("hidden_act", Activation::GeluTanh)?;
    spec.mlps().for_each(|mlp| (mlp.kind, mlp.act) = (MlpKind::Plain, act));
    let bias = bias_or(c, "use_bias", true)?;
    biases(&mut spec, bias, bias);
    let window = c.opt_count("sliding_window")?;
    spec.attentions().for_each(|attn| attn.params.window = window);
    Ok(spec)
}

fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| {
        let layer = [("mlp.up_proj", "mlp.c_fc"), ("mlp.down_proj", "mlp.c_proj")];
        Origin::Tensor(renamed(name, "model.layers.", &[], &layer))
    })
}
