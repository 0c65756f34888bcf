//! SantaCoder and StarCoder 1: GPT-2 with one key and value head for all queries.

use rillm_nn::{Bias, Origin, WeightSource};

use super::gpt2;
use crate::names::{layer_of, renamed, stacked};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored: gpt2::ignored, ..DecoderFamily::new(&["gpt_bigcode"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = gpt2::spec(c)?;
    let bias = |key| Ok::<_, crate::Error>(if c.flag(key, true)? { Bias::Added } else { Bias::None });
    let (attn_bias, mlp_bias) = (bias("attention_bias")?, bias("mlp_bias")?);
    let one = c.flag("multi_query", true)?;
    for attn in spec.attentions() {
        (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
        if one {
            attn.params.kv_heads = 1;
        }
    }
    spec.mlps().for_each(|mlp| mlp.bias = mlp_bias);
    Ok(spec)
}

/// With several heads, queries, keys and values lie head by head; with one, stacked.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let prefix = gpt2::prefix(source);
    let params = spec.layers.first().and_then(|l| l.attention()).map(|a| a.params);
    Box::new(move |name| {
        let top = [("model.embed_tokens", "wte"), ("model.embed_positions", "wpe"), ("model.norm", "ln_f")];
        let layer = [
            ("input_layernorm", "ln_1"),
            ("post_attention_layernorm", "ln_2"),
            ("self_attn.q_proj", "attn.c_attn"),
            ("self_attn.k_proj", "attn.c_attn"),
            ("self_attn.v_proj", "attn.c_attn"),
            ("self_attn.o_proj", "attn.c_proj"),
            ("mlp.up_proj", "mlp.c_fc"),
            ("mlp.down_proj", "mlp.c_proj"),
        ];
        if name.starts_with("lm_head.") {
            return Origin::Tensor(name.to_owned());
        }
        let stored = format!("{prefix}{}", renamed(name, "h.", &top, &layer));
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let part = layer_of(name).and_then(|(_, rest)| parts.iter().position(|p| rest.starts_with(p)));
        match (part, params) {
            (Some(part), Some(p)) if p.kv_heads == 1 && p.heads > 1 => {
                let (rows, of) = stacked(&[p.q_dim(), p.k_dim(), p.v_dim()], part);
                Origin::Rows { name: stored, rows, of }
            }
            (Some(part), Some(p)) => {
                let d = p.head_dim;
                let (start, run, stride, of) = (part * d, d, 3 * d, 3 * d * p.heads);
                Origin::Strided { name: stored, start, run, stride, of }
            }
            _ => Origin::Tensor(stored),
        }
    })
}
