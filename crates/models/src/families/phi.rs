//! Phi 1 to 2: attention and feed-forward layer side by side behind one LayerNorm, biases everywhere.

use rillm_nn::{Bias, MlpKind, NormKind, Origin, QkNorm, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, biases, follow};
use crate::names::{renamed, with_head};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["phi"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { part: 0.5, ..DEFAULTS })?;
    let norm = c.layer_norm("layer_norm_eps", |eps| NormKind::Layer { eps })?;
    spec.map_norms(|_| norm);
    let act = c.activation("hidden_act", Activation::GeluTanh)?;
    spec.mlps().for_each(|mlp| (mlp.kind, mlp.act) = (MlpKind::Plain, act));
    biases(&mut spec, Bias::Added, Bias::Added);
    if c.flag("qk_layernorm", false)? {
        spec.attentions().for_each(|attn| attn.qk_norm = Some(QkNorm::heads(norm)));
    }
    spec.arrange(Norms::Parallel);
    // A tied head reads the table for itself, because of the bias.
    (spec.head.bias, spec.head.tied) = (Bias::Added, false);
    Ok(spec)
}

fn layout(_: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let layout = Box::new(|name: &str| {
        let top = [("model.norm", "model.final_layernorm")];
        let layer = [
            ("self_attn.o_proj", "self_attn.dense"),
            ("self_attn.q_norm", "self_attn.q_layernorm"),
            ("self_attn.k_norm", "self_attn.k_layernorm"),
            ("mlp.up_proj", "mlp.fc1"),
            ("mlp.down_proj", "mlp.fc2"),
        ];
        Origin::Tensor(renamed(name, "model.layers.", &top, &layer))
    });
    with_head(source, layout)
}
