//! Phi-3 to 4: Llama with fused projections, rope on a part of each head, longrope.

use rillm_nn::{Origin, WeightSource};

use super::common::{DEFAULTS, Defaults, follow};
use crate::names::{layer_of, stacked};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["phi3"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { eps: 1e-5, context: 4096, ..DEFAULTS })?;
    let window = c.opt_count("sliding_window")?;
    spec.attentions().for_each(|attn| attn.params.window = window);
    Ok(spec)
}

fn layout(spec: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    let widths: Vec<_> = spec
        .layers
        .iter()
        .map(|l| {
            let qkv = l.attention().map_or([0; 3], |a| {
                let p = &a.params;
                [p.q_dim(), p.k_dim(), p.v_dim()]
            });
            (qkv, [l.mlp().map_or(0, |mlp| mlp.hidden); 2])
        })
        .collect();
    Box::new(move |name| {
        let fused = layer_of(name).and_then(|(i, rest)| {
            let (qkv, gate_up) = widths.get(i)?;
            let (stored, (rows, of)) = match rest {
                "self_attn.q_proj.weight" => ("self_attn.qkv_proj", stacked(qkv, 0)),
                "self_attn.k_proj.weight" => ("self_attn.qkv_proj", stacked(qkv, 1)),
                "self_attn.v_proj.weight" => ("self_attn.qkv_proj", stacked(qkv, 2)),
                "mlp.gate_proj.weight" => ("mlp.gate_up_proj", stacked(gate_up, 0)),
                "mlp.up_proj.weight" => ("mlp.gate_up_proj", stacked(gate_up, 1)),
                _ => return None,
            };
            Some(Origin::Rows { name: format!("model.layers.{i}.{stored}.weight"), rows, of })
        });
        fused.unwrap_or_else(|| Origin::Tensor(name.to_owned()))
    })
}
