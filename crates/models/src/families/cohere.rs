//! Command R: attention and feed-forward layer side by side behind one LayerNorm without bias, interleaved rope, scaled
//! logits.

use rillm_nn::{NormKind, NormOrder, NormOver, Origin, QkNorm, WeightSource};
use rillm_tensor_core::Pairing;

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::names::layer_of;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["cohere"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = family(c, 500_000.0)?;
    if c.flag("use_qk_norm", false)? {
        let norm = QkNorm { kind: spec.norm, over: NormOver::EachHead, order: NormOrder::BeforeRope };
        spec.attentions().for_each(|attn| attn.qk_norm = Some(norm));
    }
    Ok(spec)
}

/// What Command R and R7B have in common.
pub(super) fn family(c: &Config<'_>, theta: f64) -> Result<DecoderSpec> {
    let defaults = Defaults { theta, tied: true, context: 8192, pairing: Pairing::Interleaved, ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    let norm = c.layer_norm("layer_norm_eps", |eps| NormKind::LayerNoBias { eps })?;
    spec.map_norms(|_| norm);
    spec.arrange(Norms::Parallel);
    let attn_bias = bias(c, "attention_bias")?;
    biases(&mut spec, attn_bias, rillm_nn::Bias::None);
    spec.head.scale = Some(c.number_or("logit_scale", 0.0625)? as f32);
    Ok(spec)
}

/// The norms of all heads are one matrix.
fn layout(spec: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    let params = spec.layers.first().and_then(|l| l.attention()).map(|a| a.params);
    let (heads, kv_heads) = params.map_or((0, 0), |p| (p.heads, p.kv_heads));
    Box::new(move |name| {
        let head = |of: &str, heads: usize| {
            let (layer, rest) = layer_of(name)?;
            let head: usize =
                rest.strip_prefix(of)?.strip_suffix(".weight")?.strip_prefix('.')?.parse().ok()?;
            let name = format!("model.layers.{layer}.{of}.weight");
            Some(Origin::Rows { name, rows: head..head + 1, of: heads })
        };
        let norm = head("self_attn.q_norm", heads).or_else(|| head("self_attn.k_norm", kv_heads));
        norm.unwrap_or_else(|| Origin::Tensor(name.to_owned()))
    })
}
