//! Phi-3.5 MoE: LayerNorm with biases, two experts chosen one after the other (SparseMixer), longrope.

use rillm_nn::{Bias, MoeSpec, NormKind, RopeScaling, RotaryEmbedding, WeightSource};
use rillm_tensor_core::Score;

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use super::mixtral::{NAMES, check_choice, experts_of};
use crate::experts;
use crate::names;
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["phimoe"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults { eps: 1e-5, theta: 1e6, context: 131_072, kv_heads: Some(8), ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    spec.map_norms(|norm| NormKind::Layer { eps: norm.eps() });
    biases(&mut spec, bias(c, "attention_bias")?, Bias::None);
    spec.head.bias = bias(c, "lm_head_bias")?;
    // A tied head with a bias reads the table for itself.
    spec.head.tied &= spec.head.bias == Bias::None;
    let window = c.opt_count("sliding_window")?;
    let mscale = mscale(c)?;
    for attn in spec.attentions() {
        attn.params.window = window;
    }
    if let Some(mscale) = mscale {
        let rope = c.rope(
            spec.layers.first().and_then(|l| l.attention()).map_or(0, |a| a.params.head_dim),
            1e6,
            None,
        )?;
        let rope = match rope.scaling {
            // transformers computes all lengths with the short factors.
            RopeScaling::LongRope { short, original, .. } => rillm_nn::RopeSpec {
                scaling: RopeScaling::LongRope {
                    long: short.clone(),
                    short,
                    original,
                    attention_factor: mscale,
                },
                ..rope
            },
            _ => return Err(c.unsupported("rope_scaling", "longrope, or none")),
        };
        let rope = std::sync::Arc::new(RotaryEmbedding::new(rope));
        spec.attentions().for_each(|attn| attn.rope = Some(rope.clone()));
    }
    let counts = [experts_of(c, "num_local_experts", 16)?, c.count_or("num_experts_per_tok", 2)?];
    check_choice(c, counts)?;
    if counts[1] != 2 {
        return Err(c.unsupported("num_experts_per_tok", "2"));
    }
    let jitter = c.number_or("router_jitter_noise", 0.01)? as f32;
    spec.mix(|_, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, mlp.hidden], mlp.act, counts);
        moe.routing.score = Score::SparseMixer { jitter };
        Some(moe)
    });
    Ok(spec)
}

/// The factor on rotated values, which must be the same for short sequences and long ones.
fn mscale(c: &Config<'_>) -> Result<Option<f64>> {
    let Some(p) = c.rope_object()?.filter(|p| p.get("short_mscale").is_some()) else { return Ok(None) };
    let (short, long) = (p.positive_or("short_mscale", 1.0)?, p.positive_or("long_mscale", 1.0)?);
    if short == long { Ok(Some(short)) } else { Err(p.unsupported("long_mscale", "that of short_mscale")) }
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    names::with_head(source, experts::layout(spec, source, NAMES))
}
