//! GPT-NeoX and Pythia: attention and feed-forward layer side by side, each with its norm; queries, keys and values fused
//! head by head.

use rillm_nn::{MlpKind, NormKind, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, bias_or, biases, follow};
use crate::names::{self, renamed};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Norms, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["gpt_neox"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let theta = c.positive_or("rotary_emb_base", 10_000.0)?;
    let part = c.positive_or("rotary_pct", 0.25)?;
    let mut spec = follow(c, &Defaults { theta, part, ..DEFAULTS })?;
    let norm = c.layer_norm("layer_norm_eps", |eps| NormKind::Layer { eps })?;
    spec.map_norms(|_| norm);
    let act = c.activation("hidden_act", Activation::Gelu)?;
    spec.mlps().for_each(|mlp| (mlp.kind, mlp.act) = (MlpKind::Plain, act));
    biases(&mut spec, bias_or(c, "attention_bias", true)?, rillm_nn::Bias::Added);
    if c.flag("use_parallel_residual", true)? {
        spec.arrange(Norms::ParallelTwo);
    }
    Ok(spec)
}

/// transformers writes `gpt_neox.`; mlx-lm `model.` before everything, and `h` for layers.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let mlx = matches!(source.get("model.embed_in.weight"), Ok(Some(_)));
    let (prefix, top) = if mlx { ("model.h.", &MLX) } else { ("gpt_neox.layers.", &TRANSFORMERS) };
    let (d, heads) = spec
        .layers
        .first()
        .and_then(|l| l.attention())
        .map_or((0, 0), |a| (a.params.head_dim, a.params.heads));
    Box::new(move |name| {
        let stored = renamed(name, prefix, top, &LAYER);
        let part =
            ["q_proj", "k_proj", "v_proj"].iter().position(|p| name.contains(&format!(".self_attn.{p}.")));
        match part {
            Some(i) => {
                let (start, run, stride, of) = (i * d, d, 3 * d, 3 * d * heads);
                Origin::Strided { name: stored, start, run, stride, of }
            }
            None => Origin::Tensor(stored),
        }
    })
}

const TRANSFORMERS: [(&str, &str); 3] = [
    ("model.embed_tokens", "gpt_neox.embed_in"),
    ("model.norm", "gpt_neox.final_layer_norm"),
    ("lm_head", "embed_out"),
];
const MLX: [(&str, &str); 3] = [
    ("model.embed_tokens", "model.embed_in"),
    ("model.norm", "model.final_layer_norm"),
    ("lm_head", "model.embed_out"),
];
const LAYER: [(&str, &str); 6] = [
    ("self_attn.q_proj", "attention.query_key_value"),
    ("self_attn.k_proj", "attention.query_key_value"),
    ("self_attn.v_proj", "attention.query_key_value"),
    ("self_attn.o_proj", "attention.dense"),
    ("mlp.up_proj", "mlp.dense_h_to_4h"),
    ("mlp.down_proj", "mlp.dense_4h_to_h"),
];

/// Old files keep the causal mask.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.ends_with(".attention.bias")
        || name.ends_with(".attention.masked_bias")
        || (spec.head.tied && name.ends_with("embed_out.weight"))
        || names::ignored(spec, name)
}
