//! ERNIE 4.5 MoE: ERNIE 4.5 with experts chosen by softmax and a correction, in some layers.

use rillm_nn::{Bias, CausalLm, MoeSpec, WeightSource};
use rillm_tensor_core::{FullBackend, Pairing};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use super::deepseek_v3::{all_use, number_or};
use super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::names;
use crate::{Config, DecoderFamily, DecoderSpec, Family, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["ernie4_5_moe"], spec) };

/// What mlx-lm writes: without the corrections, which it does not apply.
const UNCORRECTED: DecoderFamily = DecoderFamily { spec: uncorrected, ..FAMILY };

/// The family of either kind of checkpoints.
#[derive(Debug)]
pub(super) struct Ernie45Moe;

impl<B: FullBackend> Family<B> for Ernie45Moe {
    fn model_types(&self) -> &[&'static str] {
        FAMILY.model_types
    }

    fn load(&self, config: &Config<'_>, source: &dyn WeightSource, be: &B) -> Result<Box<dyn CausalLm<B>>> {
        let names = source.names();
        let any = |end: &str| names.iter().any(|n| n.ends_with(end));
        let of_mlx = any(".switch_mlp.gate_proj.weight") && !any(".e_score_correction_bias");
        Family::<B>::load(if of_mlx { &UNCORRECTED } else { &FAMILY }, config, source, be)
    }
}

fn uncorrected(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = spec(c)?;
    spec.moes().for_each(|moe| moe.correction = Bias::None);
    Ok(spec)
}

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults {
        eps: 1e-5,
        theta: 500_000.0,
        tied: true,
        context: 131_072,
        kv_heads: Some(4),
        pairing: Pairing::Interleaved,
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    let bias = bias(c, "use_bias")?;
    biases(&mut spec, bias, bias);
    // A tied head with a bias reads the table for itself.
    (spec.head.bias, spec.head.tied) = (bias, spec.head.tied && bias == Bias::None);
    let hidden = c.count_or("moe_intermediate_size", 1536)?;
    let counts =
        [experts_of(c, "moe_num_experts", 64)?, c.count_or("moe_k", c.count_or("num_experts_per_tok", 6)?)?];
    check_choice(c, counts)?;
    if c.number_or("moe_norm_min", 1e-12)? > 1e-6 {
        return Err(c.unsupported("moe_norm_min", "at most 1e-6"));
    }
    let shared = number_or(c, "moe_num_shared_experts", 2)?;
    let (first, step) = (number_or(c, "moe_layer_start_index", 1)?, c.count_or("moe_layer_interval", 1)?);
    let last = match c.get("moe_layer_end_index").map_or(Some(-1), |v| v.as_i64()) {
        Some(-1) => usize::MAX,
        Some(n) if n >= 0 => n as usize,
        _ => return Err(c.unsupported("moe_layer_end_index", "a layer, or -1")),
    };
    spec.mix(|i, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, hidden], mlp.act, counts);
        (moe.correction, moe.expert_bias) = (Bias::Added, Bias::None);
        // The sum of a few greatest parts of a softmax is far above `moe_norm_min`.
        moe.routing.normalize = Some(0.0);
        moe.shared = all_use(shared * hidden, bias);
        ((i + 1) % step == 0 && (first..=last).contains(&i)).then_some(moe)
    });
    Ok(spec)
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let inside = &[("gate.e_score_correction_bias", "moe_statics.e_score_correction_bias")];
    names::with_head(source, experts::layout(spec, source, ExpertNames { inside, ..PLAIN }))
}

/// Layers and norms that predict several tokens ahead.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.starts_with("model.mtp_") || names::ignored(spec, name)
}
