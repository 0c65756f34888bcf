//! DeepSeek V2: multi-head latent attention, experts chosen by softmax.

use rillm_nn::{MlpSpec, MoeSpec};
use rillm_tensor_core::GroupScore;

use super::deepseek_v3::{Ranks, all_use, groups, ignored, latent, number_or};
use super::llama::{DEFAULTS, bias, biases, follow};
use super::mixtral::{check_choice, experts_of};
use super::qwen3_moe::plain_layout;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ignored, ..DecoderFamily::new(&["deepseek_v2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &DEFAULTS)?;
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    latent(c, &mut spec, &Ranks { q: Some(1536), kv: 512, nope: 128, rope: 64, v: 128 })?;
    let hidden = c.count_or("moe_intermediate_size", 1407)?;
    let counts = [experts_of(c, "n_routed_experts", 64)?, c.count("num_experts_per_tok")?];
    check_choice(c, counts)?;
    let groups = match c.get("topk_method").map_or(Some("greedy"), |v| v.as_str()) {
        Some("greedy") => None,
        Some("group_limited_greedy") => groups(c, counts, [1, 1], GroupScore::Greatest)?,
        _ => return Err(c.unsupported("topk_method", "greedy or group_limited_greedy")),
    };
    if c.flag("norm_topk_prob", false)? {
        // transformers reads the key and does nothing with it, mlx-lm likewise.
        return Err(c.unsupported("norm_topk_prob", "false"));
    }
    if c.get("scoring_func").is_some_and(|v| v.as_str() != Some("softmax")) {
        return Err(c.unsupported("scoring_func", "softmax"));
    }
    let scale = c.number_or("routed_scaling_factor", 1.0)? as f32;
    let shared = number_or(c, "n_shared_experts", 2)?;
    let dense = number_or(c, "first_k_dense_replace", 0)?;
    spec.mix(|i, mlp: &MlpSpec| {
        let mut moe = MoeSpec::new([mlp.dim, hidden], mlp.act, counts);
        (moe.routing.groups, moe.routing.scale) = (groups, scale);
        moe.shared = all_use(shared * hidden, mlp.bias);
        (i >= dense).then_some(moe)
    });
    Ok(spec)
}
