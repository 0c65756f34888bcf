//! Apertus: Llama with head norms and a plain feed-forward layer with xIELU, whose numbers are learned.

use rillm_nn::{MlpKind, Origin, QkNorm, RopeScaling, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, bias, biases, default_scaling, follow};
use crate::names::renamed;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["apertus"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { eps: 1e-5, theta: 12e6, context: 65_536, ..DEFAULTS })?;
    let learned = Activation::XIelu { positive: 0.0, negative: 0.0, slope: 0.0 };
    let act = c.activation("hidden_act", learned)?;
    spec.mlps().for_each(|mlp| (mlp.kind, mlp.act) = (MlpKind::Plain, act));
    biases(&mut spec, bias(c, "attention_bias")?, rillm_nn::Bias::None);
    let qk_norm = QkNorm::heads(spec.norm);
    spec.attentions().for_each(|attn| attn.qk_norm = Some(qk_norm));
    let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
    default_scaling(c, &mut spec, 12e6, scaling)?;
    Ok(spec)
}

fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| {
        let layer = [
            ("input_layernorm", "attention_layernorm"),
            ("post_attention_layernorm", "feedforward_layernorm"),
        ];
        Origin::Tensor(renamed(name, "model.layers.", &[], &layer))
    })
}
