//! What architectures with experts say besides.

use super::config::{Config, layer_types, varying};
use super::families;
use super::metadata::Metadata;
use super::rope::rope;
use crate::Result;

/// llama.cpp's numbers for what a router's logits go through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gating {
    Softmax = 1,
    Sigmoid = 2,
    /// The softmax of the chosen alone.
    Chosen = 3,
}

impl Gating {
    /// That of a file, or `default`.
    fn of(m: &Metadata<'_>, default: Self) -> Result<Self> {
        let key = "expert_gating_func";
        match m.count(key)? {
            None | Some(0) => Ok(default),
            Some(1) => Ok(Self::Softmax),
            Some(2) => Ok(Self::Sigmoid),
            Some(3) => Ok(Self::Chosen),
            Some(n) => Err(m.unsupported(key, "1: softmax, 2: sigmoid, or 3: softmax of the chosen", n)),
        }
    }

    /// Refuses a file that says otherwise.
    fn only(self, m: &Metadata<'_>) -> Result<()> {
        let got = Self::of(m, self)?;
        let refuse = || m.unsupported("expert_gating_func", &format!("{}", self as u8), got as u8);
        if got == self { Ok(()) } else { Err(refuse()) }
    }
}

/// Experts of every layer, chosen among all, whose weights are used as `gating` gives them.
fn mixture(m: &Metadata<'_>, gating: Gating) -> Result<Config> {
    let mut c = decoder(m)?;
    ungrouped(m, &mut c, gating)?;
    Ok(c)
}

/// A decoder whose feed-forward layers, where there are some, have a width of their own.
fn decoder(m: &Metadata<'_>) -> Result<Config> {
    let mut c = varying(m)?;
    c.set("num_key_value_heads", m.kv_heads()?);
    let dense = m.count("feed_forward_length")?.filter(|n| *n > 0);
    c.set("intermediate_size", dense.unwrap_or(m.experts()?.hidden));
    Ok(c)
}

/// Experts chosen by softmax, for a decoder that has the rest.
pub(super) fn plain(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    ungrouped(m, c, Gating::Softmax)
}

/// Experts chosen by sigmoid, for a decoder that has the rest.
pub(super) fn sigmoid(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    ungrouped(m, c, Gating::Sigmoid)
}

fn ungrouped(m: &Metadata<'_>, c: &mut Config, gating: Gating) -> Result<()> {
    gating.only(m)?;
    if let Some(scale) = m.factor("expert_weights_scale")?.filter(|x| *x != 1.0) {
        return Err(m.unsupported("expert_weights_scale", "1", scale));
    }
    if let Some(n @ 2..) = m.count("expert_group_count")? {
        return Err(m.unsupported("expert_group_count", "1: experts chosen among all", n));
    }
    experts(m, c)
}

/// The counts and widths that all mixtures have.
fn experts(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    let experts = m.experts()?;
    c.set("num_experts", experts.count);
    c.set("num_experts_per_tok", m.required_count("expert_used_count")?);
    c.set("moe_intermediate_size", experts.hidden);
    Ok(())
}

/// Experts as DeepSeek has them: not in the first layers, in groups, beside one that all rows use.
fn grouped(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    experts(m, c)?;
    c.set("first_k_dense_replace", m.count("leading_dense_block_count")?.unwrap_or(0));
    c.set("n_shared_experts", m.count("expert_shared_count")?.unwrap_or(0));
    c.set("norm_topk_prob", m.flag("expert_weights_norm")?.unwrap_or(false));
    c.set("routed_scaling_factor", m.factor("expert_weights_scale")?.unwrap_or(1.0));
    c.set("n_group", m.count("expert_group_count")?.unwrap_or(1).max(1));
    c.set("topk_group", m.count("expert_group_used_count")?.unwrap_or(1).max(1));
    Ok(())
}

/// The same, chosen by sigmoid, for a decoder that has the rest.
pub(super) fn grouped_by_sigmoid(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    Gating::Sigmoid.only(m)?;
    grouped(m, c)
}

/// The sizes of latent attention. Newer files have keys and values of the latent in two matrices, and one head of keys,
/// which is what is computed here, too.
pub(super) fn latent(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    let rope_dim = m.required_count("rope.dimension_count")?;
    let [key, value] = ["key", "value"].map(|of| format!("attention.{of}_length"));
    let head = |key: &str| match m.count(&format!("{key}_mla"))? {
        None | Some(0) => m.required_count(key),
        Some(n) => Ok(n),
    };
    let Some(nope) = head(&key)?.checked_sub(rope_dim) else {
        return Err(m.unsupported(
            &key,
            &format!("at least the {rope_dim} values that are rotated"),
            head(&key)?,
        ));
    };
    c.set("qk_rope_head_dim", rope_dim);
    c.set("qk_nope_head_dim", nope);
    c.set("v_head_dim", head(&value)?);
    c.set("kv_lora_rank", m.required_count("attention.kv_lora_rank")?);
    c.set("q_lora_rank", m.count("attention.q_lora_rank")?.filter(|n| *n > 0));
    Ok(())
}

/// DeepSeek V2 and V3, Kimi K2 and GLM 4.7 Flash.
pub(super) fn deepseek2(m: &Metadata<'_>) -> Result<Config> {
    /// Layers, with those that predict further tokens or not, and tokens of GLM 4.7 Flash, whose files may not say that
    /// its router is a sigmoid.
    const FLASH: ([usize; 2], usize) = ([47, 48], 154_880);
    let mut c = decoder(m)?;
    grouped(m, &mut c)?;
    let flash =
        FLASH.0.contains(&m.required_count("block_count")?) && m.rows("token_embd.weight")? == FLASH.1;
    match Gating::of(m, if flash { Gating::Sigmoid } else { Gating::Softmax })? {
        Gating::Sigmoid => c.set("model_type", "deepseek_v3"),
        Gating::Softmax if m.count("expert_group_count")?.is_some_and(|n| n > 1) => {
            c.set("topk_method", "group_limited_greedy");
        }
        Gating::Softmax => c.set("topk_method", "greedy"),
        Gating::Chosen => return Err(m.unsupported("expert_gating_func", "1 or 2", 3)),
    }
    latent(m, &mut c)?;
    // The converter writes a tenth of what other architectures have under this key.
    if let Some(tenth) = m.factor("rope.scaling.yarn_log_multiplier")? {
        let mut p = rope(m)?;
        for key in ["mscale", "mscale_all_dim"] {
            p.set(key, tenth / 0.1);
        }
        c.set("rope_parameters", p);
    }
    if m.factor("attention.temperature_scale")?.is_some() {
        return Err(m.unsupported("attention.temperature_scale", "0: queries that don't grow", "another"));
    }
    Ok(c)
}

pub(super) fn dots1(m: &Metadata<'_>) -> Result<Config> {
    let mut c = decoder(m)?;
    grouped_by_sigmoid(m, &mut c)?;
    c.set("sliding_window", None::<usize>);
    Ok(c)
}

pub(super) fn ernie4_5(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Softmax)?;
    c.set("use_bias", m.bias("attn_q"));
    c.set("moe_num_shared_experts", m.count("expert_shared_count")?.unwrap_or(0));
    c.set("moe_layer_start_index", m.count("leading_dense_block_count")?.unwrap_or(0));
    c.set("moe_layer_interval", m.count("interleave_moe_layer_step")?.unwrap_or(1));
    Ok(c)
}

pub(super) fn glm4(m: &Metadata<'_>) -> Result<Config> {
    let mut c = decoder(m)?;
    grouped_by_sigmoid(m, &mut c)?;
    c.set("use_qk_norm", m.has("blk.0.attn_q_norm.weight"));
    Ok(c)
}

/// The cut of the gates has no key, nor has that the bounds of stretched rope are not rounded.
pub(super) fn gpt_oss(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Chosen)?;
    let mut p = rope(m)?;
    p.set("truncate", false);
    c.set("rope_parameters", p);
    c.set("intermediate_size", m.experts()?.hidden);
    c.set("sliding_window", m.required_count("attention.sliding_window")?);
    c.set("layer_types", layer_types(&m.sliding(2)?));
    Ok(c)
}

/// With an expert that all rows use, it is Granite 4 without Mamba.
pub(super) fn granite(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Softmax)?;
    families::multipliers(m, &mut c)?;
    let shared = m.count("expert_shared_feed_forward_length")?.filter(|n| *n > 0);
    let turned = families::turned(m)?;
    match shared {
        Some(hidden) => {
            c.set("model_type", "granitemoehybrid");
            c.set("shared_intermediate_size", hidden);
            c.set("layer_types", vec!["attention"; m.layers()?]);
            for key in ["mamba_n_heads", "mamba_n_groups"] {
                c.set(key, 1);
            }
            c.set("position_embedding_type", if turned { "rope" } else { "nope" });
        }
        None if !turned => return Err(m.unsupported(families::FINETUNED, "true: rope in all layers", false)),
        None => {}
    }
    Ok(c)
}

/// Mixtral, among the files that are called llama.
pub(super) fn llama(m: &Metadata<'_>) -> Result<Config> {
    if m.count("expert_count")?.unwrap_or(0) == 0 {
        return families::llama(m);
    }
    let mut c = mixture(m, Gating::Softmax)?;
    c.set("model_type", "mixtral");
    c.set("sliding_window", None::<usize>);
    if m.bias("attn_q") {
        return Err(m.unsupported("expert_count", "0 where attention has biases", m.experts()?.count));
    }
    Ok(c)
}

/// Chunks, layers without rope and queries that grow there have no keys; nor has that the models with the most experts
/// have no norms of heads.
pub(super) fn llama4(m: &Metadata<'_>) -> Result<Config> {
    const CHUNK: usize = 8192;
    const EXPERTS_WITHOUT_NORMS: usize = 128;
    let key = "attention.sliding_window";
    if let Some(n) = m.count(key)?.filter(|n| *n != CHUNK) {
        return Err(m.unsupported(key, &format!("none: chunks of {CHUNK}"), n));
    }
    let (key, theta) = ("rope.freq_base_swa", m.number("rope.freq_base")?);
    if let Some(x) = m.number(key)?.filter(|x| Some(*x) != theta) {
        return Err(m.unsupported(key, "that of all layers", x));
    }
    let mut c = mixture(m, Gating::Sigmoid)?;
    c.set("intermediate_size_mlp", m.required_count("feed_forward_length")?);
    c.set("intermediate_size", m.experts()?.hidden);
    c.set("interleave_moe_layer_step", m.required_count("interleave_moe_layer_step")?);
    c.set("attention_chunk_size", CHUNK);
    let name = |chunked: &bool| if *chunked { "chunked_attention" } else { "full_attention" };
    c.set("layer_types", m.sliding(4)?.iter().map(name).collect::<Vec<_>>());
    c.set("use_qk_norm", m.experts()?.count != EXPERTS_WITHOUT_NORMS);
    Ok(c)
}

pub(super) fn minimax_m2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Sigmoid)?;
    c.set("intermediate_size", m.experts()?.hidden);
    c.set("rotary_dim", m.count("rope.dimension_count")?);
    Ok(c)
}

/// Experts are as wide as `feed_forward_length`.
pub(super) fn olmoe(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Softmax)?;
    c.0.remove("moe_intermediate_size");
    c.set("norm_topk_prob", false);
    Ok(c)
}

/// Phi-3.5 MoE, whose norms are LayerNorms though the key of their epsilon is the other one.
pub(super) fn phimoe(m: &Metadata<'_>) -> Result<Config> {
    /// The factor on rotated values in Phi-3.5-MoE's configuration; the key has another.
    const MSCALE: f64 = 1.243163121016122;
    let mut c = mixture(m, Gating::Softmax)?;
    c.set("lm_head_bias", m.has("output.bias"));
    c.set("sliding_window", m.count("attention.sliding_window")?.filter(|n| *n > 0));
    let mut p = rope(m)?;
    if p.0.contains_key("long_factor") {
        p.set("short_mscale", MSCALE);
        p.set("long_mscale", MSCALE);
    }
    c.set("rope_parameters", p);
    Ok(c)
}

pub(super) fn qwen2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Softmax)?;
    let shared = m.count("expert_shared_feed_forward_length")?.filter(|n| *n > 0);
    let dense = m.count("feed_forward_length")?;
    c.set("shared_expert_intermediate_size", m.g.require(&m.key("feed_forward_length"), shared.or(dense))?);
    c.set("qkv_bias", m.bias("attn_q") || m.bias("attn_qkv"));
    c.set("norm_topk_prob", false);
    Ok(c)
}

pub(super) fn qwen3(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mixture(m, Gating::Softmax)?;
    c.set("norm_topk_prob", true);
    Ok(c)
}
