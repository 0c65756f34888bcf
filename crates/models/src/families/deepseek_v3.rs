//! DeepSeek V3, R1 and Kimi K2: multi-head latent attention, experts chosen from the best groups.

use rillm_nn::{Bias, MoeSpec, SharedGate, SharedSpec};
use rillm_tensor_core::{Activation, GroupScore, Groups, Score};

use super::common::{DEFAULTS, Defaults, follow};
use super::deepseek_v2::{Ranks, latent, rotated};
use super::mixtral::{check_choice, experts_of};
use super::qwen3_moe::plain_layout;
use crate::names;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ignored, ..DecoderFamily::new(&["deepseek_v3", "kimi_k2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let ranks = Ranks { q: Some(1536), kv: 512, nope: 128, rope: 64, v: 128 };
    let mut spec = follow(c, &Defaults { context: 4096, head_dim: rotated(c, 64)?, ..DEFAULTS })?;
    latent(c, &mut spec, &ranks)?;
    let dense = number_or(c, "first_k_dense_replace", 3)?;
    let moe =
        Mixture { hidden: 2048, experts: 256, top_k: 8, shared: 1, groups: [8, 4], scale: 2.5, norm: true };
    mix(c, &mut spec, &moe, |i| i >= dense)?;
    Ok(spec)
}

/// A count that may be 0.
pub(super) fn number_or(c: &Config<'_>, key: &str, default: usize) -> Result<usize> {
    match c.get(key) {
        Some(v) if v.as_u64() == Some(0) => Ok(0),
        _ => c.count_or(key, default),
    }
}

/// Mixtures where no key says.
pub(super) struct Mixture {
    pub hidden: usize,
    pub experts: usize,
    pub top_k: usize,
    pub shared: usize,
    pub groups: [usize; 2],
    pub scale: f64,
    pub norm: bool,
}

/// Makes mixtures by sigmoid of the feed-forward layers for which `sparse` says so.
pub(super) fn mix(
    c: &Config<'_>,
    spec: &mut DecoderSpec,
    default: &Mixture,
    sparse: impl Fn(usize) -> bool,
) -> Result<()> {
    let moe = mixture(c, spec.dim, Activation::Silu, default)?;
    let shared = number_or(c, "n_shared_experts", default.shared)?;
    spec.mix(|i, mlp| {
        let shared = all_use(shared * moe.hidden, mlp.bias);
        sparse(i).then_some(MoeSpec { dim: mlp.dim, act: mlp.act, shared, ..moe })
    });
    Ok(())
}

/// A mixture by sigmoid with corrections, without what all rows use.
pub(super) fn mixture(c: &Config<'_>, dim: usize, act: Activation, default: &Mixture) -> Result<MoeSpec> {
    // The files of dots1 call the score by the method's name.
    for (key, known) in [("scoring_func", &["sigmoid", "noaux_tc"][..]), ("topk_method", &["noaux_tc"])] {
        if c.get(key).is_some_and(|v| v.as_str().is_none_or(|v| !known.contains(&v))) {
            return Err(c.unsupported(key, known[0]));
        }
    }
    let hidden = c.count_or("moe_intermediate_size", default.hidden)?;
    let counts = [
        experts_of(c, "n_routed_experts", default.experts)?,
        c.count_or("num_experts_per_tok", default.top_k)?,
    ];
    check_choice(c, counts)?;
    let mut moe = MoeSpec::new([dim, hidden], act, counts);
    moe.routing.score = Score::Sigmoid;
    moe.routing.groups = groups(c, "n_group", counts, default.groups, GroupScore::TwoGreatest)?;
    moe.routing.normalize = c.flag("norm_topk_prob", default.norm)?.then_some(1e-20);
    moe.routing.scale = c.number_or("routed_scaling_factor", default.scale)? as f32;
    moe.correction = Bias::Added;
    Ok(moe)
}

/// An expert of width `hidden` that all rows use, if there is one.
pub(super) fn all_use(hidden: usize, bias: Bias) -> Option<SharedSpec> {
    (hidden > 0).then_some(SharedSpec { hidden, bias, gate: SharedGate::Open })
}

/// The count `key` of groups and `topk_group` of them; `None` if all are.
pub(super) fn groups(
    c: &Config<'_>,
    key: &str,
    [experts, top_k]: [usize; 2],
    default: [usize; 2],
    by: GroupScore,
) -> Result<Option<Groups>> {
    let count = c.count_or(key, default[0])?;
    let chosen = c.count_or("topk_group", default[1])?;
    let size = experts / count;
    if experts % count != 0 || (by == GroupScore::TwoGreatest && size < 2) {
        return Err(c.unsupported(key, &format!("groups of {experts} experts, of two at least")));
    }
    if chosen > count || chosen * size < top_k {
        return Err(c.unsupported("topk_group", &format!("groups of {size} that hold {top_k} experts")));
    }
    Ok((chosen < count).then_some(Groups { count, chosen, by }))
}

/// Layers past the last predict several tokens ahead.
pub(super) fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    names::layer_of(name).is_some_and(|(i, _)| i >= spec.layers.len()) || names::ignored(spec, name)
}
