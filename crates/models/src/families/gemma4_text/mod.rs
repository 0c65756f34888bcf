//! Gemma 4 (text): Gemma 3 with heads of another size where there is no window, experts beside the feed-forward layers,
//! per-layer embeddings, layers that read another's keys, and a factor on each layer.

mod attention;
mod experts;

use rillm_nn::{KeyValues, PerLayerSpec};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, follow};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, MixerSpec, NormSpec, Norms, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: experts::layout, ignored, ..DecoderFamily::new(&["gemma4_text"], spec) };

const COUNTS: [(&str, usize); 6] = [
    ("vocab_size", 262_144),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 30),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
];

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let c = &c.with_counts(&COUNTS);
    if c.get("use_bidirectional_attention").is_some_and(|v| v != "vision") {
        return Err(c.unsupported("use_bidirectional_attention", "null or vision"));
    }
    let defaults = Defaults {
        tied: true,
        context: 131_072,
        head_dim: Some(256),
        rope_of: Some("sliding_attention"),
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    spec.embed_scale = Some((spec.dim as f32).sqrt());
    spec.head.softcap = c.opt_number("final_logit_softcapping")?.map(|x| x as f32);
    spec.arrange(Norms::PreAndPost);
    let act = c.activation("hidden_activation", Activation::GeluTanh)?;
    let layers = Layers::new(c, spec.layers.len())?;
    attention::set(c, &mut spec, &layers)?;
    let wide = c.flag("use_double_wide_mlp", false)?;
    for (i, mlp) in spec.mlps().enumerate() {
        mlp.act = act;
        mlp.hidden *= if wide && i >= layers.first_shared { 2 } else { 1 };
    }
    for (i, branch) in spec.layers.iter_mut().enumerate().skip(layers.first_shared) {
        let source = (0..layers.first_shared).rposition(|j| layers.sliding[j] == layers.sliding[i]);
        let none = || c.unsupported("num_kv_shared_layers", "a layer of each kind with keys of its own");
        let source = source.ok_or_else(none)?;
        branch.branches_mut().for_each(|b| b.cache_of = Some(source).filter(|_| b.name == "self_attn"));
    }
    experts::add(c, &mut spec, act)?;
    per_layer(c, &mut spec, act)?;
    for layer in &mut spec.layers {
        if let Some(group) = layer.0.last_mut() {
            group.scalar = Some("layer_scalar");
        }
    }
    Ok(spec)
}

/// Which layers have a window, and from which on they read the keys of others.
struct Layers {
    sliding: Vec<bool>,
    first_shared: usize,
}

impl Layers {
    fn new(c: &Config<'_>, layers: usize) -> Result<Self> {
        let mut sliding = c.sliding_layers(layers, |i| (i + 1) % 6 != 0)?;
        // As transformers does.
        sliding.last_mut().into_iter().for_each(|last| *last = false);
        let key = "num_kv_shared_layers";
        let shared = c.get(key).map_or(Some(0), |v| v.as_u64()).and_then(|n| usize::try_from(n).ok());
        let first_shared = shared.and_then(|n| layers.checked_sub(n));
        let wrong = || c.unsupported(key, "a number of layers");
        Ok(Self { sliding, first_shared: first_shared.ok_or_else(wrong)? })
    }
}

/// The third part of each layer.
fn per_layer(c: &Config<'_>, spec: &mut DecoderSpec, act: Activation) -> Result<()> {
    let width = match c.get("hidden_size_per_layer_input") {
        Some(v) if v.as_u64() == Some(0) => return Ok(()),
        None if c.has("hidden_size_per_layer_input") => return Ok(()),
        _ => c.count_or("hidden_size_per_layer_input", 256)?,
    };
    let vocab = c.count_or("vocab_size_per_layer_input", 262_144)?;
    let (dim, layers, kind) = (spec.dim, spec.layers.len(), spec.norm);
    let per_layer = PerLayerSpec { dim, vocab, layers, width, act, norm: kind };
    spec.per_layer = Some(per_layer);
    let post_norm = Some(NormSpec { name: "post_per_layer_input_norm", kind });
    for layer in &mut spec.layers {
        let branch = BranchSpec::new("", MixerSpec::PerLayerGate(per_layer), None);
        layer.0.push(vec![BranchSpec { post_norm, ..branch }].into());
    }
    Ok(())
}

/// Layers that read the keys of others may have projections that nobody uses, under GGUF's names too.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    let shared = |i: usize| spec.layers.get(i)?.attention().map(|a| a.kv == KeyValues::Shared);
    let unused = match (crate::names::layer_of(name), name.strip_prefix("blk.")) {
        (Some((i, rest)), _) => {
            let module = rest.strip_prefix("self_attn.").and_then(|rest| rest.split('.').next());
            matches!(module, Some("k_proj" | "v_proj" | "k_norm" | "v_norm")) && shared(i) == Some(true)
        }
        (_, Some(rest)) => {
            let (i, module) = rest.split_once('.').unwrap_or_default();
            matches!(module, "attn_k.weight" | "attn_v.weight" | "attn_k_norm.weight")
                && i.parse().ok().and_then(shared) == Some(true)
        }
        _ => false,
    };
    unused || crate::names::ignored(spec, name)
}
