//! What the gemmas from the second on say besides.

use serde_json::{Map, json};

use super::config::{Config, layer_types, like_llama, varying};
use super::metadata::Metadata;
use super::mixtures;
use super::rope::{rope, unscaled};
use crate::Result;

pub(super) fn gemma2(m: &Metadata<'_>) -> Result<Config> {
    /// Layers of the 27B model, the only one whose scale is not that of `head_dim`; there is no key for it.
    const LAYERS_27B: usize = 46;
    let mut c = like_llama(m)?;
    c.set("attn_logit_softcapping", m.number("attn_logit_softcapping")?.unwrap_or(50.0));
    c.set("final_logit_softcapping", m.number("final_logit_softcapping")?.unwrap_or(30.0));
    c.set("query_pre_attn_scalar", query_scalar(m, LAYERS_27B)?);
    c.set("sliding_window", m.count("attention.sliding_window")?.unwrap_or(4096));
    c.set("layer_types", layer_types(&m.sliding(2)?));
    Ok(c)
}

pub(super) fn gemma3(m: &Metadata<'_>) -> Result<Config> {
    /// As in [`gemma2`].
    const LAYERS_27B: usize = 62;
    let mut c = like_llama(m)?;
    // llama.cpp's default. Scaling is that of the layers without a window only.
    let local = m.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let global = rope(m)?.0;
    let local = json!({"rope_type": "default", "rope_theta": local});
    c.set("rope_parameters", json!({"full_attention": global, "sliding_attention": local}));
    c.set("final_logit_softcapping", m.factor("final_logit_softcapping")?);
    c.set("query_pre_attn_scalar", query_scalar(m, LAYERS_27B)?);
    let window = m.count("attention.sliding_window")?.filter(|n| *n > 0);
    c.set("layer_types", layer_types(&m.sliding(if window.is_some() { 6 } else { 1 })?));
    c.set("sliding_window", window);
    Ok(c)
}

/// The square of 1 / the scale of attention scores.
fn query_scalar(m: &Metadata<'_>, layers_27b: usize) -> Result<usize> {
    if m.required_count("block_count")? == layers_27b {
        return Ok(m.required_count("embedding_length")? / m.heads()?);
    }
    m.head_dim()
}

/// Sizes of heads and of the feed-forward layer differ between layers.
pub(super) fn gemma4(m: &Metadata<'_>) -> Result<Config> {
    let mut c = varying(m)?;
    let key = "attention.sliding_window_pattern";
    m.g.require(&m.key(key), m.g.metadata(&m.key(key)))?;
    let sliding = m.sliding(1)?;
    c.set("layer_types", layer_types(&sliding));
    c.set("sliding_window", m.required_count("attention.sliding_window")?);
    let (full, local) = (m.head_dim()?, m.head_dim_of("_swa")?);
    let kv_heads = m.kv_heads_by_layer()?;
    let layer = |i: usize| {
        let head_dim = if sliding[i] { local } else { full };
        (i.to_string(), json!({"head_dim": head_dim, "num_key_value_heads": kv_heads[i]}))
    };
    c.set("head_dim", local);
    c.set("num_key_value_heads", kv_heads.first().copied());
    c.set("per_layer_config", (0..sliding.len()).map(layer).collect::<Map<_, _>>());
    let global_rope = rope(m)?.0;
    let local_rope = unscaled(m, m.number("rope.freq_base_swa")?, "_swa")?.0;
    c.set("rope_parameters", json!({"full_attention": global_rope, "sliding_attention": local_rope}));
    let shared = m.count("attention.shared_kv_layers")?.unwrap_or(0);
    c.set("num_kv_shared_layers", shared);
    c.set("attention_k_eq_v", same_values(m, &sliding));
    widths(m, &mut c, sliding.len().saturating_sub(shared))?;
    c.set("hidden_activation", m.architecture.act);
    c.set("final_logit_softcapping", m.factor("final_logit_softcapping")?);
    let per_layer = m.count("embedding_length_per_layer_input")?.unwrap_or(0);
    c.set("hidden_size_per_layer_input", per_layer);
    if per_layer > 0 {
        c.set("vocab_size_per_layer_input", m.rows("per_layer_token_embd.weight")?);
    }
    if m.count("expert_count")?.unwrap_or(0) > 0 {
        mixtures::plain(m, &mut c)?;
        c.set("enable_moe_block", true);
        c.set("top_k_experts", m.required_count("expert_used_count")?);
    }
    Ok(c)
}

/// Whether layers without a window have no values but their keys.
fn same_values(m: &Metadata<'_>, sliding: &[bool]) -> bool {
    let has = |i: usize, module| m.has(&format!("blk.{i}.{module}.weight"));
    sliding.iter().enumerate().any(|(i, sliding)| !sliding && has(i, "attn_k") && !has(i, "attn_v"))
}

/// Feed-forward layers: all are as wide as the first, or those from `first_shared` on twice.
fn widths(m: &Metadata<'_>, c: &mut Config, first_shared: usize) -> Result<()> {
    let key = "feed_forward_length";
    let widths = m.counts(key)?;
    let first = widths.first().copied().unwrap_or(0);
    let wide = widths.last().copied() != Some(first);
    let want = |i| if wide && i >= first_shared { first.saturating_mul(2) } else { first };
    if let Some((i, n)) = widths.iter().enumerate().find(|(i, n)| **n != want(*i)) {
        return Err(m.unsupported(key, &format!("{} in layer {i}", want(i)), n));
    }
    c.set("intermediate_size", first);
    c.set("use_double_wide_mlp", wide);
    Ok(())
}
