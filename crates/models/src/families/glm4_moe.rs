//! GLM 4.5 to 4.7: attention of Llama's kind with partial rope, DeepSeek V3's experts.

use rillm_nn::{Bias, QkNorm};

use super::common::{DEFAULTS, Defaults, bias, follow};
use super::deepseek_v3::{Mixture, ignored, mix, number_or};
use super::qwen3_moe::plain_layout;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ignored, ..DecoderFamily::new(&["glm4_moe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults { eps: 1e-5, context: 131_072, kv_heads: Some(8), part: 0.5, ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    let (bias, norm) = (bias(c, "attention_bias")?, spec.norm);
    let normed = c.flag("use_qk_norm", false)?;
    for attn in spec.attentions() {
        (attn.qkv_bias, attn.o_bias) = (bias, Bias::None);
        attn.qk_norm = normed.then(|| QkNorm::heads(norm));
    }
    let dense = number_or(c, "first_k_dense_replace", 1)?;
    let moe =
        Mixture { hidden: 1408, experts: 128, top_k: 8, shared: 1, groups: [1, 1], scale: 1.0, norm: true };
    mix(c, &mut spec, &moe, |i| i >= dense)?;
    Ok(spec)
}
