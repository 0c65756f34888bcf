//! StableLM 2: Llama with LayerNorm and rope on a quarter of each head; in some sizes side by side and with head norms.

use rillm_nn::{NormKind, NormOrder, NormOver, Origin, QkNorm, WeightSource};

use super::common::{DEFAULTS, Defaults, bias, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Norms, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["stablelm"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec = follow(c, &Defaults { part: 0.25, context: 4096, kv_heads: Some(32), ..DEFAULTS })?;
    let norm = c.layer_norm("layer_norm_eps", |eps| NormKind::Layer { eps })?;
    spec.map_norms(|_| norm);
    let qkv_bias = bias(c, "use_qkv_bias")?;
    let heads = QkNorm { kind: norm, over: NormOver::EachHead, order: NormOrder::BeforeRope };
    let qk_norm = c.flag("qk_layernorm", false)?.then_some(heads);
    for attn in spec.attentions() {
        (attn.qkv_bias, attn.qk_norm) = (qkv_bias, qk_norm);
    }
    if c.flag("use_parallel_residual", false)? {
        spec.arrange(Norms::Parallel);
    }
    Ok(spec)
}

/// Each head's norm is a module in a list.
fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| {
        let name = name.replace(".q_norm.", ".q_layernorm.norms.").replace(".k_norm.", ".k_layernorm.norms.");
        Origin::Tensor(name)
    })
}
