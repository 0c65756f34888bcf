//! Helium: Llama with interleaved rope.

use rillm_nn::Bias;
use rillm_tensor_core::Pairing;

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["helium"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults {
        eps: 1e-8,
        theta: 100_000.0,
        context: 4096,
        head_dim: Some(128),
        kv_heads: Some(20),
        pairing: Pairing::Interleaved,
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    spec.attentions().for_each(|attn| attn.o_bias = Bias::None);
    Ok(spec)
}
