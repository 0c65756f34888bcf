//! Llama 1 to 3, SmolLM, TinyLlama.

use super::common::{DEFAULTS, bias, biases, counts, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["llama"], spec);

const COUNTS: [(&str, usize); 5] = counts([32_000, 4096, 11_008, 32, 32]);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    let mut spec = follow(c, &DEFAULTS)?;
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    Ok(spec)
}
