//! What families that follow Llama read alike.

use std::sync::Arc;

use rillm_nn::{AttentionSpec, Bias, MlpSpec, RopeScaling, RopeSpec, RotaryEmbedding};
use rillm_tensor_core::{Activation, AttnParams, Pairing};

use crate::{Config, DecoderSpec, HeadSpec, LayerSpec, MixerSpec, Norms, Result};

/// What a family's configuration stands for where it is silent.
pub(super) struct Defaults {
    pub eps: f64,
    pub theta: f64,
    pub tied: bool,
    pub context: usize,
    /// `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `None`: as many as query heads.
    pub kv_heads: Option<usize>,
    /// The part of each head that is rotated.
    pub part: f64,
    /// Of which layers the rope is where the configuration has one for each kind; `None`: of those without a window.
    pub rope_of: Option<&'static str>,
    pub pairing: Pairing,
}

pub(super) const DEFAULTS: Defaults = Defaults {
    eps: 1e-6,
    theta: 10_000.0,
    tied: false,
    context: 2048,
    head_dim: None,
    kv_heads: None,
    part: 1.0,
    rope_of: None,
    pairing: Pairing::Halves,
};

/// Counts where the configuration of a class with these defaults is silent, as text parts beside others often are:
/// tokens, width, width inside feed-forward layers, layers, heads.
pub(super) const fn counts(of: [usize; 5]) -> [(&'static str, usize); 5] {
    [
        ("vocab_size", of[0]),
        ("hidden_size", of[1]),
        ("intermediate_size", of[2]),
        ("num_hidden_layers", of[3]),
        ("num_attention_heads", of[4]),
    ]
}

/// Gives all projections of attention and of the feed-forward layers biases, or none.
pub(super) fn biases(spec: &mut DecoderSpec, attn: Bias, mlp: Bias) {
    spec.attentions().for_each(|a| (a.qkv_bias, a.o_bias) = (attn, attn));
    spec.mlps().for_each(|m| m.bias = mlp);
}

/// Whether `key` asks for biases; it is false where absent.
pub(super) fn bias(c: &Config<'_>, key: &str) -> Result<Bias> {
    bias_or(c, key, false)
}

/// Whether `key` asks for biases; `default` where it is absent.
pub(super) fn bias_or(c: &Config<'_>, key: &str, default: bool) -> Result<Bias> {
    Ok(if c.flag(key, default)? { Bias::Added } else { Bias::None })
}

/// Llama's decoder with the dimensions of `c`: pre-norm, RMSNorm, gated feed-forward, no biases, rope everywhere.
pub(super) fn follow(c: &Config<'_>, defaults: &Defaults) -> Result<DecoderSpec> {
    let (dim, norm) = (c.count("hidden_size")?, c.rms_norm(defaults.eps)?);
    let (attn, context) = attention(c, dim, defaults)?;
    let mlp =
        MlpSpec::new([dim, c.count("intermediate_size")?], c.activation("hidden_act", Activation::Silu)?);
    let layer = LayerSpec::new(MixerSpec::Attention(attn), MixerSpec::Mlp(mlp), Norms::Pre, norm);
    Ok(DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count("vocab_size")?],
            vec![layer; layer_count(c, "num_hidden_layers")?],
            norm,
            HeadSpec::plain(c.flag("tie_word_embeddings", defaults.tied)?),
        )
    })
}

/// Attention of a model of width `dim`, without biases, with rope; and the positions the model was made for.
pub(super) fn attention(
    c: &Config<'_>,
    dim: usize,
    defaults: &Defaults,
) -> Result<(AttentionSpec, Option<usize>)> {
    let heads = c.count("num_attention_heads")?;
    let head_dim = match (c.opt_count("head_dim")?, defaults.head_dim) {
        (Some(n), _) => n,
        (None, Some(n)) if !c.has("head_dim") => n,
        _ => (dim / heads).max(1),
    };
    let kv_heads = match defaults.kv_heads {
        Some(n) if !c.has("num_key_value_heads") => n,
        _ => c.count_or("num_key_value_heads", heads)?,
    };
    if heads % kv_heads != 0 {
        return Err(c.unsupported("num_key_value_heads", &format!("a divisor of {heads} heads")));
    }
    let c = c.with_positions(defaults.context);
    let mut rope = c.partial_rope(head_dim, defaults.theta, defaults.part, defaults.rope_of)?;
    rope.pairing = defaults.pairing;
    let context = match rope.scaling {
        RopeScaling::Dynamic { .. } => None,
        _ => Some(c.count_or("max_position_embeddings", defaults.context)?),
    };
    let attn = AttentionSpec {
        rope: Some(Arc::new(RotaryEmbedding::new(rope))),
        ..AttentionSpec::new(dim, AttnParams::new(heads, kv_heads, head_dim))
    };
    Ok((attn, context))
}

/// Stretches all rope, whose base is `theta` then, by `scaling`, the default of the configuration's class, if neither
/// `rope_parameters` nor `rope_scaling` is there.
pub(super) fn default_scaling(
    c: &Config<'_>,
    spec: &mut DecoderSpec,
    theta: f64,
    scaling: RopeScaling,
) -> Result<()> {
    if c.get("rope_parameters").is_some() || c.get("rope_scaling").is_some() {
        return Ok(());
    }
    let head_dim = spec.attentions().next().map_or(0, |attn| attn.params.head_dim);
    let rope = RopeSpec { scaling, theta, ..c.rope(head_dim, theta, None)? };
    let rope = Arc::new(RotaryEmbedding::new(rope));
    spec.attentions().for_each(|attn| attn.rope = Some(rope.clone()));
    Ok(())
}

/// No model is deeper; a hostile count must not allocate without a file behind it.
pub(super) const MAX_LAYERS: usize = 4096;

/// The number of layers, under the name `key`, or `default`.
pub(super) fn layer_count_or(c: &Config<'_>, key: &str, default: usize) -> Result<usize> {
    if c.get(key).is_some() { layer_count(c, key) } else { Ok(default) }
}

/// The number of layers, under the name `key`.
pub(super) fn layer_count(c: &Config<'_>, key: &str) -> Result<usize> {
    match c.count(key)? {
        n if n <= MAX_LAYERS => Ok(n),
        _ => Err(c.unsupported(key, &format!("at most {MAX_LAYERS}"))),
    }
}
