//! DeepSeek V2: multi-head latent attention, experts chosen by softmax.

use std::sync::Arc;

use rillm_nn::{MlaSpec, MlpSpec, MoeSpec, NormKind, RopeScaling, RotaryEmbedding};
use rillm_tensor_core::{GroupScore, Pairing};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use super::deepseek_v3::{all_use, groups, ignored, number_or};
use super::mixtral::{check_choice, experts_of};
use super::qwen3_moe::plain_layout;
use crate::{Config, DecoderFamily, DecoderSpec, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ignored, ..DecoderFamily::new(&["deepseek_v2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { head_dim: rotated(c, 64)?, ..DEFAULTS })?;
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    latent(c, &mut spec, &Ranks { q: Some(1536), kv: 512, nope: 128, rope: 64, v: 128 })?;
    let hidden = c.count_or("moe_intermediate_size", 1407)?;
    let counts = [experts_of(c, "n_routed_experts", 64)?, c.count("num_experts_per_tok")?];
    check_choice(c, counts)?;
    let groups = match c.get("topk_method").map_or(Some("greedy"), |v| v.as_str()) {
        Some("greedy") => None,
        Some("group_limited_greedy") => groups(c, "n_group", counts, [1, 1], GroupScore::Greatest)?,
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

/// What counts as the size of heads: the part that is rotated, `default` where no key says.
pub(super) fn rotated(c: &Config<'_>, default: usize) -> Result<Option<usize>> {
    c.count_or("qk_rope_head_dim", default).map(Some)
}

/// Dimensions of latent attention where no key says.
pub(super) struct Ranks {
    pub q: Option<usize>,
    pub kv: usize,
    pub nope: usize,
    pub rope: usize,
    pub v: usize,
}

/// Gives every layer latent attention in place of its own.
pub(super) fn latent(c: &Config<'_>, spec: &mut DecoderSpec, ranks: &Ranks) -> Result<()> {
    let rope_dim = c.count_or("qk_rope_head_dim", ranks.rope)?;
    let nope_dim = c.count_or("qk_nope_head_dim", ranks.nope)?;
    let c = &spec.context.map_or(*c, |n| c.with_positions(n));
    let mut rope = c.rope(rope_dim, 10_000.0, None)?;
    if c.flag("rope_interleave", true)? {
        rope.pairing = Pairing::Interleaved;
    }
    let scale = ((nope_dim + rope_dim) as f64).powf(-0.5) * mscale(c, &rope.scaling)?;
    let mla = MlaSpec {
        dim: spec.dim,
        heads: c.count("num_attention_heads")?,
        q_lora_rank: if c.has("q_lora_rank") { c.opt_count("q_lora_rank")? } else { ranks.q },
        kv_lora_rank: c.count_or("kv_lora_rank", ranks.kv)?,
        nope_dim,
        rope_dim,
        v_head_dim: c.count_or("v_head_dim", ranks.v)?,
        scale: scale as f32,
        // Of the class, not of the configuration.
        norm: NormKind::Rms { eps: 1e-6 },
        bias: bias(c, "attention_bias")?,
        rope: Some(Arc::new(RotaryEmbedding::new(rope))),
    };
    for branch in spec.branches().filter(|b| matches!(b.mixer, MixerSpec::Attention(_))) {
        branch.mixer = MixerSpec::Mla(mla.clone());
    }
    Ok(())
}

/// What stretched contexts add to the factor on scores: `(0.1 m ln(factor) + 1)²` with `mscale_all_dim`.
fn mscale(c: &Config<'_>, scaling: &RopeScaling) -> Result<f64> {
    let p = c.rope_object()?;
    let all = p.map_or(Ok(0.0), |p| p.number_or("mscale_all_dim", 0.0))?;
    let factor = match scaling {
        RopeScaling::None => return Ok(1.0),
        _ => p.map_or(Ok(1.0), |p| p.positive_or("factor", 1.0))?,
    };
    let m = if all == 0.0 || factor <= 1.0 { 1.0 } else { 0.1 * all * factor.ln() + 1.0 };
    Ok(m * m)
}
