//! Mamba and Falcon-Mamba: selective state spaces and nothing else.

use rillm_nn::{MambaNorms, MambaSpec, NormKind, Origin, WeightSource};

use super::common::{bias, bias_or, layer_count_or};
use crate::names::renamed;
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout, ..DecoderFamily::new(&["mamba", "falcon_mamba"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    c.only("hidden_act", "silu")?;
    let dim = c.count_or("hidden_size", 768)?;
    let norms = if c.model_type()? == "falcon_mamba" || c.flag("use_bcdt_rms", false)? {
        MambaNorms::Plain { eps: c.positive_or("mixer_rms_eps", 1e-6)? as f32 }
    } else {
        MambaNorms::None
    };
    let mamba = MambaSpec {
        dim,
        inner: c.count_or("intermediate_size", c.multiple("expand", 2.0, dim)?)?,
        state: c.count_or("state_size", 16)?,
        taps: c.count_or("conv_kernel", 4)?,
        dt_rank: dt_rank(c, "time_step_rank", dim)?,
        bias: bias(c, "use_bias")?,
        conv_bias: bias_or(c, "use_conv_bias", true)?,
        norms,
    };
    let norm = NormKind::Rms { eps: c.positive_or("layer_norm_epsilon", 1e-5)? as f32 };
    let layer = LayerSpec::in_turn([BranchSpec::normed("mixer", MixerSpec::Mamba(mamba), "norm", norm)]);
    Ok(DecoderSpec::new(
        [dim, c.count_or("vocab_size", 50_280)?],
        vec![layer; layer_count_or(c, "num_hidden_layers", 32)?],
        norm,
        HeadSpec::plain(c.flag("tie_word_embeddings", true)?),
    ))
}

/// A number, or `"auto"`: a sixteenth of the width.
pub(super) fn dt_rank(c: &Config<'_>, key: &str, dim: usize) -> Result<usize> {
    match c.get(key) {
        Some(value) if value.as_str() != Some("auto") => c.count(key),
        _ => Ok(dim.div_ceil(16)),
    }
}

pub(super) fn layout(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| Origin::Tensor(renamed(name, "backbone.layers.", &TOP, &[])))
}

const TOP: [(&str, &str); 2] =
    [("model.embed_tokens", "backbone.embeddings"), ("model.norm", "backbone.norm_f")];
