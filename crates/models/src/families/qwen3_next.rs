//! Qwen3-Next and Qwen3.5 (text): the gated delta rule in three layers of four, gated attention with a little rope in the
//! others, norms of `1 + w`.

use rillm_nn::{Bias, GatedDeltaSpec, MlpSpec, MoeSpec, NormKind, QkNorm, SharedGate, SharedSpec};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, attention, bias, layer_count_or};
use super::mamba2::divides;
use super::mixtral::{check_choice, experts_of};
use super::qwen3_5::{ignored, layout};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["qwen3_next"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = hybrid(c, &Sizes { dim: 2048, hidden: 5632, kv_heads: 2, layers: 48, vocab: 151_936 })?;
    let dense = c.opt_numbers("mlp_only_layers")?.unwrap_or_default();
    let step = c.count_or("decoder_sparse_step", 1)?;
    if c.get("num_experts").is_none_or(|n| n.as_u64() != Some(0)) {
        let normalize = c.flag("norm_topk_prob", true)?;
        mix(c, &mut spec, [512, 10], |i| (i + 1).is_multiple_of(step) && !dense.contains(&(i as f64)))?;
        if !normalize {
            spec.moes().for_each(|moe| moe.routing.normalize = None);
        }
    }
    Ok(spec)
}

/// Makes mixtures, with a shared expert behind a gate, of the feed-forward layers for which `sparse` says so; `experts`
/// and `top_k` where no key says.
pub(super) fn mix(
    c: &Config<'_>,
    spec: &mut DecoderSpec,
    [experts, top_k]: [usize; 2],
    sparse: impl Fn(usize) -> bool,
) -> Result<()> {
    let hidden = c.count_or("moe_intermediate_size", 512)?;
    let counts = [experts_of(c, "num_experts", experts)?, c.count_or("num_experts_per_tok", top_k)?];
    check_choice(c, counts)?;
    let shared = SharedSpec {
        hidden: c.count_or("shared_expert_intermediate_size", 512)?,
        bias: Bias::None,
        gate: SharedGate::Sigmoid,
    };
    spec.mix(|i, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, hidden], mlp.act, counts);
        (moe.routing.normalize, moe.shared) = (Some(0.0), Some(shared));
        sparse(i).then_some(moe)
    });
    Ok(())
}

/// What configurations stand for where they are silent.
pub(super) struct Sizes {
    pub dim: usize,
    pub hidden: usize,
    pub kv_heads: usize,
    pub layers: usize,
    pub vocab: usize,
}

/// The decoder with dense feed-forward layers.
pub(super) fn hybrid(c: &Config<'_>, sizes: &Sizes) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", sizes.dim)?;
    let eps = c.positive_or("rms_norm_eps", 1e-6)? as f32;
    let (norm, act) = (NormKind::RmsPlusOne { eps }, c.activation("hidden_act", Activation::Silu)?);
    let defaults = Defaults {
        head_dim: Some(256),
        part: 0.25,
        context: 32_768,
        kv_heads: Some(sizes.kv_heads),
        ..DEFAULTS
    };
    let (mut attn, context) = attention(c, dim, &defaults)?;
    let attn_bias = bias(c, "attention_bias")?;
    (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
    (attn.qk_norm, attn.gate) = (Some(QkNorm::heads(norm)), Some(Activation::Sigmoid));
    let delta = delta(c, dim, eps)?;
    let dense = MlpSpec::new([dim, c.count_or("intermediate_size", sizes.hidden)?], act);
    let n = layer_count_or(c, "num_hidden_layers", sizes.layers)?;
    let every = c.count_or("full_attention_interval", 4)?;
    let by_index =
        |i: usize| if (i + 1).is_multiple_of(every) { "full_attention" } else { "linear_attention" };
    let kinds = c.layer_names("layer_types", n, &["linear_attention", "full_attention"], by_index)?;
    let layer = |kind: &str| {
        let (name, mixer) = match kind {
            "linear_attention" => ("linear_attn", MixerSpec::GatedDelta(delta)),
            _ => ("self_attn", MixerSpec::Attention(attn.clone())),
        };
        let first = BranchSpec::normed(name, mixer, "input_layernorm", norm);
        let second = BranchSpec::normed("mlp", MixerSpec::Mlp(dense), "post_attention_layernorm", norm);
        LayerSpec::in_turn([first, second])
    };
    Ok(DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", sizes.vocab)?],
            kinds.into_iter().map(layer).collect(),
            norm,
            HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
        )
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
