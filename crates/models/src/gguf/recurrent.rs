//! What architectures with states in place of keys and values say besides: state spaces, the delta rule, short
//! convolutions.

use super::config::{Config, varying};
use super::families;
use super::metadata::Metadata;
use super::mixtures;
use crate::Result;

/// The layers that attend, which have heads of keys, and how many these are.
fn attending(m: &Metadata<'_>) -> Result<(Vec<bool>, usize)> {
    let counts = m.kv_heads_by_layer()?;
    let heads = counts.iter().copied().find(|n| *n > 0).unwrap_or(1);
    if let Some(other) = counts.iter().find(|n| **n > 0 && **n != heads) {
        let want = format!("0 or {heads} in each layer");
        return Err(m.unsupported("attention.head_count_kv", &want, other));
    }
    Ok((counts.iter().map(|n| *n > 0).collect(), heads))
}

/// Whether the first layer that has module `name` has a bias in it.
fn biased(m: &Metadata<'_>, name: &str) -> Result<bool> {
    let has = |i: &usize, kind| m.has(&format!("blk.{i}.{name}.{kind}"));
    Ok((0..m.layers()?).find(|i| has(i, "weight")).is_some_and(|i| has(&i, "bias")))
}

/// Names of layers: the first where `list` says so, else the second.
fn named(list: &[bool], names: [&'static str; 2]) -> Vec<&'static str> {
    list.iter().map(|first| names[usize::from(!first)]).collect()
}

/// What attention layers have in common, in a decoder where not all are such.
fn hybrid(m: &Metadata<'_>) -> Result<(Config, Vec<bool>)> {
    let mut c = varying(m)?;
    let (attends, kv_heads) = attending(m)?;
    c.set("num_key_value_heads", kv_heads);
    c.set("attention_bias", biased(m, "attn_q")?);
    Ok((c, attends))
}

/// Dimensions of a state space.
struct States {
    inner: usize,
    heads: usize,
    head_dim: usize,
    groups: usize,
    state: usize,
    taps: usize,
}

impl States {
    /// Those of Mamba-2, whose "rank of time steps" is its number of heads.
    fn of(m: &Metadata<'_>) -> Result<Self> {
        let count = |name: &str| match m.required_count(&format!("ssm.{name}"))? {
            0 => Err(m.unsupported(&format!("ssm.{name}"), "at least 1", 0)),
            n => Ok(n),
        };
        let (inner, heads) = (count("inner_size")?, count("time_step_rank")?);
        if !inner.is_multiple_of(heads) {
            return Err(m.unsupported("ssm.time_step_rank", &format!("a divisor of {inner}"), heads));
        }
        Ok(Self {
            inner,
            heads,
            head_dim: inner / heads,
            groups: count("group_count")?,
            state: count("state_size")?,
            taps: count("conv_kernel")?,
        })
    }

    /// Under the keys that Granite's and Falcon's configurations have.
    fn set(&self, m: &Metadata<'_>, c: &mut Config) -> Result<()> {
        c.set("mamba_n_heads", self.heads);
        c.set("mamba_d_head", self.head_dim);
        c.set("mamba_n_groups", self.groups);
        c.set("mamba_d_state", self.state);
        c.set("mamba_d_conv", self.taps);
        c.set("mamba_conv_bias", biased(m, "ssm_conv1d")?);
        c.set("mamba_proj_bias", biased(m, "ssm_in")?);
        Ok(())
    }
}

/// How many times as wide as the model a state space is.
fn expand(m: &Metadata<'_>) -> Result<usize> {
    let (dim, inner) = (m.required_count("embedding_length")?, m.required_count("ssm.inner_size")?);
    match inner.checked_div(dim) {
        Some(n) if n > 0 && n * dim == inner => Ok(n),
        _ => Err(m.unsupported("ssm.inner_size", &format!("a multiple of {dim}"), inner)),
    }
}

/// The converter multiplies all factors into the weights.
pub(super) fn falcon_h1(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, _) = hybrid(m)?;
    let states = States::of(m)?;
    states.set(m, &mut c)?;
    c.set("mamba_d_ssm", states.inner);
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    c.set("mamba_rms_norm", m.has("blk.0.ssm_norm.weight"));
    c.set("mamba_norm_before_gate", false);
    // A table that is both would have the factor of the embedding in the logits.
    m.rows("output.weight")?;
    Ok(c)
}

/// Granite 4.
pub(super) fn granite_hybrid(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, attends) = hybrid(m)?;
    let states = States::of(m)?;
    states.set(m, &mut c)?;
    c.set("mamba_expand", expand(m)?);
    c.set("layer_types", named(&attends, ["attention", "mamba"]));
    c.set("position_embedding_type", if families::turned(m)? { "rope" } else { "nope" });
    families::multipliers(m, &mut c)?;
    if m.count("expert_count")?.unwrap_or(0) == 0 {
        c.set("num_local_experts", 0);
        c.set("shared_intermediate_size", m.rows("blk.0.ffn_up.weight")?);
        return Ok(c);
    }
    mixtures::plain(m, &mut c)?;
    c.set("intermediate_size", m.experts()?.hidden);
    c.set("shared_intermediate_size", m.required_count("expert_shared_feed_forward_length")?);
    Ok(c)
}

/// `[period, offset]` of the layers for which `list` is true: every so many-th; `None` if they are others.
fn at_distances(list: &[bool]) -> Option<[usize; 2]> {
    let mut at = list.iter().enumerate().filter(|(_, there)| **there).map(|(i, _)| i);
    let [period, offset] = match (at.next(), at.next()) {
        (Some(first), Some(second)) => [second - first, first],
        (Some(first), None) => [list.len(), first],
        _ => [list.len() + 1, list.len()],
    };
    list.iter().enumerate().all(|(i, there)| *there == (i % period == offset)).then_some([period, offset])
}

/// Mamba with norms inside, attention without positions; tensors say which layers have experts.
pub(super) fn jamba(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, attends) = hybrid(m)?;
    let router = |i| m.has(&format!("blk.{i}.ffn_gate_inp.weight"));
    let has_experts: Vec<_> = (0..m.layers()?).map(router).collect();
    let want = "every so many-th layer";
    for (part, list, key) in
        [("attn", &attends, "attention.head_count_kv"), ("expert", &has_experts, "expert_count")]
    {
        let at = at_distances(list).ok_or_else(|| m.unsupported(key, want, "others"))?;
        c.set(&format!("{part}_layer_period"), at[0]);
        c.set(&format!("{part}_layer_offset"), at[1]);
    }
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    c.set("num_experts", 1);
    if has_experts.contains(&true) {
        mixtures::plain(m, &mut c)?;
    }
    c.set("mamba_expand", expand(m)?);
    c.set("mamba_d_state", m.required_count("ssm.state_size")?);
    c.set("mamba_d_conv", m.required_count("ssm.conv_kernel")?);
    c.set("mamba_dt_rank", m.required_count("ssm.time_step_rank")?);
    c.set("mamba_conv_bias", biased(m, "ssm_conv1d")?);
    c.set("mamba_proj_bias", biased(m, "ssm_in")?);
    Ok(c)
}

/// The delta rule with a decay for each value of a key, and latent attention in the layers that have heads of keys.
pub(super) fn kimi_linear(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, attends) = hybrid(m)?;
    mixtures::latent(m, &mut c)?;
    c.set("layer_types", named(&attends, ["full_attention", "linear_attention"]));
    c.set("linear_num_heads", m.heads()?);
    c.set("linear_head_dim", m.required_count("kda.head_dim")?);
    c.set("linear_conv_kernel_dim", m.required_count("ssm.conv_kernel")?);
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    mixtures::grouped_by_sigmoid(m, &mut c)?;
    // There is no key for it.
    c.set("norm_topk_prob", true);
    Ok(c)
}

pub(super) fn lfm2(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, attends) = hybrid(m)?;
    c.set("layer_types", named(&attends, ["full_attention", "conv"]));
    c.set("conv_L_cache", m.required_count("shortconv.l_cache")?);
    c.set("conv_bias", biased(m, "shortconv.conv")?);
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    c.set("block_auto_adjust_ff_dim", false);
    Ok(c)
}

pub(super) fn lfm2_moe(m: &Metadata<'_>) -> Result<Config> {
    let mut c = lfm2(m)?;
    mixtures::sigmoid(m, &mut c)?;
    let dense = m.count("leading_dense_block_count")?.unwrap_or(0);
    c.set("num_dense_layers", dense);
    c.set("norm_topk_prob", true);
    c.set("use_expert_bias", m.has(&format!("blk.{dense}.exp_probs_b.bias")));
    Ok(c)
}

/// Nothing but state spaces.
fn mamba_alone(m: &Metadata<'_>) -> Result<Config> {
    let mut c = Config::new(m);
    c.set("hidden_size", m.required_count("embedding_length")?);
    c.set("num_hidden_layers", m.layers()?);
    c.set("layer_norm_epsilon", m.required_number(m.architecture.eps.0)?);
    c.set("state_size", m.required_count("ssm.state_size")?);
    c.set("conv_kernel", m.required_count("ssm.conv_kernel")?);
    c.set("use_conv_bias", biased(m, "ssm_conv1d")?);
    c.set("use_bias", biased(m, "ssm_in")?);
    Ok(c)
}

/// Falcon-Mamba too, which has norms.
pub(super) fn mamba(m: &Metadata<'_>) -> Result<Config> {
    let mut c = mamba_alone(m)?;
    c.set("intermediate_size", m.required_count("ssm.inner_size")?);
    c.set("time_step_rank", m.required_count("ssm.time_step_rank")?);
    if m.flag("ssm.dt_b_c_rms")?.unwrap_or(false) {
        c.set("model_type", "falcon_mamba");
    }
    Ok(c)
}

pub(super) fn mamba2(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, states) = (mamba_alone(m)?, States::of(m)?);
    c.set("num_heads", states.heads);
    c.set("head_dim", states.head_dim);
    c.set("n_groups", states.groups);
    c.set("expand", expand(m)?);
    Ok(c)
}

/// Layers attend, or have a feed-forward layer or experts, or else a state space.
pub(super) fn nemotron_h(m: &Metadata<'_>) -> Result<Config> {
    let (mut c, attends) = hybrid(m)?;
    let states = States::of(m)?;
    let key = "feed_forward_length";
    let widths = m.counts(key)?;
    let width = widths.iter().copied().find(|n| *n > 0).unwrap_or(1);
    if let Some(other) = widths.iter().find(|n| **n > 0 && **n != width) {
        return Err(m.unsupported(key, &format!("0 or {width} in each layer"), other));
    }
    let mixed = m.count("expert_count")?.unwrap_or(0) > 0;
    let kind = |(attends, width): (&bool, &usize)| match (attends, width) {
        (true, _) => "attention",
        (_, 0) => "mamba",
        _ if mixed => "moe",
        _ => "mlp",
    };
    c.set("layers_block_type", attends.iter().zip(&widths).map(kind).collect::<Vec<_>>());
    c.set("intermediate_size", width);
    c.set("mlp_hidden_act", m.architecture.act);
    c.set("mlp_bias", biased(m, "ffn_up")?);
    c.set("mamba_num_heads", states.heads);
    c.set("mamba_head_dim", states.head_dim);
    c.set("n_groups", states.groups);
    c.set("ssm_state_size", states.state);
    c.set("conv_kernel", states.taps);
    c.set("use_conv_bias", biased(m, "ssm_conv1d")?);
    c.set("use_bias", biased(m, "ssm_in")?);
    if mixed {
        mixtures::grouped_by_sigmoid(m, &mut c)?;
        let shared = m.count("expert_shared_count")?.filter(|n| *n > 0);
        c.set("n_shared_experts", shared);
        if shared.is_some() {
            let hidden = m.required_count("expert_shared_feed_forward_length")?;
            c.set("moe_shared_expert_intermediate_size", hidden);
        }
        c.set("moe_latent_size", m.count("moe_latent_size")?.filter(|n| *n > 0));
    }
    Ok(c)
}

/// Qwen3-Next and Qwen3.5: the delta rule, except in every so many-th layer.
fn delta(m: &Metadata<'_>) -> Result<Config> {
    let mut c = varying(m)?;
    let states = States::of(m)?;
    c.set("num_key_value_heads", m.kv_heads()?);
    c.set("linear_num_key_heads", states.groups);
    c.set("linear_num_value_heads", states.heads);
    c.set("linear_key_head_dim", states.state);
    c.set("linear_value_head_dim", states.head_dim);
    c.set("linear_conv_kernel_dim", states.taps);
    c.set("attention_bias", false);
    let every = m.count("full_attention_interval")?.unwrap_or(4).max(1);
    let linear = match m.flags("attention.recurrent_layers")? {
        Some(list) => list,
        None => (0..m.layers()?).map(|i| !(i + 1).is_multiple_of(every)).collect(),
    };
    c.set("layer_types", named(&linear, ["linear_attention", "full_attention"]));
    Ok(c)
}

/// Their mixtures have an expert that all rows use, behind a gate.
fn shared(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    mixtures::plain(m, c)?;
    let key = "expert_shared_feed_forward_length";
    c.set("shared_expert_intermediate_size", m.count(key)?.unwrap_or(m.experts()?.hidden));
    c.set("norm_topk_prob", true);
    c.set("intermediate_size", m.experts()?.hidden);
    Ok(())
}

pub(super) fn qwen3_next(m: &Metadata<'_>) -> Result<Config> {
    let mut c = delta(m)?;
    shared(m, &mut c)?;
    Ok(c)
}

/// Value heads are in an order in which they take turns with the key heads. As there is no such order elsewhere, the
/// layout repeats the key heads until there is one for each value head.
pub(super) fn qwen3_5(m: &Metadata<'_>) -> Result<Config> {
    let mut c = delta(m)?;
    c.set("linear_num_key_heads", States::of(m)?.heads);
    match m.count("expert_count")?.unwrap_or(0) {
        0 => c.set("intermediate_size", m.required_count("feed_forward_length")?),
        _ => {
            c.set("model_type", "qwen3_5_moe_text");
            shared(m, &mut c)?;
        }
    }
    Ok(c)
}

/// RWKV-7: no attention, and no length.
pub(super) fn rwkv7(m: &Metadata<'_>) -> Result<Config> {
    let mut c = Config::new(m);
    c.set("hidden_size", m.required_count("embedding_length")?);
    c.set("num_hidden_layers", m.layers()?);
    c.set("norm_eps", m.eps()?);
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    c.set("head_dim", m.required_count("wkv.head_size")?);
    for (rank, key) in [
        ("decay", "decay_lora_rank"),
        ("a", "iclr_lora_rank"),
        ("v", "value_residual_mix_lora_rank"),
        ("gate", "gate_lora_rank"),
    ] {
        c.set(&format!("{rank}_low_rank_dim"), m.required_count(&format!("attention.{key}"))?);
    }
    c.set("hidden_act", "sqrelu");
    let key = "token_shift_count";
    match m.count(key)? {
        None | Some(2) => Ok(c),
        Some(n) => Err(m.unsupported(key, "2: both parts of a layer shift rows", n)),
    }
}
