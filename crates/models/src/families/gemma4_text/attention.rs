//! Gemma 4's attention: sizes of heads, keys that are values, ropes of two kinds.

use std::sync::Arc;

use rillm_nn::{KeyValues, NormKind, QkNorm, RopeScaling, RopeSpec, RotaryEmbedding};

use super::super::common::bias;
use super::Layers;
use crate::{Config, DecoderSpec, Result};

/// Makes `spec`'s attention Gemma 4's.
pub(super) fn set(c: &Config<'_>, spec: &mut DecoderSpec, layers: &Layers) -> Result<()> {
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
