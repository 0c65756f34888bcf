//! LFM2 MoE: LFM2 with experts in all but the first layers.

use rillm_nn::{Bias, MlpSpec, MoeSpec, WeightSource};
use rillm_tensor_core::{Activation, Score};

use super::deepseek_v3::number_or;
use super::lfm2::{self, decoder};
use super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::names::layer_of;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["lfm2_moe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let (dim, act) = (c.count_or("hidden_size", 2048)?, Activation::Silu);
    let mlp = MlpSpec::new([dim, c.count_or("intermediate_size", 7168)?], act);
    let counts = [experts_of(c, "num_experts", 32)?, c.count_or("num_experts_per_tok", 4)?];
    check_choice(c, counts)?;
    let mut moe = MoeSpec::new([dim, c.count_or("moe_intermediate_size", 1792)?], act, counts);
    moe.routing.score = Score::Sigmoid;
    moe.routing.normalize = c.flag("norm_topk_prob", true)?.then_some(1e-6);
    moe.routing.scale = c.number_or("routed_scaling_factor", 1.0)? as f32;
    moe.correction = if c.flag("use_expert_bias", true)? { Bias::Added } else { Bias::None };
    let dense = number_or(c, "num_dense_layers", 2)?;
    decoder(c, dim, |i| if i < dense { MixerSpec::Mlp(mlp) } else { MixerSpec::Moe(moe) })
}

/// Dense layers are named as in LFM2, or by mlx-lm as everywhere.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let inside = &[("gate.e_score_correction_bias", "expert_bias")];
    let experts = experts::layout(spec, source, ExpertNames { module: "feed_forward", inside, ..PLAIN });
    let plain = lfm2::layout(spec, source);
    let of_mlx = source.names().iter().any(|name| name.ends_with(".feed_forward.gate_proj.weight"));
    let mixtures: Vec<bool> = spec.layers.iter().map(|l| l.moe().is_some()).collect();
    Box::new(move |name| match layer_of(name) {
        Some((i, rest)) if rest.starts_with("mlp.") && (of_mlx || mixtures.get(i) == Some(&true)) => {
            experts(name)
        }
        _ => plain(name),
    })
}
