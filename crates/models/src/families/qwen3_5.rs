//! Qwen3.5 (text): Qwen3-Next with a dense feed-forward layer, or with experts in every layer.

use rillm_nn::{GatedDeltaSpec, Origin, WeightSource};

use super::qwen2_moe::NAMES;
use super::qwen3_next::{Sizes, hybrid, mix};
use crate::experts;
use crate::names::{self, layer_of};
use crate::{Config, DecoderFamily, DecoderSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["qwen3_5_text", "qwen3_5_moe_text"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    if c.model_type()? == "qwen3_5_text" {
        return hybrid(c, &Sizes { dim: 4096, hidden: 12_288, kv_heads: 4, layers: 32, vocab: 248_320 });
    }
    let mut spec = hybrid(c, &Sizes { dim: 2048, hidden: 1, kv_heads: 2, layers: 40, vocab: 248_320 })?;
    mix(c, &mut spec, [256, 8], |_| true)?;
    Ok(spec)
}

/// Projections are fused: queries with their gates head by head; in Qwen3-Next also all that belongs to a key head, in
/// Qwen3.5 queries, keys and values. mlx-lm adds the 1 to the norms' factors.
pub(super) fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let mut mixers = spec.layers.iter().flat_map(LayerSpec::branches).map(|b| &b.mixer);
    let delta = mixers.find_map(|m| if let MixerSpec::GatedDelta(d) = m { Some(*d) } else { None });
    let attn = spec.layers.iter().find_map(LayerSpec::attention).map(|a| a.params);
    let conv = |d: &GatedDeltaSpec| {
        let first = spec.layers.iter().position(|l| l.branches().any(|b| b.name == "linear_attn"));
        let shape = [2 * d.key_heads * d.key_dim + d.heads * d.value_dim, d.taps, 1];
        let name = format!("model.layers.{}.linear_attn.conv1d.weight", first.unwrap_or(0));
        matches!(source.get(&name), Ok(Some(raw)) if raw.shape == shape && d.taps > 1)
    };
    let mlx = delta.as_ref().is_some_and(conv);
    let by_head = source.names().iter().any(|n| n.ends_with("linear_attn.in_proj_qkvz.weight"));
    let experts = experts::layout(spec, source, NAMES);
    Box::new(move |name| {
        let plain = || experts(name);
        if mlx && is_shifted(name) {
            return Origin::Shifted { name: name.to_owned(), by: -1.0 };
        }
        let Some((i, rest)) = layer_of(name) else { return plain() };
        let Some((module, kind)) = rest.rsplit_once('.') else { return plain() };
        let strided = |stored: &str, start, run, stride, heads| Origin::Strided {
            name: format!("model.layers.{i}.{stored}.{kind}"),
            start,
            run,
            stride,
            of: stride * heads,
        };
        match (module, &attn, &delta) {
            ("self_attn.q_proj", Some(p), _) => {
                strided("self_attn.q_proj", 0, p.head_dim, 2 * p.head_dim, p.heads)
            }
            ("self_attn.g_proj", Some(p), _) => {
                strided("self_attn.q_proj", p.head_dim, p.head_dim, 2 * p.head_dim, p.heads)
            }
            (_, _, Some(d)) if by_head => {
                let (k, v, each) = (d.key_dim, d.heads / d.key_heads * d.value_dim, d.heads / d.key_heads);
                let qkvz =
                    |start, run| strided("linear_attn.in_proj_qkvz", start, run, 2 * (k + v), d.key_heads);
                let ba = |start| strided("linear_attn.in_proj_ba", start, each, 2 * each, d.key_heads);
                match module {
                    "linear_attn.in_proj_q" => qkvz(0, k),
                    "linear_attn.in_proj_k" => qkvz(k, k),
                    "linear_attn.in_proj_v" => qkvz(2 * k, v),
                    "linear_attn.in_proj_z" => qkvz(2 * k + v, v),
                    "linear_attn.in_proj_b" => ba(0),
                    "linear_attn.in_proj_a" => ba(each),
                    _ => plain(),
                }
            }
            (_, _, Some(d)) => {
                let (keys, values) = (d.key_heads * d.key_dim, d.heads * d.value_dim);
                let rows = match module {
                    "linear_attn.in_proj_q" => 0..keys,
                    "linear_attn.in_proj_k" => keys..2 * keys,
                    "linear_attn.in_proj_v" => 2 * keys..2 * keys + values,
                    _ => return plain(),
                };
                let name = format!("model.layers.{i}.linear_attn.in_proj_qkv.{kind}");
                Origin::Rows { name, rows, of: 2 * keys + values }
            }
            _ => plain(),
        }
    })
}

fn is_shifted(name: &str) -> bool {
    let norms = ["input_layernorm", "post_attention_layernorm", "model.norm", "q_norm", "k_norm"];
    name.strip_suffix(".weight").is_some_and(|module| norms.iter().any(|norm| module.ends_with(norm)))
}

/// Layers that predict further tokens are left out.
pub(super) fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.starts_with("mtp.") || name.starts_with("model.mtp.") || names::ignored(spec, name)
}
