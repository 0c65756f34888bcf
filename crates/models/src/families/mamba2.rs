//! Mamba-2: state spaces with one decay for each head, and nothing else.

use rillm_nn::{GateOrder, GatedNorm, Mamba2Spec, NormKind};

use super::common::{bias, bias_or, layer_count_or};
use super::mamba::layout;
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["mamba2"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    c.only("hidden_act", "silu")?;
    let dim = c.count_or("hidden_size", 4096)?;
    let (heads, head_dim) = (c.count_or("num_heads", 128)?, c.count_or("head_dim", 64)?);
    let groups = c.count_or("n_groups", 8)?;
    divides(c, "n_groups", groups, heads)?;
    if heads * head_dim != c.multiple("expand", 2.0, dim)? {
        return Err(c.unsupported("expand", "num_heads * head_dim / hidden_size"));
    }
    let eps = c.positive_or("layer_norm_epsilon", 1e-5)? as f32;
    let mamba = Mamba2Spec {
        dim,
        heads,
        head_dim,
        state: c.count_or("state_size", 128)?,
        groups,
        taps: c.count_or("conv_kernel", 4)?,
        in_bias: bias(c, "use_bias")?,
        out_bias: bias(c, "use_bias")?,
        conv_bias: bias_or(c, "use_conv_bias", true)?,
        dt_limits: dt_limits(c)?,
        norm: Some(GatedNorm { eps, groups, order: GateOrder::GateFirst }),
        factors: None,
    };
    let norm = NormKind::Rms { eps };
    let layer = LayerSpec::in_turn([BranchSpec::normed("mixer", MixerSpec::Mamba2(mamba), "norm", norm)]);
    Ok(DecoderSpec::new(
        [dim, c.count_or("vocab_size", 32_768)?],
        vec![layer; layer_count_or(c, "num_hidden_layers", 64)?],
        norm,
        HeadSpec::plain(c.flag("tie_word_embeddings", false)?),
    ))
}

/// What the `mamba_` keys of a hybrid say of its layers of `inner` values, without a norm.
pub(super) fn prefixed(c: &Config<'_>, dim: usize, inner: usize) -> Result<Mamba2Spec> {
    c.only("hidden_act", "silu")?;
    let (heads, groups) = (c.count_or("mamba_n_heads", 128)?, c.count_or("mamba_n_groups", 1)?);
    divides(c, "mamba_n_heads", heads, inner)?;
    divides(c, "mamba_n_groups", groups, heads)?;
    // Which may also be written as "auto".
    let head_dim = match c.get("mamba_d_head") {
        Some(value) if value.as_str() != Some("auto") => c.count("mamba_d_head")?,
        _ => inner / heads,
    };
    if head_dim * heads != inner {
        return Err(c.unsupported("mamba_d_head", &format!("{}", inner / heads)));
    }
    let proj_bias = bias(c, "mamba_proj_bias")?;
    Ok(Mamba2Spec {
        dim,
        heads,
        head_dim,
        state: c.count_or("mamba_d_state", 256)?,
        groups,
        taps: c.count_or("mamba_d_conv", 4)?,
        in_bias: proj_bias,
        out_bias: proj_bias,
        conv_bias: bias_or(c, "mamba_conv_bias", true)?,
        dt_limits: dt_limits(c)?,
        norm: None,
        factors: None,
    })
}

/// Refuses `n`, the value of `key`, unless it divides `of`.
pub(super) fn divides(c: &Config<'_>, key: &str, n: usize, of: usize) -> Result<()> {
    if of.is_multiple_of(n) { Ok(()) } else { Err(c.unsupported(key, &format!("a divisor of {of}"))) }
}

/// `time_step_limit`: the least and the greatest step.
fn dt_limits(c: &Config<'_>) -> Result<[f32; 2]> {
    Ok(c.limits("time_step_limit", [0.0, f64::INFINITY])?.map(|x| x as f32))
}
