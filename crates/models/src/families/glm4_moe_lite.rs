//! GLM 4.7 Flash: DeepSeek V3 with layers that say whether they are dense.

use super::common::{DEFAULTS, Defaults, follow};
use super::deepseek_v2::{Ranks, latent, rotated};
use super::deepseek_v3::{Mixture, ignored, mix, number_or};
use super::qwen3_moe::plain_layout;
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily =
    DecoderFamily { layout: plain_layout, ignored, ..DecoderFamily::new(&["glm4_moe_lite"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec =
        follow(c, &Defaults { eps: 1e-5, context: 202_752, head_dim: rotated(c, 64)?, ..DEFAULTS })?;
    latent(c, &mut spec, &Ranks { q: Some(768), kv: 512, nope: 192, rope: 64, v: 256 })?;
    let sparse = sparse_layers(c, spec.layers.len())?;
    let moe =
        Mixture { hidden: 1536, experts: 64, top_k: 4, shared: 1, groups: [1, 1], scale: 1.8, norm: true };
    mix(c, &mut spec, &moe, |i| sparse[i])?;
    Ok(spec)
}

/// `mlp_layer_types`, where `first_k_dense_replace` of older files means the same.
pub(super) fn sparse_layers(c: &Config<'_>, layers: usize) -> Result<Vec<bool>> {
    let dense = number_or(c, "first_k_dense_replace", 1)?;
    let by_index = |i: usize| if i < dense { "dense" } else { "sparse" };
    let kinds = c.layer_names("mlp_layer_types", layers, &["dense", "sparse"], by_index)?;
    Ok(kinds.into_iter().map(|kind| kind == "sparse").collect())
}
