//! MiniMax-Text: lightning attention in every other layer, attention with rope in the others, experts, and residuals of
//! normalised rows.

use rillm_nn::{LightningSpec, MoeSpec, NormKind, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::common::{DEFAULTS, Defaults, attention, layer_count_or};
use super::mixtral::{NAMES, check_choice, experts_of};
use crate::experts::{self, PLAIN};
use crate::names::{self, layer_of};
use crate::{
    BranchSpec, Config, DecoderFamily, DecoderSpec, GroupSpec, HeadSpec, LayerSpec, Layout, MixerSpec,
    NormSpec, Result,
};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["minimax"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let (dim, norm) = (c.count_or("hidden_size", 4096)?, c.rms_norm(1e-5)?);
    let act = c.activation("hidden_act", Activation::Silu)?;
    let defaults = Defaults { theta: 1_000_000.0, context: 131_072, kv_heads: Some(8), ..DEFAULTS };
    let (mut attn, context) = attention(c, dim, &defaults)?;
    attn.params.window = c.opt_count("sliding_window")?;
    let counts = [experts_of(c, "num_local_experts", 8)?, c.count_or("num_experts_per_tok", 2)?];
    check_choice(c, counts)?;
    let mut moe = MoeSpec::new([dim, c.count_or("intermediate_size", 14_336)?], act, counts);
    moe.routing.normalize = Some(0.0);
    let n = layer_count_or(c, "num_hidden_layers", 32)?;
    let by_index = |i: usize| if i.is_multiple_of(2) { "full_attention" } else { "linear_attention" };
    let kinds = c.layer_names("layer_types", n, &["full_attention", "linear_attention"], by_index)?;
    let factors = |part: &str| {
        let factor =
            |end: &str| Ok::<_, crate::Error>(c.number_or(&format!("{part}_{end}_factor"), 1.0)? as f32);
        Ok::<_, crate::Error>((factor("alpha")?, factor("beta")?))
    };
    let (full, linear, mlp) = (factors("full_attn")?, factors("linear_attn")?, factors("mlp")?);
    let (heads, head_dim) = (attn.params.heads, attn.params.head_dim);
    let group = |name, mixer, norm_name, (keep, add): (f32, f32)| {
        let used = |x: f32| Some(x).filter(|x| *x != 1.0);
        let branch = BranchSpec { factor: used(add), ..BranchSpec::new(name, mixer, None) };
        let entry = Some(NormSpec { name: norm_name, kind: norm });
        GroupSpec { entry, keep: used(keep), ..vec![branch].into() }
    };
    let layer = |(i, kind): (usize, &str)| {
        let first = match kind {
            "linear_attention" => {
                // Of the class, not of the configuration.
                let (at, norm) = ([i, n], NormKind::Rms { eps: 1e-6 });
                let spec = LightningSpec { dim, heads, head_dim, act, norm, at };
                group("self_attn", MixerSpec::Lightning(spec), "input_layernorm", linear)
            }
            _ => group("self_attn", MixerSpec::Attention(attn.clone()), "input_layernorm", full),
        };
        LayerSpec(vec![first, group("mlp", MixerSpec::Moe(moe), "post_attention_layernorm", mlp)])
    };
    Ok(DecoderSpec {
        context,
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 32_000)?],
            kinds.into_iter().enumerate().map(layer).collect(),
            norm,
            HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
        )
    })
}

/// transformers stores the decays too.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    let made = ["slope_rate", "query_decay", "key_decay", "diagonal_decay"];
    name.rsplit('.').next().is_some_and(|leaf| made.contains(&leaf)) || names::ignored(spec, name)
}

/// Lightning attention's projections are fused head by head, and its parts have names of their own.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let old = source.names().iter().any(|n| n.contains(".block_sparse_moe."));
    let names = if old { NAMES } else { PLAIN };
    let experts = experts::layout(spec, source, names);
    let lightning: Vec<Option<LightningSpec>> = spec
        .layers
        .iter()
        .map(|l| {
            l.branches().find_map(|b| if let MixerSpec::Lightning(l) = &b.mixer { Some(*l) } else { None })
        })
        .collect();
    Box::new(move |name| {
        let part = layer_of(name).and_then(|(i, rest)| {
            let l = lightning.get(i)?.as_ref()?;
            let projection = rest.strip_prefix("self_attn.")?.strip_suffix(".weight")?;
            let part = ["q_proj", "k_proj", "v_proj"].iter().position(|p| *p == projection)?;
            let (run, stride) = (l.head_dim, 3 * l.head_dim);
            let name = format!("model.layers.{i}.self_attn.qkv_proj.weight");
            Some(Origin::Strided { name, start: part * run, run, stride, of: stride * l.heads })
        });
        part.unwrap_or_else(|| experts(name))
    })
}
