//! Rotary embeddings: `rope_parameters` of config.json.

use super::config::Config;
use super::metadata::Metadata;
use crate::Result;
use crate::config::rotated_part;

/// The parameters of layers without a window, or of all.
pub(super) fn rope(m: &Metadata<'_>) -> Result<Config> {
    let mut p = unscaled(m, m.number("rope.freq_base")?, "")?;
    scaling(m, &mut p)?;
    Ok(p)
}

/// Parameters without scaling, of which `suffix` says of which layers they are; `theta` where no key does.
pub(super) fn unscaled(m: &Metadata<'_>, theta: Option<f32>, suffix: &str) -> Result<Config> {
    let mut p = Config::default();
    p.set("rope_type", "default");
    p.set("rope_theta", theta.unwrap_or(10_000.0));
    let head_dim = m.head_dim_of(suffix)?;
    let dims = m.count(&format!("rope.dimension_count{suffix}"))?.unwrap_or(head_dim);
    p.set("partial_rotary_factor", rotated_part(dims, head_dim));
    Ok(p)
}

fn scaling(m: &Metadata<'_>, p: &mut Config) -> Result<()> {
    let type_key = "rope.scaling.type";
    let factor = match m.factor("rope.scaling.factor")? {
        // The older name.
        None => m.factor("rope.scale_linear")?,
        factor => factor,
    };
    let factors = m.values("rope_freqs.weight")?;
    let long = m.values("rope_factors_long.weight")?;
    let original = m.count("rope.scaling.original_context_length")?;
    let kind = m.g.str(&m.key(type_key))?.unwrap_or("linear");
    match (kind, factor, factors, long) {
        (_, _, _, Some(long)) => {
            p.set("rope_type", "longrope");
            p.set("long_factor", long);
            p.set("short_factor", m.values("rope_factors_short.weight")?);
            p.set("attention_factor", m.number("rope.scaling.attn_factor")?);
            p.set("original_max_position_embeddings", original);
        }
        ("none", _, None, _) | ("linear", None, None, _) => {}
        ("linear", Some(factor), None, _) => {
            p.set("rope_type", "linear");
            p.set("factor", factor);
        }
        ("yarn", Some(factor), None, _) => {
            p.set("rope_type", "yarn");
            p.set("factor", factor);
            p.set("original_max_position_embeddings", original);
            p.set("beta_fast", m.number("rope.scaling.yarn_beta_fast")?);
            p.set("beta_slow", m.number("rope.scaling.yarn_beta_slow")?);
            p.set("attention_factor", m.number("rope.scaling.yarn_attn_factor")?);
        }
        // Both apply where both are there.
        ("none" | "linear", factor, Some(factors), _) => {
            let factor = factor.filter(|_| kind == "linear").unwrap_or(1.0);
            p.set("rope_type", "gguf_factors");
            p.set("factors", factors.iter().map(|x| x * factor).collect::<Vec<_>>());
        }
        _ => {
            return Err(m.unsupported(type_key, "none, linear with factor, or yarn with factor alone", kind));
        }
    }
    Ok(())
}
