//! gpt-oss: attention with sinks and a window in every other layer, experts with biases and cut-off gates.

use rillm_nn::{Bias, MoeSpec, RopeScaling, WeightSource};
use rillm_tensor_core::{Activation, Score};

use super::common::{DEFAULTS, Defaults, bias_or, default_scaling, follow};
use super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, Fused, PLAIN};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["gpt_oss"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults {
        eps: 1e-5,
        theta: 150_000.0,
        context: 131_072,
        head_dim: Some(64),
        kv_heads: Some(8),
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    let scaling = RopeScaling::Yarn {
        factor: 32.0,
        original: 4096.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
        attention_factor: 0.1 * 32f64.ln() + 1.0,
    };
    default_scaling(c, &mut spec, c.positive_or("rope_theta", 150_000.0)?, scaling)?;
    let bias = bias_or(c, "attention_bias", true)?;
    let window = c.count_or("sliding_window", 128)?;
    let sliding = c.sliding_layers(spec.layers.len(), |i| i % 2 == 0)?;
    for (attn, sliding) in spec.attentions().zip(sliding) {
        (attn.qkv_bias, attn.o_bias, attn.sinks) = (bias, bias, Bias::Added);
        attn.params.window = sliding.then_some(window);
    }
    let counts = [experts_of(c, "num_local_experts", 128)?, c.count_or("num_experts_per_tok", 4)?];
    check_choice(c, counts)?;
    let (alpha, limit) = (c.positive_or("swiglu_alpha", 1.702)?, c.positive_or("swiglu_limit", 7.0)?);
    let act = Activation::ClippedSwish { alpha: alpha as f32, limit: limit as f32 };
    spec.mix(|_, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, mlp.hidden], act, counts);
        moe.routing.score = Score::Chosen;
        (moe.router_bias, moe.expert_bias) = (Bias::Added, Bias::Added);
        Some(moe)
    });
    Ok(spec)
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let names = ExpertNames { inside: &[("gate", "router")], fused: Fused::TransposedTurns, ..PLAIN };
    experts::layout(spec, source, names)
}
