//! Llama 4 (text): attention within chunks, layers without rope, an expert that weighs its input beside one for all.

use rillm_nn::{
    MoeSpec, NormKind, NormOrder, NormOver, QkNorm, SharedGate, SharedSpec, Temperature, WeightSource,
};
use rillm_tensor_core::{Pairing, Score, Weigh};

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use super::mixtral::{check_choice, experts_of};
use crate::experts::{self, ExpertNames, Fused, PLAIN};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["llama4_text"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults {
        eps: 1e-5,
        theta: 500_000.0,
        context: 131_072,
        head_dim: Some(128),
        kv_heads: Some(8),
        pairing: Pairing::Interleaved,
        ..DEFAULTS
    };
    let mut spec = follow(c, &defaults)?;
    biases(&mut spec, bias(c, "attention_bias")?, rillm_nn::Bias::None);
    attention(c, &mut spec)?;
    let layers = spec.layers.len();
    let (hidden, dense) = (c.count("intermediate_size")?, c.count_or("intermediate_size_mlp", 16_384)?);
    let counts = [experts_of(c, "num_local_experts", 16)?, c.count_or("num_experts_per_tok", 1)?];
    check_choice(c, counts)?;
    let step = c.count_or("interleave_moe_layer_step", 1)?;
    let sparse: Vec<bool> = match c.opt_numbers("moe_layers")? {
        Some(list) => (0..layers).map(|i| list.contains(&(i as f64))).collect(),
        None => (0..layers).map(|i| (i + 1) % step == 0).collect(),
    };
    spec.mlps().zip(&sparse).filter(|(_, sparse)| !**sparse).for_each(|(mlp, _)| mlp.hidden = dense);
    spec.mix(|i, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, hidden], mlp.act, counts);
        (moe.routing.score, moe.routing.weigh) = (Score::Sigmoid, Weigh::Inputs);
        moe.shared = Some(SharedSpec { hidden, bias: mlp.bias, gate: SharedGate::Open });
        sparse[i].then_some(moe)
    });
    Ok(spec)
}

/// Chunks and rope where `layer_types` and `no_rope_layers` say so, norms after rope, and queries that grow without.
fn attention(c: &Config<'_>, spec: &mut DecoderSpec) -> Result<()> {
    let layers = spec.layers.len();
    let every = c.count_or("no_rope_layer_interval", 4)?;
    let turned: Vec<bool> = match c.opt_numbers("no_rope_layers")?.filter(|list| !list.is_empty()) {
        Some(list) if list.len() == layers => list.iter().map(|x| *x != 0.0).collect(),
        Some(_) => {
            return Err(c.unsupported("no_rope_layers", &format!("one number for each of {layers} layers")));
        }
        None => (0..layers).map(|i| (i + 1) % every != 0).collect(),
    };
    let of = |v: &serde_json::Value| match v.as_str() {
        Some("chunked_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let chunked = match c.get("layer_types") {
        None => turned.clone(),
        Some(types) => types
            .as_array()
            .and_then(|a| a.iter().map(of).collect::<Option<Vec<_>>>())
            .filter(|l| l.len() == layers)
            .ok_or_else(|| {
                c.unsupported("layer_types", &format!("{layers} of full_attention or chunked_attention"))
            })?,
    };
    let chunk = if c.has("attention_chunk_size") { c.opt_count("attention_chunk_size")? } else { Some(8192) };
    // The first files have a number for a truth value.
    let tuned = match c.get("attn_temperature_tuning").and_then(|v| v.as_u64()) {
        Some(n) => n != 0,
        None => c.flag("attn_temperature_tuning", true)?,
    };
    let normed = c.flag("use_qk_norm", true)?;
    let temperature = Temperature {
        beta: c.number_or("attn_scale", 0.1)? as f32,
        step: c.count_or("floor_scale", 8192)?,
        offset: 1,
    };
    let kind = NormKind::RmsPlain { eps: spec.norm.eps() };
    let norm = QkNorm { kind, over: NormOver::Head, order: NormOrder::AfterRope };
    for (attn, (turned, chunked)) in spec.attentions().zip(turned.into_iter().zip(chunked)) {
        attn.params.chunk = chunk.filter(|_| chunked);
        attn.qk_norm = (turned && normed).then_some(norm);
        attn.temperature = (!turned && tuned).then_some(temperature);
        if !turned {
            attn.rope = None;
        }
    }
    Ok(())
}

fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let names = ExpertNames {
        module: "feed_forward",
        inside: &[("gate", "router"), ("shared_experts", "shared_expert")],
        fused: Fused::TransposedHalves,
        ..PLAIN
    };
    experts::layout(spec, source, names)
}
