//! Kimi Linear: the delta rule with a decay for each value of a key in three layers of four, latent attention without
//! positions in the others, and experts.

mod names;

use rillm_nn::{Bias, KimiDeltaSpec, MlaSpec, MlpSpec, MoeSpec, NormKind};
use rillm_tensor_core::{Activation, GroupScore, Score};

use super::common::{bias, layer_count_or};
use super::deepseek_v3::{all_use, groups, number_or};
use super::glm4_moe_lite::sparse_layers;
use super::mixtral::check_choice;
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: names::layout, ..DecoderFamily::new(&["kimi_linear"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let (dim, norm) = (c.count_or("hidden_size", 2304)?, c.rms_norm(1e-5)?);
    let act = c.activation("hidden_act", Activation::Silu)?;
    let n = layer_count_or(c, "num_hidden_layers", 27)?;
    let (delta, linear) = (delta(c, dim, norm)?, linear_layers(c, n)?);
    let (mla, moe) = (latent(c, dim)?, mixture(c, dim, act)?);
    let hidden = c.count_or("intermediate_size", 9216)?;
    let mlp = MlpSpec::new([dim, hidden], act);
    let layer = |(linear, sparse): (bool, bool)| {
        let attention = match linear {
            true => MixerSpec::KimiDelta(delta),
            false => MixerSpec::Mla(mla.clone()),
        };
        let feed_forward = if sparse { MixerSpec::Moe(moe) } else { MixerSpec::Mlp(mlp) };
        let first = BranchSpec::normed("self_attn", attention, "input_layernorm", norm);
        let second = BranchSpec::normed("mlp", feed_forward, "post_attention_layernorm", norm);
        LayerSpec::in_turn([first, second])
    };
    Ok(DecoderSpec {
        context: Some(c.count_or("model_max_length", c.count_or("max_position_embeddings", 1 << 20)?)?),
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 163_840)?],
            linear.into_iter().zip(sparse_layers(c, n)?).map(layer).collect(),
            norm,
            // If a head is stored, it is one, whatever the configuration says.
            HeadSpec::plain(false),
        )
    })
}

fn delta(c: &Config<'_>, dim: usize, norm: NormKind) -> Result<KimiDeltaSpec> {
    c.only("hidden_act", "silu")?;
    let part = c.object("linear_attn_config")?;
    let number = |inner: &str, outer: &str, default| {
        let default = c.count_or(outer, default)?;
        part.map_or(Ok(default), |p| p.count_or(inner, default))
    };
    Ok(KimiDeltaSpec {
        dim,
        heads: number("num_heads", "linear_num_heads", 32)?,
        head_dim: number("head_dim", "linear_head_dim", 128)?,
        taps: number("short_conv_kernel_size", "linear_conv_kernel_dim", 4)?,
        norm,
    })
}

/// Which layers follow the delta rule: by `layer_types`, or by lists that count from 1.
fn linear_layers(c: &Config<'_>, n: usize) -> Result<Vec<bool>> {
    let full =
        c.object("linear_attn_config")?.map(|p| p.opt_numbers("full_attn_layers")).transpose()?.flatten();
    let by_index = |i: usize| match &full {
        Some(full) if full.contains(&((i + 1) as f64)) => "full_attention",
        None if i > 0 && i.is_multiple_of(4) => "full_attention",
        _ => "linear_attention",
    };
    let kinds = c.layer_names("layer_types", n, &["linear_attention", "full_attention"], by_index)?;
    Ok(kinds.into_iter().map(|kind| kind == "linear_attention").collect())
}

fn latent(c: &Config<'_>, dim: usize) -> Result<MlaSpec> {
    let (nope_dim, rope_dim) = (c.count_or("qk_nope_head_dim", 128)?, c.count_or("qk_rope_head_dim", 64)?);
    if !c.flag("mla_use_nope", true)? {
        return Err(c.unsupported("mla_use_nope", "true"));
    }
    Ok(MlaSpec {
        dim,
        heads: c.count_or("num_attention_heads", 32)?,
        q_lora_rank: c.opt_count("q_lora_rank")?,
        kv_lora_rank: c.count_or("kv_lora_rank", 512)?,
        nope_dim,
        rope_dim,
        v_head_dim: c.count_or("v_head_dim", 128)?,
        scale: ((nope_dim + rope_dim) as f32).powf(-0.5),
        // Of the class, not of the configuration.
        norm: NormKind::Rms { eps: 1e-6 },
        bias: bias(c, "attention_bias")?,
        rope: None,
    })
}

fn mixture(c: &Config<'_>, dim: usize, act: Activation) -> Result<MoeSpec> {
    c.only("moe_router_activation_func", "sigmoid")?;
    let either = |a: &'static str, b: &'static str| if c.has(a) { a } else { b };
    let counts = [
        super::mixtral::experts_of(c, either("num_experts", "num_local_experts"), 256)?,
        c.count_or(either("num_experts_per_token", "num_experts_per_tok"), 8)?,
    ];
    check_choice(c, counts)?;
    let hidden = c.count_or("moe_intermediate_size", 1024)?;
    let mut moe = MoeSpec::new([dim, hidden], act, counts);
    moe.routing.score = Score::Sigmoid;
    let key = either("num_expert_group", "n_group");
    moe.routing.groups = groups(c, key, counts, [1, 1], GroupScore::TwoGreatest)?;
    moe.routing.normalize = c.flag(either("moe_renormalize", "norm_topk_prob"), true)?.then_some(1e-20);
    moe.routing.scale = c.number_or("routed_scaling_factor", 2.446)? as f32;
    moe.correction = Bias::Added;
    let shared = number_or(c, either("num_shared_experts", "n_shared_experts"), 1)?;
    moe.shared = all_use(shared * hidden, Bias::None);
    Ok(moe)
}
