//! Nemotron-H and Nemotron 3: each layer is Mamba-2, attention without positions, a plain feed-forward layer with a squared
//! ReLU, or such layers for experts of DeepSeek V3's choice.

mod mixers;

use rillm_nn::{MlpKind, MlpSpec, NormKind, Origin, WeightSource};
use rillm_tensor_core::Activation;

use self::mixers::{mamba, moe};
use super::common::{DEFAULTS, Defaults, MAX_LAYERS, attention, bias};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::names::{self, layer_of, renamed};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["nemotron_h"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let dim = c.count_or("hidden_size", 4096)?;
    let eps = c.positive_or("layer_norm_epsilon", 1e-5)? as f32;
    let norm = NormKind::Rms { eps };
    let defaults = Defaults { head_dim: Some(128), context: 4096, kv_heads: Some(8), ..DEFAULTS };
    let (mut attn, context) = attention(c, dim, &defaults)?;
    attn.rope = None;
    let mlp = MlpSpec {
        kind: MlpKind::Plain,
        bias: bias(c, "mlp_bias")?,
        ..MlpSpec::new(
            [dim, c.count_or("intermediate_size", 21_504)?],
            c.activation("mlp_hidden_act", Activation::Relu2)?,
        )
    };
    let (kinds, mamba) = (kinds(c)?, mamba(c, dim, eps)?);
    let moe = kinds.contains(&'E').then(|| moe(c, &mlp)).transpose()?;
    let layer = |kind: &char| {
        let (name, mixer) = match (kind, moe) {
            ('M', _) => ("mixer", MixerSpec::Mamba2(mamba.clone())),
            ('*', _) => ("mixer", MixerSpec::Attention(attn.clone())),
            ('E', Some(moe)) => ("mlp", MixerSpec::Moe(moe)),
            _ => ("mixer", MixerSpec::Mlp(mlp)),
        };
        LayerSpec::in_turn([BranchSpec::normed(name, mixer, "norm", norm)])
    };
    Ok(DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 131_072)?],
            kinds.iter().map(layer).collect(),
            norm,
            // If a head is stored, it is one, whatever the configuration says.
            HeadSpec::plain(false),
        )
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

/// Under `backbone.`, or since version 5 of transformers under `model.`.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let old = source.names().iter().any(|n| n.starts_with("backbone."));
    let (prefix, layers) = if old { ("backbone", "backbone.layers") } else { ("model", "model.layers") };
    let experts = experts::layout(spec, source, ExpertNames { layers, module: "mixer", ..PLAIN });
    let layout = Box::new(move |name: &str| {
        if layer_of(name).is_some_and(|(_, rest)| rest.starts_with("mlp.")) {
            return experts(name);
        }
        let stored = renamed(name, &format!("{layers}."), &TOP, &[]);
        Origin::Tensor(match stored.strip_prefix("backbone.") {
            Some(rest) => format!("{prefix}.{rest}"),
            None => stored,
        })
    });
    names::with_head(source, layout)
}

const TOP: [(&str, &str); 2] =
    [("model.embed_tokens", "backbone.embeddings"), ("model.norm", "backbone.norm_f")];

/// Layers that predict further tokens are left out.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.starts_with("mtp.") || names::ignored(spec, name)
}
