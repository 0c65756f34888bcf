//! Qwen3: Llama with a norm on each head of queries and keys.

use rillm_nn::QkNorm;

use super::common::{DEFAULTS, Defaults, bias, follow};
use super::qwen2::upper_windows;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["qwen3"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec =
        follow(c, &Defaults { context: 32_768, head_dim: Some(128), kv_heads: Some(32), ..DEFAULTS })?;
    let attn_bias = bias(c, "attention_bias")?;
    let qk_norm = QkNorm::heads(spec.norm);
    for attn in spec.attentions() {
        (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
        attn.qk_norm = Some(qk_norm);
    }
    upper_windows(c, &mut spec)?;
    Ok(spec)
}
