//! MiniMax M2: partial rope, a norm on whole queries and keys, experts chosen by sigmoid and a correction.

use rillm_nn::{Bias, MoeSpec, NormOrder, NormOver, QkNorm, WeightSource};
use rillm_tensor_core::Score;

use super::common::{DEFAULTS, Defaults, follow};
use super::deepseek_v3::ignored;
use super::mixtral::{NAMES, check_choice, experts_of};
use crate::config::rotated_part;
use crate::experts::{self, ExpertNames};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["minimax_m2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let head_dim = c.count_or("head_dim", 128)?;
    let part = c.opt_count("rotary_dim")?.map_or(1.0, |dims| rotated_part(dims, head_dim));
    let defaults =
        Defaults { theta: 5e6, context: 196_608, head_dim: Some(128), kv_heads: Some(8), part, ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    if !c.flag("use_qk_norm", true)? {
        return Err(c.unsupported("use_qk_norm", "true"));
    }
    let norm = QkNorm { kind: spec.norm, over: NormOver::Row, order: NormOrder::BeforeRope };
    spec.attentions().for_each(|attn| attn.qk_norm = Some(norm));
    let counts = [experts_of(c, "num_local_experts", 256)?, c.count_or("num_experts_per_tok", 8)?];
    check_choice(c, counts)?;
    spec.mix(|_, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, mlp.hidden], mlp.act, counts);
        (moe.routing.score, moe.routing.normalize) = (Score::Sigmoid, Some(0.0));
        moe.correction = Bias::Added;
        Some(moe)
    });
    Ok(spec)
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let inside = &[("gate.e_score_correction_bias", "e_score_correction_bias")];
    experts::layout(spec, source, ExpertNames { inside, ..NAMES })
}
