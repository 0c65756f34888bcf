//! Qwen3-Next and Qwen3.5 (text): the gated delta rule in three layers of four, gated attention with a little rope in the
//! others, norms of `1 + w`.

use rillm_nn::{Bias, GatedDeltaSpec, MlpKind, MlpSpec, NormKind, Origin, QkNorm, WeightSource};
use rillm_tensor_core::Activation;

use super::llama::{DEFAULTS, Defaults, attention, bias, layer_count_or};
use super::mamba2::divides;
use crate::names::{self, layer_of};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["qwen3_next"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let dense = c.opt_numbers("mlp_only_layers")?.unwrap_or_default();
    let (step, experts) = (c.count_or("decoder_sparse_step", 1)?, c.get("num_experts"));
    let experts = experts.is_none_or(|n| n.as_u64() != Some(0));
    hybrid(c, |i, mlp| {
        if experts && !dense.contains(&(i as f64)) && (i + 1).is_multiple_of(step) {
            return Err(c.unsupported("num_experts", "0"));
        }
        Ok(mlp)
    })
}

/// The decoder whose layer `i` has what `mlp` makes of the dense feed-forward layer.
pub(super) fn hybrid(
    c: &Config<'_>,
    mlp: impl Fn(usize, MixerSpec) -> Result<MixerSpec>,
) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", 2048)?;
    let eps = c.positive_or("rms_norm_eps", 1e-6)? as f32;
    let (norm, act) = (NormKind::RmsPlusOne { eps }, c.activation("hidden_act", Activation::Silu)?);
    let defaults = Defaults { head_dim: Some(256), part: 0.25, context: 32_768, ..DEFAULTS };
    let (mut attn, context) = attention(c, dim, &defaults)?;
    let attn_bias = bias(c, "attention_bias")?;
    (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
    (attn.qk_norm, attn.gate) = (Some(QkNorm::heads(norm)), Some(Activation::Sigmoid));
    let delta = delta(c, dim, eps)?;
    let dense = MlpSpec {
        kind: MlpKind::Gated,
        dim,
        hidden: c.count_or("intermediate_size", 5632)?,
        act,
        bias: Bias::None,
        gate_factor: None,
    };
    let n = layer_count_or(c, "num_hidden_layers", 48)?;
    let every = c.count_or("full_attention_interval", 4)?;
    let by_index =
        |i: usize| if (i + 1).is_multiple_of(every) { "full_attention" } else { "linear_attention" };
    let kinds = c.layer_names("layer_types", n, &["linear_attention", "full_attention"], by_index)?;
    let layer = |(i, kind): (usize, &str)| {
        let (name, mixer) = match kind {
            "linear_attention" => ("linear_attn", MixerSpec::GatedDelta(delta)),
            _ => ("self_attn", MixerSpec::Attention(attn.clone())),
        };
        let first = BranchSpec::normed(name, mixer, "input_layernorm", norm);
        let mlp = mlp(i, MixerSpec::Mlp(dense))?;
        let second = BranchSpec::normed("mlp", mlp, "post_attention_layernorm", norm);
        Ok(LayerSpec(vec![vec![first].into(), vec![second].into()]))
    };
    Ok(DecoderSpec {
        dim,
        vocab: c.count_or("vocab_size", 151_936)?,
        context,
        learned_positions: None,
        embed_scale: None,
        per_layer: None,
        layers: kinds.into_iter().enumerate().map(layer).collect::<Result<_>>()?,
        norm,
        head: HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
    })
}

fn delta(c: &Config<'_>, dim: usize, eps: f32) -> Result<GatedDeltaSpec> {
    c.only("hidden_act", "silu")?;
    let heads = c.count_or("linear_num_value_heads", 32)?;
    let key_heads = c.count_or("linear_num_key_heads", 16)?;
    divides(c, "linear_num_key_heads", key_heads, heads)?;
    Ok(GatedDeltaSpec {
        dim,
        heads,
        key_heads,
        key_dim: c.count_or("linear_key_head_dim", 128)?,
        value_dim: c.count_or("linear_value_head_dim", 128)?,
        taps: c.count_or("linear_conv_kernel_dim", 4)?,
        norm: NormKind::Rms { eps },
        act: Activation::Silu,
    })
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
    Box::new(move |name| {
        let plain = || Origin::Tensor(name.to_owned());
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
