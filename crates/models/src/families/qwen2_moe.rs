//! Qwen2 MoE: Qwen2 with experts in most layers, and one that all rows use, weighed by a gate of its own.

use rillm_nn::{Bias, MoeSpec, SharedGate, SharedSpec, WeightSource};

use super::common::{DEFAULTS, Defaults, bias_or, follow};
use super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["qwen2_moe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { context: 32_768, kv_heads: Some(16), ..DEFAULTS })?;
    let qkv_bias = bias_or(c, "qkv_bias", true)?;
    let window = match c.flag("use_sliding_window", false)? {
        true => Some(c.count_or("sliding_window", 4096)?),
        false => None,
    };
    let until = c.get("max_window_layers").and_then(|v| v.as_u64()).unwrap_or(28) as usize;
    let sliding = c.sliding_layers(spec.layers.len(), |i| window.is_some() && i % 2 == 0 && i < until)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(c.unsupported("use_sliding_window", "true where layers have windows"));
    }
    for (attn, sliding) in spec.attentions().zip(sliding) {
        (attn.qkv_bias, attn.params.window) = (qkv_bias, window.filter(|_| sliding));
    }
    let shared = SharedSpec {
        hidden: c.count_or("shared_expert_intermediate_size", 5632)?,
        bias: Bias::None,
        gate: SharedGate::Sigmoid,
    };
    mix(c, &mut spec, [1408, 60, 4], Some(shared))?;
    Ok(spec)
}

/// Makes mixtures of every `decoder_sparse_step`-th feed-forward layer but `mlp_only_layers`. `width`, `experts` and
/// `top_k` where no key says.
pub(super) fn mix(
    c: &Config<'_>,
    spec: &mut DecoderSpec,
    [width, experts, top_k]: [usize; 3],
    shared: Option<SharedSpec>,
) -> Result<()> {
    let hidden = c.count_or("moe_intermediate_size", width)?;
    let counts = [experts_of(c, "num_experts", experts)?, c.count_or("num_experts_per_tok", top_k)?];
    check_choice(c, counts)?;
    let step = c.count_or("decoder_sparse_step", 1)?;
    let dense = c.opt_numbers("mlp_only_layers")?.unwrap_or_default();
    let normalize = c.flag("norm_topk_prob", false)?.then_some(0.0);
    spec.mix(|i, mlp| {
        let sparse = (i + 1) % step == 0 && !dense.contains(&(i as f64));
        let mut moe = MoeSpec::new([mlp.dim, hidden], mlp.act, counts);
        moe.routing.normalize = normalize;
        moe.shared = shared;
        sparse.then_some(moe)
    });
    Ok(())
}

pub(super) const NAMES: ExpertNames = ExpertNames { inside: &[("shared_experts", "shared_expert")], ..PLAIN };

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    experts::layout(spec, source, NAMES)
}
