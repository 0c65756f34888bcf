//! Where checkpoints of Kimi Linear keep parameters.

use rillm_nn::{Origin, WeightSource};

use crate::experts::{self, ExpertNames, PLAIN};
use crate::names::{layer_of, with_head};
use crate::{DecoderSpec, Layout};

/// The files of Moonshot say `block_sparse_moe` for mixtures; transformers gathers the parts of the forget gate, and the
/// three convolutions in one.
pub(super) fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let stored = source.names();
    let any = |part: &str| stored.iter().any(|n| n.contains(part));
    let module = if any(".block_sparse_moe.") { "block_sparse_moe" } else { PLAIN.module };
    let apart = any(".mlp.e_score_correction_bias");
    let inside: &[(&str, &str)] =
        if apart { &[("gate.e_score_correction_bias", "e_score_correction_bias")] } else { &[] };
    let experts = experts::layout(spec, source, ExpertNames { module, inside, ..PLAIN });
    // transformers calls dense feed-forward layers so, too.
    let dense_too = any(".block_sparse_moe.gate_proj.");
    let (gathered, mlx) = (any(".forget_gate."), any(".q_conv.conv."));
    let mixtures: Vec<bool> = spec.layers.iter().map(|l| l.moe().is_some()).collect();
    let layout = Box::new(move |name: &str| {
        let Some((i, rest)) = layer_of(name) else { return Origin::Tensor(name.to_owned()) };
        if rest.starts_with("mlp.") {
            let mixture = mixtures.get(i).copied().unwrap_or(false);
            return if mixture || dense_too { experts(name) } else { Origin::Tensor(name.to_owned()) };
        }
        let at = |part: &str| format!("model.layers.{i}.self_attn.{part}");
        let Some(part) = rest.strip_prefix("self_attn.") else { return Origin::Tensor(name.to_owned()) };
        match part {
            "q_conv1d.weight" | "k_conv1d.weight" | "v_conv1d.weight" if mlx => {
                Origin::Tensor(at(&part.replace("conv1d", "conv.conv")))
            }
            "f_a_proj.weight" | "f_b_proj.weight" | "dt_bias" | "A_log" if gathered => {
                Origin::Tensor(at(&format!("forget_gate.{part}")))
            }
            _ => Origin::Tensor(name.to_owned()),
        }
    });
    with_head(source, layout)
}
