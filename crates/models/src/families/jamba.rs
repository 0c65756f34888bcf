//! Jamba: Mamba with norms inside, and attention without positions in every eighth layer.

use rillm_nn::{MambaNorms, MambaSpec, MlpSpec, MoeSpec, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, attention, bias, bias_or, layer_count_or};
use super::mamba::dt_rank;
use super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["jamba"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    c.only("hidden_act", "silu")?;
    let (dim, norm) = (c.count_or("hidden_size", 4096)?, c.rms_norm(1e-6)?);
    let (mut attn, context) =
        attention(c, dim, &Defaults { context: 262_144, kv_heads: Some(8), ..DEFAULTS })?;
    attn.rope = None;
    let mamba = MambaSpec {
        dim,
        inner: c.count_or("mamba_expand", 2)? * dim,
        state: c.count_or("mamba_d_state", 16)?,
        taps: c.count_or("mamba_d_conv", 4)?,
        dt_rank: dt_rank(c, "mamba_dt_rank", dim)?,
        bias: bias(c, "mamba_proj_bias")?,
        conv_bias: bias_or(c, "mamba_conv_bias", true)?,
        norms: MambaNorms::Learned { eps: c.positive_or("rms_norm_eps", 1e-6)? as f32 },
    };
    let mlp = MlpSpec::new([dim, c.count_or("intermediate_size", 14_336)?], Activation::Silu);
    let attends = at(c, "attn_layer", [8, 4])?;
    let has_experts = at(c, "expert_layer", [2, 1])?;
    let key = if c.has("num_local_experts") { "num_local_experts" } else { "num_experts" };
    let counts = [experts_of(c, key, 16)?, c.count_or("num_experts_per_tok", 2)?];
    if counts[0] > 1 {
        check_choice(c, counts)?;
    }
    let layer = |i: usize| {
        let (name, mixer) = match attends(i) {
            true => ("self_attn", MixerSpec::Attention(attn.clone())),
            false => ("mamba", MixerSpec::Mamba(mamba)),
        };
        let feed_forward = match counts[0] > 1 && has_experts(i) {
            true => MixerSpec::Moe(MoeSpec::new([dim, mlp.hidden], mlp.act, counts)),
            false => MixerSpec::Mlp(mlp),
        };
        let first = BranchSpec::normed(name, mixer, "input_layernorm", norm);
        let second = BranchSpec::normed("mlp", feed_forward, "pre_ff_layernorm", norm);
        LayerSpec::in_turn([first, second])
    };
    Ok(DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 65_536)?],
            (0..layer_count_or(c, "num_hidden_layers", 32)?).map(layer).collect(),
            norm,
            HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
        )
    })
}

/// Whether a layer is one of those at `{key}_offset` in every `{key}_period`.
fn at(c: &Config<'_>, key: &str, [period, offset]: [usize; 2]) -> Result<impl Fn(usize) -> bool> {
    let period = c.count_or(&format!("{key}_period"), period)?;
    let key = format!("{key}_offset");
    let offset = c.get(&key).map_or(Some(offset as u64), |v| v.as_u64());
    let Some(offset) = offset.filter(|n| (*n as usize) < period) else {
        return Err(c.unsupported(&key, &format!("a number below {period}")));
    };
    Ok(move |i| i % period == offset as usize)
}

pub(super) fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let names = ExpertNames { module: "feed_forward", inside: &[("gate", "router")], ..PLAIN };
    let experts = experts::layout(spec, source, names);
    Box::new(move |name| match name {
        "model.norm.weight" => Origin::Tensor("model.final_layernorm.weight".to_owned()),
        _ => experts(name),
    })
}
