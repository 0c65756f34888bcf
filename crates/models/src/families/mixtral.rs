//! Mixtral: Mistral with experts for feed-forward layers.

use rillm_nn::{MoeSpec, WeightSource};

use super::common::{DEFAULTS, Defaults, follow};
use crate::experts::{self, ExpertNames, PLAIN};
use crate::{Config, DecoderFamily, DecoderSpec, Layout, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["mixtral"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let defaults = Defaults { eps: 1e-5, theta: 1e6, context: 131_072, kv_heads: Some(8), ..DEFAULTS };
    let mut spec = follow(c, &defaults)?;
    let window = c.opt_count("sliding_window")?;
    spec.attentions().for_each(|attn| attn.params.window = window);
    let counts = [experts_of(c, "num_local_experts", 8)?, c.count_or("num_experts_per_tok", 2)?];
    check_choice(c, counts)?;
    spec.mix(|_, mlp| {
        let mut moe = MoeSpec::new([mlp.dim, mlp.hidden], mlp.act, counts);
        moe.routing.normalize = Some(0.0);
        Some(moe)
    });
    Ok(spec)
}

/// No model has more; a hostile count must not allocate without a file behind it.
const MAX_EXPERTS: usize = 4096;

/// The number of experts, under the name `key` or, as transformers writes it for some, another's.
pub(super) fn experts_of(c: &Config<'_>, key: &str, default: usize) -> Result<usize> {
    let names = [key, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];
    let key = names.into_iter().find(|name| c.get(name).is_some()).unwrap_or(key);
    match c.count_or(key, default)? {
        n if n <= MAX_EXPERTS => Ok(n),
        _ => Err(c.unsupported(key, &format!("at most {MAX_EXPERTS}"))),
    }
}

/// Whether so many experts can be chosen.
pub(super) fn check_choice(c: &Config<'_>, [experts, top_k]: [usize; 2]) -> Result<()> {
    if top_k > experts {
        let key =
            ["moe_k", "top_k_experts"].into_iter().find(|key| c.has(key)).unwrap_or("num_experts_per_tok");
        return Err(c.unsupported(key, &format!("at most the {experts} experts")));
    }
    Ok(())
}

pub(super) const NAMES: ExpertNames = ExpertNames { module: "block_sparse_moe", ..PLAIN };

pub(super) fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    experts::layout(spec, source, NAMES)
}
