//! InternLM3: Llama under other names for its biases.

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["internlm3"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(
        c,
        &Defaults { eps: 1e-5, context: 32_768, head_dim: Some(128), kv_heads: Some(2), ..DEFAULTS },
    )?;
    let key = |new, old| if c.has(new) { bias(c, new) } else { bias(c, old) };
    let (qkv, others) = (key("attention_bias", "qkv_bias")?, key("mlp_bias", "bias")?);
    biases(&mut spec, qkv, others);
    spec.attentions().for_each(|attn| attn.o_bias = others);
    Ok(spec)
}
