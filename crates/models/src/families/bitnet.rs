//! BitNet b1.58: Llama with a squared ReLU and norms before the projections back (Ma et al. 2024).

use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, bias, biases, counts, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["bitnet"], spec);

const COUNTS: [(&str, usize); 5] = counts([128_256, 2560, 6912, 30, 20]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    let defaults = Defaults { eps: 1e-5, theta: 500_000.0, context: 2048, kv_heads: Some(5), ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    let (act, norm) = (c.activation("hidden_act", Activation::Relu2)?, Some(spec.norm));
    let attn_bias = bias(c, "attention_bias")?;
    biases(&mut spec, attn_bias, rillm_nn::Bias::None);
    spec.attentions().for_each(|attn| attn.sub_norm = norm);
    spec.mlps().for_each(|mlp| (mlp.act, mlp.sub_norm) = (act, norm));
    Ok(spec)
}
