//! ERNIE 4.5: Llama with interleaved rope.

use rillm_tensor_core::Pairing;

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["ernie4_5"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults {
        eps: 1e-5,
        theta: 500_000.0,
        tied: true,
        context: 131_072,
        head_dim: Some(128),
        kv_heads: Some(2),
        pairing: Pairing::Interleaved,
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    let bias = bias(c, "use_bias")?;
    biases(&mut spec, bias, bias);
    Ok(spec)
}
