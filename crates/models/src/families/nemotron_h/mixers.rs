//! Nemotron-H's experts and state spaces.

use rillm_nn::{GateOrder, GatedNorm, LatentSpec, Mamba2Spec, MlpSpec, MoeSpec, SharedGate, SharedSpec};

use super::super::common::{bias, bias_or};
use super::super::deepseek_v3::{Mixture, mixture};
use super::super::mamba2::divides;
use crate::{Config, Result};

/// Experts of the kind of `mlp`, and one that all rows use, which mlx-lm leaves out if their number is null.
pub(super) fn moe(c: &Config<'_>, mlp: &MlpSpec) -> Result<MoeSpec> {
    let default =
        Mixture { hidden: 7688, experts: 8, top_k: 2, shared: 1, groups: [1, 1], scale: 1.0, norm: true };
    let (bias, latent) = (mlp.bias, c.opt_count("moe_latent_size")?);
    let hidden = c.count_or("moe_shared_expert_intermediate_size", 7688)?;
    let none = c.has("n_shared_experts") && c.get("n_shared_experts").is_none();
    Ok(MoeSpec {
        kind: mlp.kind,
        latent: latent.map(|dim| LatentSpec { dim, bias }),
        shared: (!none).then_some(SharedSpec { hidden, bias, gate: SharedGate::Open }),
        ..mixture(c, mlp.dim, mlp.act, &default)?
    })
}

pub(super) fn mamba(c: &Config<'_>, dim: usize, eps: f32) -> Result<Mamba2Spec> {
    c.only("mamba_hidden_act", "silu")?;
    let heads = c.count_or("mamba_num_heads", 128)?;
    let groups = c.count_or("mamba_n_groups", c.count_or("n_groups", 8)?)?;
    divides(c, "n_groups", groups, heads)?;
    let proj_bias = bias(c, "use_bias")?;
    let least = c.positive_or("mamba_dt_min", c.positive_or("time_step_min", 0.001)?)?;
    Ok(Mamba2Spec {
        dim,
        heads,
        head_dim: c.count_or("mamba_head_dim", 64)?,
        state: c.count_or("ssm_state_size", 128)?,
        groups,
        taps: c.count_or("mamba_d_conv", c.count_or("conv_kernel", 4)?)?,
        in_bias: proj_bias,
        out_bias: proj_bias,
        conv_bias: bias_or(c, "mamba_conv_bias", c.flag("use_conv_bias", true)?)?,
        // transformers takes this for the least step, not `time_step_limit`.
        dt_limits: [least as f32, f32::INFINITY],
        norm: Some(GatedNorm { eps, groups, order: GateOrder::GateFirst }),
        factors: None,
    })
}
