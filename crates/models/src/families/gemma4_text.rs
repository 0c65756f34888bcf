//! Gemma 4 (text): Gemma 3 with heads of another size where there is no window, per-layer embeddings, layers that read
//! another's keys, and a factor on each layer.

use std::sync::Arc;

use rillm_nn::{KeyValues, NormKind, PerLayerSpec, QkNorm, RopeScaling, RopeSpec, RotaryEmbedding};
use rillm_tensor_core::Activation;

use super::llama::{DEFAULTS, Defaults, bias, follow};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, MixerSpec, NormSpec, Norms, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { ignored, ..DecoderFamily::new(&["gemma4_text"], spec) };

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
    if c.flag("enable_moe_block", false)? {
        return Err(c.unsupported("enable_moe_block", "false"));
    }
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
    attentions(c, &mut spec, &layers)?;
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

fn attentions(c: &Config<'_>, spec: &mut DecoderSpec, layers: &Layers) -> Result<()> {
    let window = c.count_or("sliding_window", 512)?;
    let attn_bias = bias(c, "attention_bias")?;
    let same = c.flag("attention_k_eq_v", false)?;
    let (norm, first_shared) = (spec.norm, layers.first_shared);
    // Layers of a kind share theirs: each has frequencies of its own length.
    let mut ropes: Vec<((usize, bool), Arc<RotaryEmbedding>)> = Vec::new();
    for (i, (attn, sliding)) in spec.attentions().zip(&layers.sliding).enumerate() {
        let p = &mut attn.params;
        p.scale = 1.0;
        p.window = sliding.then_some(window);
        (p.head_dim, p.kv_heads) = heads(c, i, *sliding)?;
        p.v_head_dim = p.head_dim;
        let kind = (p.head_dim, *sliding);
        if !ropes.iter().any(|(k, _)| *k == kind) {
            ropes.push((kind, rope(c, p.head_dim, *sliding)?));
        }
        attn.rope = ropes.iter().find(|(k, _)| *k == kind).map(|(_, rope)| rope.clone());
        if !p.heads.is_multiple_of(p.kv_heads) {
            return Err(c.unsupported("num_global_key_value_heads", "a divisor of the heads"));
        }
        attn.kv = match (i >= first_shared, same && !sliding) {
            (true, _) => KeyValues::Shared,
            (_, true) => KeyValues::Same,
            _ => KeyValues::Projected,
        };
        attn.qk_norm = Some(QkNorm::heads(norm));
        attn.v_norm = Some(NormKind::RmsPlain { eps: norm.eps() });
        (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
    }
    Ok(())
}

/// Values of a head, and heads of keys and values, of layer `i`: in `per_layer_config`, or under keys of their own for
/// layers without a window.
fn heads(c: &Config<'_>, i: usize, sliding: bool) -> Result<(usize, usize)> {
    let all = (c.count_or("head_dim", 256)?, c.count("num_key_value_heads")?);
    if let Some(layers) = c.object("per_layer_config")? {
        let Some(layer) = layers.object(&i.to_string())? else { return Ok(all) };
        let known = ["head_dim", "num_key_value_heads"];
        if let Some(other) = layer.keys().find(|key| !known.contains(key)) {
            return Err(layer.unsupported(other, "nothing: only sizes of heads differ between layers"));
        }
        return Ok((layer.count_or("head_dim", all.0)?, layer.count_or("num_key_value_heads", all.1)?));
    }
    if sliding {
        return Ok(all);
    }
    let kv_heads = match c.flag("attention_k_eq_v", false)? {
        true => c.count_or("num_global_key_value_heads", all.1)?,
        false => all.1,
    };
    Ok((c.count_or("global_head_dim", 512)?, kv_heads))
}

fn rope(c: &Config<'_>, head_dim: usize, sliding: bool) -> Result<Arc<RotaryEmbedding>> {
    let (layer_type, theta) = if sliding { ("sliding_attention", 1e4) } else { ("full_attention", 1e6) };
    let rope = c.rope(head_dim, theta, Some(layer_type))?;
    let rope = match c.object("rope_parameters")? {
        // A quarter of the pairs turn.
        None if !sliding => {
            let scaling = RopeScaling::Proportional { rotated: head_dim / 8, factor: 1.0 };
            RopeSpec { scaling, ..rope }
        }
        _ => rope,
    };
    Ok(Arc::new(RotaryEmbedding::new(rope)))
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
