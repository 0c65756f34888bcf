//! Granite 4: Mamba-2 in most layers, attention with or without rope in the others, a shared feed-forward layer, and
//! Granite's factors.

use rillm_nn::{GateOrder, GatedNorm, Mamba2Spec, MlpSpec, MoeSpec, Origin, WeightSource};
use rillm_tensor_core::{Activation, Score};

use super::common::{DEFAULTS, attention, bias, layer_count_or};
use super::granite::multipliers;
use super::mamba2;
use super::mixtral::{NAMES, check_choice, experts_of};
use crate::experts::{self, ExpertNames};
use crate::names::{layer_of, stacked};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["granitemoehybrid"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let (dim, norm) = (c.count_or("hidden_size", 4096)?, c.rms_norm(1e-6)?);
    let (mut attn, context) = attention(c, dim, &DEFAULTS)?;
    let attn_bias = bias(c, "attention_bias")?;
    (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
    match c.get("position_embedding_type").map(|_| c.str("position_embedding_type")).transpose()? {
        Some("rope") => {}
        None | Some("nope") => attn.rope = None,
        Some(_) => return Err(c.unsupported("position_embedding_type", "rope or null")),
    }
    let mlp = MlpSpec {
        bias: rillm_nn::Bias::None,
        ..MlpSpec::new(
            [dim, c.count_or("shared_intermediate_size", 1024)?],
            c.activation("hidden_act", Activation::Silu)?,
        )
    };
    let n = layer_count_or(c, "num_hidden_layers", 32)?;
    let names = ["mamba", "linear_attention", "attention", "full_attention"];
    let key = if c.get("layer_types").is_some() { "layer_types" } else { "layers_block_type" };
    let kinds = c.layer_names(key, n, &names, |_| "mamba")?;
    let (mamba, moe) = (mamba(c, dim)?, experts(c, dim, mlp.act)?);
    let layer = |kind: &str| {
        let first = match kind {
            "mamba" | "linear_attention" => {
                BranchSpec::normed("mamba", MixerSpec::Mamba2(mamba.clone()), "input_layernorm", norm)
            }
            _ => BranchSpec::normed("self_attn", MixerSpec::Attention(attn.clone()), "input_layernorm", norm),
        };
        let second = BranchSpec::normed("shared_mlp", MixerSpec::Mlp(mlp), "post_attention_layernorm", norm);
        let norm_name = "post_attention_layernorm";
        let moe = moe.map(|moe| BranchSpec::normed("mlp", MixerSpec::Moe(moe), norm_name, norm));
        LayerSpec(vec![vec![first].into(), moe.into_iter().chain([second]).collect::<Vec<_>>().into()])
    };
    let mut spec = DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 32_000)?],
            kinds.into_iter().map(layer).collect(),
            norm,
            HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
        )
    };
    multipliers(c, &mut spec)?;
    Ok(spec)
}

/// Experts beside the shared feed-forward layer; none if `num_local_experts` is 0.
fn experts(c: &Config<'_>, dim: usize, act: Activation) -> Result<Option<MoeSpec>> {
    if c.get("num_local_experts").is_some_and(|n| n.as_u64() == Some(0)) {
        return Ok(None);
    }
    let counts = [experts_of(c, "num_local_experts", 8)?, c.count_or("num_experts_per_tok", 2)?];
    check_choice(c, counts)?;
    let mut moe = MoeSpec::new([dim, c.count_or("intermediate_size", 11_008)?], act, counts);
    moe.routing.score = Score::Chosen;
    Ok(Some(moe))
}

fn mamba(c: &Config<'_>, dim: usize) -> Result<Mamba2Spec> {
    let spec = mamba2::prefixed(c, dim, c.count_or("mamba_expand", 2)? * dim)?;
    let eps = c.positive_or("rms_norm_eps", 1e-6)? as f32;
    let norm = GatedNorm { eps, groups: spec.groups, order: GateOrder::GateFirst };
    Ok(Mamba2Spec { norm: Some(norm), ..spec })
}

/// transformers fuses gate and what it opens; mlx-lm divides them if there are no experts.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let mlx = matches!(source.get("model.layers.0.mlp.up_proj.weight"), Ok(Some(_)));
    let hidden = spec.layers.first().and_then(LayerSpec::mlp).map_or(0, |mlp| mlp.hidden);
    let names = ExpertNames { inside: &[("gate", "router.layer")], ..NAMES };
    let experts = experts::layout(spec, source, names);
    Box::new(move |name| {
        let Some((i, rest)) = layer_of(name) else { return Origin::Tensor(name.to_owned()) };
        let Some(module) = rest.strip_prefix("shared_mlp.") else { return experts(name) };
        if mlx {
            return Origin::Tensor(format!("model.layers.{i}.mlp.{module}"));
        }
        let fused = |part| {
            let (rows, of) = stacked(&[hidden; 2], part);
            Origin::Rows { name: format!("model.layers.{i}.shared_mlp.input_linear.weight"), rows, of }
        };
        match module {
            "gate_proj.weight" => fused(0),
            "up_proj.weight" => fused(1),
            _ => Origin::Tensor(format!("model.layers.{i}.shared_mlp.output_linear.weight")),
        }
    })
}
