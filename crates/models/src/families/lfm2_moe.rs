//! LFM2 MoE: LFM2 with experts from some layer on.

use rillm_nn::{Bias, MlpKind, MlpSpec, MoeSpec, Origin, WeightSource};
use rillm_tensor_core::{Activation, Score};

use super::deepseek_v3::number_or;
use super::mixtral::{check_choice, experts_of};
use super::{lfm2, llama};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["lfm2_moe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", 2048)?;
    let dense = MlpSpec {
        kind: MlpKind::Gated,
        dim,
        hidden: c.count_or("intermediate_size", 7168)?,
        act: Activation::Silu,
        bias: Bias::None,
        gate_factor: None,
    };
    let counts = [experts_of(c, "num_experts", 32)?, c.count_or("num_experts_per_tok", 4)?];
    check_choice(c, counts)?;
    let hidden = c.count_or("moe_intermediate_size", 1792)?;
    let mut moe = MoeSpec::new([dim, hidden], dense.act, counts);
    moe.routing.score = Score::Sigmoid;
    moe.routing.normalize = c.flag("norm_topk_prob", true)?.then_some(1e-6);
    moe.routing.scale = c.number_or("routed_scaling_factor", 1.0)? as f32;
    moe.correction = llama::bias_or(c, "use_expert_bias", true)?;
    let first = number_or(c, "num_dense_layers", 2)?;
    lfm2::decoder(c, dim, |i| Ok(if i < first { MixerSpec::Mlp(dense) } else { MixerSpec::Moe(moe) }))
}

/// Dense layers are named as in LFM2, or as mlx-lm names them.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let inside = &[("gate.e_score_correction_bias", "expert_bias")];
    let names = ExpertNames { module: "feed_forward", inside, ..PLAIN };
    let (experts, plain) = (experts::layout(spec, source, names), lfm2::layout(spec, source));
    let of_mlx = source.names().iter().any(|name| name.ends_with(".feed_forward.gate_proj.weight"));
    Box::new(move |name| match name.split_once(".feed_forward.") {
        Some((layer, rest)) if rest.starts_with("experts.") || rest.starts_with("gate.") => {
            experts(&format!("{layer}.mlp.{rest}"))
        }
        Some(_) if of_mlx => Origin::Tensor(name.to_owned()),
        _ => plain(name),
    })
}
