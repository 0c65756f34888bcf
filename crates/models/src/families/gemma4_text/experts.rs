//! Gemma 4's experts: beside the feed-forward layer of every layer, of the same rows.

use rillm_nn::{ExpertFactors, MoeSpec, Origin, RouterInput, WeightSource};
use rillm_tensor_core::Activation;

use super::super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::names::layer_of;
use crate::{BranchSpec, Config, DecoderSpec, Layout, MixerSpec, NormSpec, Result};

/// Adds mixtures to the feed-forward layers, if there are any: each with norms of its own, their sum normed again.
pub(super) fn add(c: &Config<'_>, spec: &mut DecoderSpec, act: Activation) -> Result<()> {
    if !c.flag("enable_moe_block", false)? {
        return Ok(());
    }
    let counts = [experts_of(c, "num_experts", c.count("num_experts")?)?, c.count("top_k_experts")?];
    check_choice(c, counts)?;
    let mut moe = MoeSpec::new([spec.dim, c.count("moe_intermediate_size")?], act, counts);
    moe.routing.normalize = Some(0.0);
    moe.router_input = RouterInput::Normed { eps: spec.norm.eps() };
    moe.factors = ExpertFactors::Each;
    let kind = spec.norm;
    let norm = |name| Some(NormSpec { name, kind });
    for group in spec.layers.iter_mut().flat_map(|layer| &mut layer.0) {
        let Some(mlp) = group.branches.iter_mut().find(|b| b.name == "mlp") else { continue };
        mlp.post_norm = norm("post_feedforward_layernorm_1");
        let branch = BranchSpec::new("moe", MixerSpec::Moe(moe), norm("pre_feedforward_layernorm_2"));
        group.branches.push(BranchSpec { post_norm: norm("post_feedforward_layernorm_2"), ..branch });
        group.post_norm = norm("post_feedforward_layernorm");
    }
    Ok(())
}

/// Router and experts are modules of the layer.
pub(super) fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let inside = &[
        ("gate", "router.proj"),
        ("gate.scale", "router.scale"),
        ("gate.per_expert_scale", "router.per_expert_scale"),
    ];
    let experts = experts::layout(spec, source, ExpertNames { module: "", inside, ..PLAIN });
    Box::new(move |name| match layer_of(name).and_then(|(i, rest)| Some((i, rest.strip_prefix("moe.")?))) {
        Some((i, rest)) => experts(&format!("model.layers.{i}.mlp.{rest}")),
        None => Origin::Tensor(name.to_owned()),
    })
}
