//! Nemotron-H: each layer is Mamba-2, attention without positions, or a plain feed-forward layer with a squared ReLU.

use rillm_nn::{GateOrder, GatedNorm, Mamba2Spec, MlpKind, MlpSpec, NormKind, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::llama::{DEFAULTS, Defaults, MAX_LAYERS, attention, bias, bias_or};
use super::mamba2::divides;
use crate::names::{self, renamed};
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
    let mamba = mamba(c, dim, eps)?;
    let layer = |kind: &Kind| {
        let mixer = match kind {
            Kind::Mamba => MixerSpec::Mamba2(mamba.clone()),
            Kind::Attention => MixerSpec::Attention(attn.clone()),
            Kind::Mlp => MixerSpec::Mlp(mlp),
        };
        LayerSpec(vec![vec![BranchSpec::normed("mixer", mixer, "norm", norm)].into()])
    };
    Ok(DecoderSpec {
        dim,
        vocab: c.count_or("vocab_size", 131_072)?,
        context,
        learned_positions: None,
        embed_scale: None,
        per_layer: None,
        layers: kinds(c)?.iter().map(layer).collect(),
        norm,
        head: HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
    })
}

enum Kind {
    Mamba,
    Attention,
    Mlp,
}

/// What each layer is: a list of names, or a string of `M`, `*` and `-`.
fn kinds(c: &Config<'_>) -> Result<Vec<Kind>> {
    let key = ["layers_block_type", "layer_types", "hybrid_override_pattern"];
    let key = key.into_iter().find(|key| c.get(key).is_some()).unwrap_or("layers_block_type");
    let known = "mamba, attention or mlp, or their letters M, * and -";
    let kind = |name: &str| match name {
        "linear_attention" | "mamba" | "M" => Some(Kind::Mamba),
        "full_attention" | "attention" | "*" => Some(Kind::Attention),
        "mlp" | "-" => Some(Kind::Mlp),
        _ => None,
    };
    let list: Option<Vec<Kind>> = match c.get(key) {
        Some(serde_json::Value::String(letters)) => {
            letters.chars().map(|letter| kind(letter.encode_utf8(&mut [0; 4]))).collect()
        }
        Some(serde_json::Value::Array(names)) => names.iter().map(|n| n.as_str().and_then(kind)).collect(),
        _ => None,
    };
    list.filter(|l| (1..=MAX_LAYERS).contains(&l.len())).ok_or_else(|| c.unsupported(key, known))
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
fn layout(_: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let old = source.names().iter().any(|n| n.starts_with("backbone."));
    let prefix = if old { "backbone" } else { "model" };
    Box::new(move |name| {
        let stored = renamed(name, &format!("{prefix}.layers."), &TOP, &[]);
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
