//! Where parameters are: from the names of Hugging Face checkpoints to GGUF's, and what became of the values.

use std::collections::HashMap;

use rillm_nn::Origin;

use super::architecture::{Architecture, Stored};
use super::metadata::Metadata;
use crate::names::{Pairs, stacked};
use crate::{Layout, Result};

/// Outside of layers: the checkpoint's name and the stored one.
const TOP: &Pairs = &[
    ("model.embed_tokens", "token_embd"),
    ("model.wte", "token_embd"),
    ("gpt_neox.embed_in", "token_embd"),
    ("model.wpe", "position_embd"),
    ("model.norm", "output_norm"),
    ("model.ln_f", "output_norm"),
    ("model.final_layernorm", "output_norm"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("lm_head", "output"),
    ("embed_out", "output"),
    ("model.embed_tokens_per_layer", "per_layer_token_embd"),
    ("model.per_layer_model_projection", "per_layer_model_proj"),
    ("model.per_layer_projection_norm", "per_layer_proj_norm"),
];

/// Before the number of a layer. Of gpt2's names those of mlx-lm, whose matrices are `[out, in]` as in GGUF.
const LAYERS: [&str; 3] = ["model.layers.", "model.h.", "gpt_neox.layers."];

/// In a layer.
const MODULES: &Pairs = &[
    ("input_layernorm", "attn_norm"),
    ("attention_layernorm", "attn_norm"),
    ("ln_1", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("feedforward_layernorm", "ffn_norm"),
    ("ln_2", "ffn_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.query_layernorm", "attn_q_norm"),
    ("self_attn.key_layernorm", "attn_k_norm"),
    ("self_attn.q_layernorm", "attn_q_norm"),
    ("self_attn.k_layernorm", "attn_k_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("attn.c_attn", "attn_qkv"),
    ("attention.query_key_value", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("attn.c_proj", "attn_output"),
    ("self_attn.dense", "attn_output"),
    ("attention.dense", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.fc2", "ffn_down"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("per_layer_input_gate", "inp_gate"),
    ("per_layer_projection", "proj"),
    ("post_per_layer_input_norm", "post_norm"),
];

/// Where the parameters of the checkpoint that `m` was converted from are in it.
pub(super) fn layout(m: &Metadata<'_>) -> Result<Layout> {
    let (heads, kv_heads) = (m.heads()?, m.kv_heads_by_layer()?.first().copied().unwrap_or(0));
    let head_dim = m.head_dim()?;
    // Bounded by what is in the file, if it is a model.
    let [q, kv] = [heads, kv_heads].map(|heads| heads.saturating_mul(head_dim).min(MAX_ROWS));
    let fused = m.has("blk.0.attn_qkv.weight").then_some([q, kv, kv]);
    let mut learned = HashMap::new();
    for key in ["alpha_p", "alpha_n", "beta", "eps"] {
        if let Some(values) = m.g.floats(&format!("xielu.{key}"))? {
            learned.insert(key, values);
        }
    }
    let file = File { architecture: m.architecture, heads, kv_heads, fused, learned };
    Ok(Box::new(move |name| file.origin(name).unwrap_or_else(|| Origin::Tensor(name.to_owned()))))
}

/// Far above the rows of any matrix, far below what overflows.
const MAX_ROWS: usize = 1 << 40;

/// What the layout of a file depends on.
struct File {
    architecture: &'static Architecture,
    heads: usize,
    kv_heads: usize,
    /// Rows of queries, keys and values where they are one matrix.
    fused: Option<[usize; 3]>,
    /// Parameters that are in the metadata, a number for each layer.
    learned: HashMap<&'static str, Vec<f32>>,
}

impl File {
    fn origin(&self, name: &str) -> Option<Origin> {
        let (module, kind) = name.rsplit_once('.')?;
        if let Some(stored) = find(TOP, module) {
            return Some(self.changed(module, format!("{stored}.{kind}")));
        }
        let (i, module) = LAYERS.iter().find_map(|prefix| name.strip_prefix(prefix))?.split_once('.')?;
        let Some((module, kind)) = module.rsplit_once('.') else {
            // A number of the layer.
            return (module == "layer_scalar")
                .then(|| Origin::Tensor(format!("blk.{i}.layer_output_scale.weight")));
        };
        if module == "mlp.act_fn" {
            let value = *self.learned.get(kind)?.get(i.parse::<usize>().ok()?)?;
            return Some(Origin::Values { name: format!("xielu.{kind}"), values: vec![value] });
        }
        if self.architecture.stored == Stored::HeadNorms
            && let Some((module, head)) = module.split_once(".norms.")
        {
            return self.head_norm(i, module, head.parse().ok()?, kind);
        }
        if let Some(origin) = self.part_of_fused(i, module, kind) {
            return Some(origin);
        }
        let stored = find(self.architecture.modules, module).or_else(|| find(MODULES, module))?;
        Some(self.changed(module, format!("blk.{i}.{stored}.{kind}")))
    }

    /// Where what the converter did to module `module` is undone.
    fn changed(&self, module: &str, name: String) -> Origin {
        let heads = match module {
            "self_attn.q_proj" => Some(self.heads),
            "self_attn.k_proj" => Some(self.kv_heads),
            _ => None,
        };
        match (self.architecture.stored, heads) {
            (Stored::Permuted { biases }, Some(heads)) if biases || name.ends_with(".weight") => {
                Origin::Unpermuted { name, heads }
            }
            (Stored::NormsPlusOne, _) if name.ends_with("norm.weight") => Origin::Shifted { name, by: -1.0 },
            (Stored::Stacked, _) if module == "attention.query_key_value" => {
                Origin::Unstacked { name, parts: 3, heads: self.heads }
            }
            _ => Origin::Tensor(name),
        }
    }

    /// Row `head` of the norms of all heads.
    fn head_norm(&self, layer: &str, module: &str, head: usize, kind: &str) -> Option<Origin> {
        let of = if module == "self_attn.q_layernorm" { self.heads } else { self.kv_heads };
        let name = format!("blk.{layer}.{}.{kind}", find(MODULES, module)?);
        Some(Origin::Rows { name, rows: head..head.checked_add(1)?, of })
    }

    /// Queries, keys or values of a checkpoint that has them apart and whose file, of an older or an optimizing converter,
    /// has not.
    fn part_of_fused(&self, layer: &str, module: &str, kind: &str) -> Option<Origin> {
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let part = parts.iter().position(|part| *part == module)?;
        if matches!(self.architecture.stored, Stored::Permuted { .. }) {
            return None;
        }
        let (rows, of) = stacked(&self.fused?, part);
        Some(Origin::Rows { name: format!("blk.{layer}.attn_qkv.{kind}"), rows, of })
    }
}

fn find(pairs: &Pairs, module: &str) -> Option<&'static str> {
    pairs.iter().find(|(from, _)| *from == module).map(|(_, to)| *to)
}
