//! Nemotron-H and Nemotron 3: each layer is Mamba-2, attention without positions, a plain feed-forward layer with a squared
//! ReLU, or such layers for experts of DeepSeek V3's choice.

use rillm_nn::{GateOrder, GatedNorm, LatentSpec, Mamba2Spec, MlpKind, MlpSpec, MoeSpec, NormKind, Origin};
use rillm_nn::{SharedGate, SharedSpec, WeightSource};
use rillm_tensor_core::Activation;

use super::deepseek_v3::{Mixture, mixture};
use super::llama::{DEFAULTS, Defaults, MAX_LAYERS, attention, bias, bias_or};
use super::mamba2::divides;
use crate::experts::{self, ExpertNames, PLAIN};
use crate::names::{self, layer_of, renamed};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["nemotron_h"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", 4096)?;
    let eps = c.positive_or("layer_norm_epsilon", 1e-5)? as f32;
    let norm = NormKind::Rms { eps };
    let defaults = Defaults { head_dim: Some(128), context: 4096, ..DEFAULTS };
    let (mut attn, context) = attention(c, dim, &defaults)?;
    attn.rope = None;
    let mlp = MlpSpec {
        kind: MlpKind::Plain,
        dim,
        hidden: c.count_or("intermediate_size", 21_504)?,
        act: c.activation("mlp_hidden_act", Activation::Relu2)?,
        bias: bias(c, "mlp_bias")?,
        gate_factor: None,
    };
    let (kinds, mamba, moe) = (kinds(c)?, mamba(c, dim, eps)?, experts(c, &mlp)?);
    let layer = |kind: &char| {
        let (name, mixer) = match kind {
            'M' => ("mixer", MixerSpec::Mamba2(mamba.clone())),
            '*' => ("mixer", MixerSpec::Attention(attn.clone())),
            'E' => ("mlp", MixerSpec::Moe(moe)),
            _ => ("mixer", MixerSpec::Mlp(mlp)),
        };
        LayerSpec(vec![vec![BranchSpec::normed(name, mixer, "norm", norm)].into()])
    };
    Ok(DecoderSpec {
        dim,
        vocab: c.count_or("vocab_size", 131_072)?,
        context,
        learned_positions: None,
        embed_scale: None,
        per_layer: None,
        layers: kinds.iter().map(layer).collect(),
        norm,
        head: HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
    })
}

/// What each layer is: a list of names, or a string of `M`, `*`, `-` and `E`.
fn kinds(c: &Config<'_>) -> Result<Vec<char>> {
    let key = ["layers_block_type", "layer_types", "hybrid_override_pattern"];
    let Some(key) = key.into_iter().find(|key| c.get(key).is_some()) else {
        return Ok("ME*-".chars().collect());
    };
    let letter = |name: &str| match name {
        "linear_attention" | "mamba" => Some('M'),
        "full_attention" | "attention" => Some('*'),
        "mlp" => Some('-'),
        "moe" => Some('E'),
        _ => None,
    };
    let list: Option<Vec<char>> = match c.get(key) {
        Some(serde_json::Value::String(letters)) => Some(letters.chars().collect()),
        Some(serde_json::Value::Array(names)) => names.iter().map(|n| n.as_str().and_then(letter)).collect(),
        _ => None,
    };
    let known = "mamba, attention, mlp or moe, or their letters M, *, - and E";
    list.filter(|l| (1..=MAX_LAYERS).contains(&l.len()) && l.iter().all(|kind| "M*-E".contains(*kind)))
        .ok_or_else(|| c.unsupported(key, known))
}

/// Experts of the kind of `mlp`, and one that all rows use, which mlx-lm leaves out if their number is null.
fn experts(c: &Config<'_>, mlp: &MlpSpec) -> Result<MoeSpec> {
    let default =
        Mixture { hidden: 7688, experts: 8, top_k: 2, shared: 1, groups: [1, 1], scale: 1.0, norm: true };
    let (bias, latent) = (mlp.bias, c.opt_count("moe_latent_size")?);
    let hidden = c.count_or("moe_shared_expert_intermediate_size", 7688)?;
    let none = c.has("n_shared_experts") && c.get("n_shared_experts").is_none();
    Ok(MoeSpec {
        kind: mlp.kind,
        latent: latent.map(|dim| LatentSpec { dim, bias }),
        shared: (!none).then_some(SharedSpec { hidden, bias, gate: SharedGate::Open }),
        ..mixture(c, mlp.dim, mlp.act, &default)?
    })
}

fn mamba(c: &Config<'_>, dim: usize, eps: f32) -> Result<Mamba2Spec> {
    c.only("mamba_hidden_act", "silu")?;
    let heads = c.count_or("mamba_num_heads", 128)?;
    let groups = c.count_or("mamba_n_groups", c.count_or("n_groups", 8)?)?;
    divides(c, "n_groups", groups, heads)?;
    let proj_bias = bias(c, "use_bias")?;
    let least = c.positive_or("mamba_dt_min", c.positive_or("time_step_min", 0.001)?)?;
    Ok(Mamba2Spec {
        dim,
        heads,
        head_dim: c.count_or("mamba_head_dim", 64)?,
        state: c.count_or("ssm_state_size", 128)?,
        groups,
        taps: c.count_or("mamba_d_conv", c.count_or("conv_kernel", 4)?)?,
        in_bias: proj_bias,
        out_bias: proj_bias,
        conv_bias: bias_or(c, "mamba_conv_bias", c.flag("use_conv_bias", true)?)?,
        // transformers takes this for the least step, not `time_step_limit`.
        dt_limits: [least as f32, f32::INFINITY],
        norm: Some(GatedNorm { eps, groups, order: GateOrder::GateFirst }),
        factors: None,
    })
}

/// Under `backbone.`, or since version 5 of transformers under `model.`.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let old = source.names().iter().any(|n| n.starts_with("backbone."));
    let (prefix, layers) = if old { ("backbone", "backbone.layers") } else { ("model", "model.layers") };
    let experts = experts::layout(spec, source, ExpertNames { layers, module: "mixer", ..PLAIN });
    Box::new(move |name| {
        if layer_of(name).is_some_and(|(_, rest)| rest.starts_with("mlp.")) {
            return experts(name);
        }
        let stored = renamed(name, &format!("{layers}."), &TOP, &[]);
        Origin::Tensor(match stored.strip_prefix("backbone.") {
            Some(rest) => format!("{prefix}.{rest}"),
            None => stored,
        })
    })
}

const TOP: [(&str, &str); 2] =
    [("model.embed_tokens", "backbone.embeddings"), ("model.norm", "backbone.norm_f")];

/// Layers that predict further tokens are left out.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.starts_with("mtp.") || names::ignored(spec, name)
}
