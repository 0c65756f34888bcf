//! Granite 3 MoE: Granite with experts for feed-forward layers.

use rillm_nn::{Bias, MoeSpec, WeightSource};
use rillm_tensor_core::Score;

use super::common::{DEFAULTS, bias, biases, follow};
use super::granite::multipliers;
use super::mixtral::{NAMES, check_choice, experts_of};
use crate::experts::{self, ExpertNames};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["granitemoe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &DEFAULTS)?;
    biases(&mut spec, bias(c, "attention_bias")?, Bias::None);
    multipliers(c, &mut spec)?;
    let counts = [experts_of(c, "num_local_experts", 8)?, c.count_or("num_experts_per_tok", 2)?];
    check_choice(c, counts)?;
    spec.mix(|_, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, mlp.hidden], mlp.act, counts);
        moe.routing.score = Score::Chosen;
        Some(moe)
    });
    Ok(spec)
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    experts::layout(spec, source, ExpertNames { inside: &[("gate", "router.layer")], ..NAMES })
}
