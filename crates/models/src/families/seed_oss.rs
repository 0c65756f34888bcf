//! Seed-OSS: Llama with biases on queries, keys and values.

use super::common::{DEFAULTS, Defaults, bias, bias_or, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["seed_oss"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec =
        follow(c, &Defaults { context: 524_288, head_dim: Some(128), kv_heads: Some(8), ..DEFAULTS })?;
    biases(&mut spec, bias_or(c, "attention_bias", true)?, bias(c, "mlp_bias")?);
    let o_bias = bias(c, "attention_out_bias")?;
    spec.attentions().for_each(|attn| attn.o_bias = o_bias);
    Ok(spec)
}
