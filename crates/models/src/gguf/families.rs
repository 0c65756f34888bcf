//! What single architectures say besides, gemmas apart.

use serde_json::json;

use super::config::{Config, gpt2, layer_types, like_llama};
use super::metadata::Metadata;
use super::rope::{rope, unscaled};
use crate::Result;
use crate::config::rotated_part;

/// Mistral too, and InternLM3, where queries, keys and values may have biases that nothing else has.
pub(super) fn llama(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    if m.bias("attn_q") != m.bias("attn_output") {
        c.set("model_type", "internlm3");
    }
    Ok(c)
}

/// Tensors say whether there are head norms.
pub(super) fn cohere(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("logit_scale", m.factor("logit_scale")?.unwrap_or(1.0));
    c.set("use_qk_norm", m.has("blk.0.attn_q_norm.weight"));
    Ok(c)
}

pub(super) fn cohere2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("logit_scale", m.factor("logit_scale")?.unwrap_or(1.0));
    c.set("sliding_window", m.required_count("attention.sliding_window")?);
    c.set("layer_types", layer_types(&m.sliding(4)?));
    Ok(c)
}

pub(super) fn ernie4_5(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("use_bias", m.bias("attn_q"));
    Ok(c)
}

pub(super) fn exaone4(m: &Metadata<'_>) -> Result<Config> {
    /// Layers of the 32B model, the only one with a window, of which its first files say nothing.
    const LAYERS_32B: usize = 64;
    let mut c = like_llama(m)?;
    let window = m.count("attention.sliding_window")?.filter(|n| *n > 0);
    let window = window.or((m.layers()? == LAYERS_32B).then_some(4096));
    c.set("layer_types", layer_types(&m.sliding(if window.is_some() { 4 } else { 1 })?));
    c.set("sliding_window", window);
    Ok(c)
}

/// GLM 4 before 0414, and ChatGLM since its second version. Its `context_length` is that of the first training.
pub(super) fn glm(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    // The converter leaves it out where it is half of each head.
    let dims = m.count("rope.dimension_count")?.unwrap_or(m.head_dim()? / 2);
    let mut p = rope(m)?;
    p.set("partial_rotary_factor", rotated_part(dims, m.head_dim()?));
    c.set("rope_parameters", p);
    Ok(c)
}

pub(super) fn gpt_bigcode(m: &Metadata<'_>) -> Result<Config> {
    let mut c = gpt2(m)?;
    let kv_heads = m.kv_heads()?;
    if kv_heads != 1 {
        return Err(m.unsupported("attention.head_count_kv", "1", kv_heads));
    }
    c.set("multi_query", true);
    Ok(c)
}

pub(super) fn gpt_neox(m: &Metadata<'_>) -> Result<Config> {
    /// Layers of the 20B model, the only one whose activation is not exact.
    const LAYERS_20B: usize = 44;
    let mut c = like_llama(m)?;
    let key = "use_parallel_residual";
    c.set(key, m.g.require(&m.key(key), m.flag(key)?)?);
    if m.layers()? == LAYERS_20B {
        c.set("hidden_act", "gelu_fast");
    }
    Ok(c)
}

pub(super) fn granite(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    multipliers(m, &mut c)?;
    if !turned(m)? {
        return Err(m.unsupported(FINETUNED, "true: rope in all layers", false));
    }
    let key = "deepstack_mapping";
    if let Some(layers) = m.g.integers(&m.key(key))?.filter(|layers| layers.iter().any(|i| *i >= 0)) {
        return Err(m.unsupported(key, "no layers that images come into", layers.len()));
    }
    Ok(c)
}

/// Granite's factors.
pub(super) fn multipliers(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    let scale = m.factor("attention.scale")?;
    c.set("attention_multiplier", scale.unwrap_or((m.head_dim()? as f32).powf(-0.5)));
    c.set("embedding_multiplier", m.factor("embedding_scale")?.unwrap_or(1.0));
    c.set("residual_multiplier", m.factor("residual_scale")?.unwrap_or(1.0));
    c.set("logits_scaling", m.required_number("logit_scale")?);
    Ok(())
}

/// Where Granite's files say whether there is rope at all.
pub(super) const FINETUNED: &str = "rope.scaling.finetuned";

pub(super) fn turned(m: &Metadata<'_>) -> Result<bool> {
    Ok(m.flag(FINETUNED)?.unwrap_or(true))
}

pub(super) fn hunyuan(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("use_qk_norm", m.has("blk.0.attn_q_norm.weight"));
    // Most files have the stretched base itself.
    if let Some(alpha) = m.number("rope.scaling.alpha")?.filter(|alpha| *alpha > 0.0) {
        let mut p = rope(m)?;
        p.set("rope_type", "dynamic");
        p.set("alpha", alpha);
        c.set("rope_parameters", p);
    }
    Ok(c)
}

/// Mistral Small 3.1 too, whose queries don't grow and whose rope isn't stretched.
pub(super) fn ministral3(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    let mut p = rope(m)?;
    if let Some(all) = m.factor("rope.scaling.yarn_log_multiplier")? {
        p.set("mscale", 1.0);
        p.set("mscale_all_dim", all);
    }
    p.set("llama_4_scaling_beta", m.factor("attention.temperature_scale")?);
    p.set("original_max_position_embeddings", m.count("rope.scaling.original_context_length")?);
    c.set("rope_parameters", p);
    Ok(c)
}

pub(super) fn olmo(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    let eps = m.required_number(m.architecture.eps.0)?;
    if eps != 1e-5 {
        return Err(m.unsupported(m.architecture.eps.0, "0.00001", eps));
    }
    c.set("clip_qkv", m.factor("attention.clamp_kqv")?);
    Ok(c)
}

/// OLMo 3 has windows, and stretches rope only where there is none.
pub(super) fn olmo2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    if let Some(window @ 1..) = m.count("attention.sliding_window")? {
        c.set("model_type", "olmo3");
        c.set("sliding_window", window);
        c.set("layer_types", layer_types(&m.sliding(4)?));
        let base = m.number("rope.freq_base")?;
        let local = unscaled(m, m.number("rope.freq_base_swa")?.or(base), "")?;
        let (full, local) = (rope(m)?.0, local.0);
        c.set("rope_parameters", json!({"full_attention": full, "sliding_attention": local}));
    }
    Ok(c)
}

pub(super) fn phi3(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("sliding_window", m.count("attention.sliding_window")?.filter(|n| *n > 0));
    Ok(c)
}

pub(super) fn seed_oss(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("attention_out_bias", m.bias("attn_output"));
    Ok(c)
}

/// There is no key for the layers without rope.
pub(super) fn smollm3(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("no_rope_layer_interval", 4);
    Ok(c)
}

/// Whether both parts of a layer read the same norm, the second norm says: the key is true where it is not known.
pub(super) fn stablelm(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("use_qkv_bias", m.bias("attn_q"));
    c.set("use_parallel_residual", !m.has("blk.0.ffn_norm.weight"));
    c.set("qk_layernorm", m.has("blk.0.attn_q_norm.weight"));
    Ok(c)
}

pub(super) fn starcoder2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = like_llama(m)?;
    c.set("use_bias", m.bias("attn_q"));
    Ok(c)
}
