//! RWKV-7: time mixing and channel mixing, no attention. As flash-linear-attention's and mlx-lm's checkpoints have it.

use rillm_nn::{ChannelMixSpec, NormKind, Origin, TimeMixSpec, WeightSource};

use super::common::layer_count;
use super::mamba2::divides;
use crate::names::{self, renamed};
use crate::{
    BranchSpec, Config, DecoderFamily, DecoderSpec, GroupSpec, HeadSpec, LayerSpec, Layout, MixerSpec,
    NormSpec, Result,
};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ignored, ..DecoderFamily::new(&["rwkv7"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    c.only("hidden_act", "sqrelu")?;
    if c.get("attn").is_some() {
        return Err(c.unsupported("attn", "null"));
    }
    for key in ["norm_first", "norm_bias"] {
        if !c.flag(key, true)? {
            return Err(c.unsupported(key, "true"));
        }
    }
    let (dim, head_dim) = (c.count("hidden_size")?, c.count("head_dim")?);
    divides(c, "head_dim", head_dim, dim)?;
    if c.opt_count("num_heads")?.is_some_and(|heads| heads != dim / head_dim) {
        return Err(c.unsupported("num_heads", "hidden_size / head_dim"));
    }
    let widths = c.get("value_dim").map_or(&[][..], |v| v.as_array().map_or(std::slice::from_ref(v), |v| v));
    if widths.iter().any(|width| width.as_u64() != Some(dim as u64)) {
        return Err(c.unsupported("value_dim", "hidden_size"));
    }
    let eps = c.opt_number("norm_eps")?.filter(|eps| *eps > 0.0);
    let eps = eps.ok_or_else(|| c.unsupported("norm_eps", "a number above zero"))?;
    let norm = NormKind::Layer { eps: eps as f32 };
    let first = TimeMixSpec {
        dim,
        head_dim,
        decay_rank: c.count("decay_low_rank_dim")?,
        rate_rank: c.count("a_low_rank_dim")?,
        gate_rank: c.count("gate_low_rank_dim")?,
        value_rank: None,
    };
    let later = TimeMixSpec { value_rank: Some(c.count("v_low_rank_dim")?), ..first };
    let channels = ChannelMixSpec { dim, hidden: c.count("intermediate_size")? };
    let layer = |i: usize| {
        let time = MixerSpec::TimeMix(if i == 0 { first } else { later });
        let time = GroupSpec {
            entry: (i == 0).then_some(NormSpec { name: "pre_norm", kind: norm }),
            ..vec![BranchSpec::normed("attn", time, "attn_norm", norm)].into()
        };
        let channels = BranchSpec::normed("ffn", MixerSpec::ChannelMix(channels), "ffn_norm", norm);
        LayerSpec(vec![time, vec![channels].into()])
    };
    Ok(DecoderSpec::new(
        [dim, c.count("vocab_size")?],
        (0..layer_count(c, "num_hidden_layers")?).map(layer).collect(),
        norm,
        HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
    ))
}

fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    let top = [("model.embed_tokens", "model.embeddings")];
    Box::new(move |name| Origin::Tensor(renamed(name, "model.layers.", &top, &[])))
}

/// In GGUF the first layer, whose values are mixed with no others, has placeholders for what mixes them.
fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    let unused = ["v0", "v1", "v2"].map(|part| format!("blk.0.time_mix_{part}.weight"));
    unused.iter().any(|unused| unused == name) || names::ignored(spec, name)
}
