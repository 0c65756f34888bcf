//! Where parameters are: from the names of Hugging Face checkpoints to GGUF's, and what became of the values.

use std::collections::HashMap;
use std::sync::Arc;

use rillm_nn::{Lie, Origin, WeightSource};

use super::architecture::{Architecture, Stored};
use super::metadata::{Experts, Metadata};
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
    ("model.embedding_norm", "token_embd_norm"),
    ("model.layers.0.pre_norm", "token_embd_norm"),
    ("model.embeddings", "token_embd"),
    ("model.norm_f", "output_norm"),
    ("backbone.embeddings", "token_embd"),
    ("backbone.norm_f", "output_norm"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("lm_head", "output"),
    ("embed_out", "output"),
    ("model.embed_tokens_per_layer", "per_layer_token_embd"),
    ("model.per_layer_model_projection", "per_layer_model_proj"),
    ("model.per_layer_projection_norm", "per_layer_proj_norm"),
];

/// Before the number of a layer. Of gpt2's names those of mlx-lm, whose matrices are `[out, in]` as in GGUF.
const LAYERS: [&str; 4] = ["model.layers.", "model.h.", "gpt_neox.layers.", "backbone.layers."];

/// In a layer.
const MODULES: &Pairs = &[
    ("input_layernorm", "attn_norm"),
    ("attention_layernorm", "attn_norm"),
    ("operator_norm", "attn_norm"),
    ("norm", "attn_norm"),
    ("attn_norm", "attn_norm"),
    ("ln_1", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("pre_ff_layernorm", "ffn_norm"),
    ("feedforward_layernorm", "ffn_norm"),
    ("ffn_norm", "ffn_norm"),
    ("ln_2", "ffn_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("post_feedforward_layernorm_1", "post_ffw_norm_1"),
    ("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
    ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.query_layernorm", "attn_q_norm"),
    ("self_attn.key_layernorm", "attn_k_norm"),
    ("self_attn.q_layernorm", "attn_q_norm"),
    ("self_attn.k_layernorm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("self_attn.embed_q", "attn_k_b"),
    ("self_attn.unembed_out", "attn_v_b"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("self_attn.q_conv1d", "ssm_conv1d_q"),
    ("self_attn.k_conv1d", "ssm_conv1d_k"),
    ("self_attn.v_conv1d", "ssm_conv1d_v"),
    ("self_attn.f_a_proj", "ssm_f_a"),
    ("self_attn.f_b_proj", "ssm_f_b"),
    ("self_attn.g_a_proj", "ssm_g_a"),
    ("self_attn.g_b_proj", "ssm_g_b"),
    ("self_attn.b_proj", "ssm_beta"),
    ("self_attn.o_norm", "ssm_norm"),
    ("mixer.q_proj", "attn_q"),
    ("mixer.k_proj", "attn_k"),
    ("mixer.v_proj", "attn_v"),
    ("mixer.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("attn.c_attn", "attn_qkv"),
    ("attention.query_key_value", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("attn.c_proj", "attn_output"),
    ("self_attn.out_proj", "attn_output"),
    ("self_attn.dense", "attn_output"),
    ("attention.dense", "attn_output"),
    ("attn.r_proj", "time_mix_receptance"),
    ("attn.k_proj", "time_mix_key"),
    ("attn.v_proj", "time_mix_value"),
    ("attn.o_proj", "time_mix_output"),
    ("attn.g_norm", "time_mix_ln"),
    ("ffn.key", "channel_mix_key"),
    ("ffn.value", "channel_mix_value"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.router", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.router.layer", "ffn_gate_inp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mixer.gate", "ffn_gate_inp"),
    ("mixer.shared_experts.up_proj", "ffn_up_shexp"),
    ("mixer.shared_experts.down_proj", "ffn_down_shexp"),
    ("mixer.fc1_latent_proj", "ffn_latent_down"),
    ("mixer.fc2_latent_proj", "ffn_latent_up"),
    ("router.proj", "ffn_gate_inp"),
    ("feed_forward.gate", "ffn_gate_inp"),
    ("feed_forward.router", "ffn_gate_inp"),
    ("feed_forward.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("feed_forward.shared_expert.up_proj", "ffn_up_shexp"),
    ("feed_forward.shared_expert.down_proj", "ffn_down_shexp"),
    ("feed_forward.w1", "ffn_gate"),
    ("feed_forward.w3", "ffn_up"),
    ("feed_forward.w2", "ffn_down"),
    ("feed_forward.gate_proj", "ffn_gate"),
    ("feed_forward.up_proj", "ffn_up"),
    ("feed_forward.down_proj", "ffn_down"),
    ("mixer.up_proj", "ffn_up"),
    ("mixer.down_proj", "ffn_down"),
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
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
    ("per_layer_input_gate", "inp_gate"),
    ("per_layer_projection", "proj"),
    ("post_per_layer_input_norm", "post_norm"),
];

/// In a layer, with what follows the last dot.
const PARAMETERS: &Pairs = &[
    ("layer_scalar", "layer_output_scale.weight"),
    ("self_attn.sinks", "attn_sinks.weight"),
    ("self_attn.A_log", "ssm_a"),
    ("self_attn.dt_bias", "ssm_dt.bias"),
    ("router.scale", "ffn_gate_inp.scale"),
    ("router.per_expert_scale", "ffn_down_exps.scale"),
    ("mixer.gate.e_score_correction_bias", "exp_probs_b.bias"),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
    ("mlp.moe_statics.e_score_correction_bias", "exp_probs_b.bias"),
    ("block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias"),
    ("feed_forward.expert_bias", "exp_probs_b.bias"),
    ("attn.w_lora.lora.0.weight", "time_mix_w1.weight"),
    ("attn.w_lora.lora.2.weight", "time_mix_w2.weight"),
    ("attn.w_lora.lora.2.bias", "time_mix_w0.weight"),
    ("attn.a_lora.lora.0.weight", "time_mix_a1.weight"),
    ("attn.a_lora.lora.2.weight", "time_mix_a2.weight"),
    ("attn.a_lora.lora.2.bias", "time_mix_a0.weight"),
    ("attn.v_lora.lora.0.weight", "time_mix_v1.weight"),
    ("attn.v_lora.lora.2.weight", "time_mix_v2.weight"),
    ("attn.v_lora.lora.2.bias", "time_mix_v0.weight"),
    ("attn.g_lora.lora.0.weight", "time_mix_g1.weight"),
    ("attn.g_lora.lora.2.weight", "time_mix_g2.weight"),
    ("attn.k_k", "time_mix_k_k.weight"),
    ("attn.k_a", "time_mix_k_a.weight"),
    ("attn.r_k", "time_mix_r_k.weight"),
    ("ffn.x_k", "channel_mix_lerp_k.weight"),
];

/// How RWKV-7's time mixing shifts rows, in the order of the vectors of `time_mix_lerp_fused`.
const SHIFTS: [&str; 6] = ["attn.x_r", "attn.x_w", "attn.x_k", "attn.x_v", "attn.x_a", "attn.x_g"];

/// The modules that mixtures of experts are.
const MIXTURES: [&str; 5] =
    ["mlp.experts.", "block_sparse_moe.experts.", "feed_forward.experts.", "mixer.experts.", "experts."];

/// The modules that keep states.
const STATES: [&str; 4] = ["mamba.", "mixer.", "linear_attn.", "conv."];

/// In a module that keeps a state, with what follows the last dot.
const STATE_PARAMETERS: &Pairs = &[
    ("in_proj.weight", "ssm_in.weight"),
    ("in_proj.bias", "ssm_in.bias"),
    ("in_proj_qkv.weight", "attn_qkv.weight"),
    ("in_proj_z.weight", "attn_gate.weight"),
    ("in_proj_b.weight", "ssm_beta.weight"),
    ("in_proj_a.weight", "ssm_alpha.weight"),
    ("conv1d.weight", "ssm_conv1d.weight"),
    ("conv1d.bias", "ssm_conv1d.bias"),
    ("x_proj.weight", "ssm_x.weight"),
    ("dt_layernorm.weight", "ssm_dt_norm.weight"),
    ("b_layernorm.weight", "ssm_b_norm.weight"),
    ("c_layernorm.weight", "ssm_c_norm.weight"),
    ("dt_proj.weight", "ssm_dt.weight"),
    ("dt_proj.bias", "ssm_dt.bias"),
    ("dt_bias", "ssm_dt.bias"),
    ("A_log", "ssm_a"),
    ("D", "ssm_d"),
    ("norm.weight", "ssm_norm.weight"),
    ("out_proj.weight", "ssm_out.weight"),
    ("out_proj.bias", "ssm_out.bias"),
];

/// The same of a short convolution.
const CONV_PARAMETERS: &Pairs = &[
    ("conv.in_proj.weight", "shortconv.in_proj.weight"),
    ("conv.in_proj.bias", "shortconv.in_proj.bias"),
    ("conv.conv.weight", "shortconv.conv.weight"),
    ("conv.conv.bias", "shortconv.conv.bias"),
    ("conv.out_proj.weight", "shortconv.out_proj.weight"),
    ("conv.out_proj.bias", "shortconv.out_proj.bias"),
];

/// Where the parameters of the checkpoint that `m` was converted from are in it.
pub(super) fn layout(m: &Metadata<'_>) -> Result<Layout> {
    let attends = m.count("attention.head_count")?.is_some_and(|heads| heads > 0);
    let (heads, kv_heads) = match attends {
        // Layers that don't attend have no heads.
        true => (m.heads()?, m.kv_heads_by_layer()?.into_iter().max().unwrap_or(0)),
        false => (0, 0),
    };
    let delta = Delta::of(m)?;
    let fused = match attends && delta.is_none() && m.has("blk.0.attn_qkv.weight") {
        true => {
            let head_dim = m.head_dim()?;
            // Bounded by what is in the file, if it is a model.
            let [q, kv] = [heads, kv_heads].map(|heads| heads.saturating_mul(head_dim).min(MAX_ROWS));
            Some([q, kv, kv])
        }
        false => None,
    };
    let mut learned = HashMap::new();
    for key in ["alpha_p", "alpha_n", "beta", "eps"] {
        if let Some(values) = m.g.floats(&format!("xielu.{key}"))? {
            learned.insert(key, values);
        }
    }
    let experts = if m.count("expert_count")?.unwrap_or(0) > 0 { Some(m.experts()?) } else { None };
    let joined = m.g.names().iter().any(|name| name.ends_with(".ffn_gate_up_exps.weight"));
    let bare = m.has("blk.0.ffn_norm");
    let architecture = m.architecture;
    let file = File { architecture, heads, kv_heads, fused, learned, experts, joined, bare, delta };
    Ok(Box::new(move |name| file.origin(name).unwrap_or_else(|| Origin::Tensor(name.to_owned()))))
}

/// Far above the rows of any matrix, far below what overflows.
const MAX_ROWS: usize = 1 << 40;

/// Far above the rows of any matrix, and few enough to list.
const MAX_LISTED: usize = 1 << 20;

/// What the layout of a file depends on.
struct File {
    architecture: &'static Architecture,
    heads: usize,
    kv_heads: usize,
    /// Rows of queries, keys and values where they are one matrix.
    fused: Option<[usize; 3]>,
    /// Parameters that are in the metadata, a number for each layer.
    learned: HashMap<&'static str, Vec<f32>>,
    experts: Option<Experts>,
    /// Whether gates and what they open are one stack.
    joined: bool,
    /// Whether the norm before the feed-forward layer has no suffix (falcon-h1).
    bare: bool,
    delta: Option<Delta>,
}

/// How Qwen's delta rule is stored.
enum Delta {
    /// Two numbers for each value head, in runs of as many as a key head has value heads, of this many key heads.
    Runs { run: usize, key_heads: usize },
    /// Value heads take turns with the key heads, which are to be repeated: the rows of queries, keys and values in order,
    /// of this many stored ones.
    Turns { rows: Arc<[usize]>, of: usize },
}

impl Delta {
    fn of(m: &Metadata<'_>) -> Result<Option<Self>> {
        /// Beyond any model.
        const MAX_RUN: usize = 16;
        if !m.architecture.model_type.starts_with("qwen3_") || m.count("ssm.group_count")?.is_none() {
            return Ok(None);
        }
        let key = "ssm.time_step_rank";
        let (key_heads, heads) = (m.required_count("ssm.group_count")?, m.required_count(key)?);
        let run = heads.checked_div(key_heads).unwrap_or(0);
        if !(1..=MAX_RUN).contains(&run) || run * key_heads != heads {
            return Err(m.unsupported(key, &format!("1 to {MAX_RUN} times {key_heads}"), heads));
        }
        if m.architecture.model_type == "qwen3_next" {
            return Ok(Some(Self::Runs { run, key_heads }));
        }
        let (keys, values) = (
            key_heads.saturating_mul(m.required_count("ssm.state_size")?),
            m.required_count("ssm.inner_size")?,
        );
        let of = keys.saturating_mul(2).saturating_add(values);
        // Of a type that has no codec, a shape says nothing of the file's size.
        let rows = |i: usize| {
            let raw = m.g.get(&format!("blk.{i}.attn_qkv.weight")).ok().flatten()?;
            raw.shape.first().copied()
        };
        let stored = (0..m.layers()?).find_map(rows);
        if stored.is_some_and(|stored| stored != of) {
            return Err(m.unsupported("ssm.inner_size", &format!("rows that make {stored:?}"), values));
        }
        // Rows of a column are cheap in a file, and each is listed up to `run` times.
        if of > MAX_LISTED {
            return Err(m.unsupported("ssm.state_size", &format!("at most {MAX_LISTED} rows"), of));
        }
        let repeated = |start: usize| (0..run).flat_map(move |_| start..start + keys);
        let rows: Arc<[usize]> = match stored {
            Some(_) => repeated(0).chain(repeated(keys)).chain(2 * keys..of).collect(),
            None => Arc::default(),
        };
        Ok(Some(Self::Turns { rows, of }))
    }
}

impl File {
    fn origin(&self, name: &str) -> Option<Origin> {
        let (module, kind) = name.rsplit_once('.')?;
        if let Some(stored) = find(TOP, module) {
            return Some(self.changed(module, format!("{stored}.{kind}")));
        }
        let (i, module) = LAYERS.iter().find_map(|prefix| name.strip_prefix(prefix))?.split_once('.')?;
        if let Some(stored) = find(PARAMETERS, module) {
            return Some(self.state(module, format!("blk.{i}.{stored}")));
        }
        if let Some(row) = SHIFTS.iter().position(|shift| *shift == module) {
            let (name, of) = (format!("blk.{i}.time_mix_lerp_fused.weight"), SHIFTS.len());
            return Some(Origin::Rows { name, rows: row..row + 1, of });
        }
        if let Some(of) = MIXTURES.iter().find_map(|prefix| module.strip_prefix(prefix)) {
            return self.expert(i, of);
        }
        if let Some(stored) = find(CONV_PARAMETERS, module) {
            return Some(Origin::Tensor(format!("blk.{i}.{stored}")));
        }
        let state = STATES.iter().find_map(|prefix| find(STATE_PARAMETERS, module.strip_prefix(prefix)?));
        if let Some(stored) = state {
            return Some(self.state(module, format!("blk.{i}.{stored}")));
        }
        let (module, kind) = module.rsplit_once('.')?;
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
        let mixed = self.architecture.mixed.filter(|_| self.experts.is_some()).unwrap_or_default();
        let stored =
            [mixed, self.architecture.modules, MODULES].iter().find_map(|pairs| find(pairs, module))?;
        if self.bare && stored == "ffn_norm" {
            return Some(Origin::Tensor(format!("blk.{i}.{stored}")));
        }
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
            // A matrix of one row.
            _ if name.ends_with("ffn_gate_inp_shexp.weight") => Origin::Reshaped { name },
            // With axes of length 1.
            _ if name.contains(".ssm_conv1d_") => Origin::Reshaped { name },
            _ => Origin::Tensor(name),
        }
    }

    /// A parameter of a module that keeps a state.
    fn state(&self, module: &str, name: String) -> Origin {
        match (module.rsplit_once('.').map_or(module, |(_, kind)| kind), &self.delta) {
            ("A_log", _) => Origin::Logarithm { name },
            ("weight", _) if name.ends_with("ssm_norm.weight") => Origin::Reshaped { name },
            ("weight", Some(Delta::Turns { rows, of })) if is_joined(&name) => {
                Origin::Ordered { name, rows: rows.clone(), of: *of }
            }
            ("weight", Some(Delta::Runs { run, key_heads })) => {
                let (run, stride) = (*run, 2 * run);
                let both = |stored: &str, start| {
                    let name = name.replace(stored, "ssm_ba");
                    Origin::Strided { name, start, run, stride, of: stride.saturating_mul(*key_heads) }
                };
                match name.rsplit('.').nth(1) {
                    Some("ssm_beta") => both("ssm_beta", 0),
                    Some("ssm_alpha") => both("ssm_alpha", run),
                    _ => Origin::Tensor(name),
                }
            }
            _ => Origin::Tensor(name),
        }
    }

    /// `{e}.{part}.{kind}` of a mixture.
    fn expert(&self, layer: &str, name: &str) -> Option<Origin> {
        let (e, name) = name.split_once('.')?;
        let (part, kind) = name.split_once('.')?;
        let Experts { count, hidden, dim } = self.experts?;
        let (stored, start, of) = match part {
            "gate_proj" if self.joined => ("gate_up", 0, hidden.saturating_mul(2)),
            "up_proj" if self.joined => ("gate_up", hidden, hidden.saturating_mul(2)),
            "gate_proj" => ("gate", 0, hidden),
            "up_proj" => ("up", 0, hidden),
            "down_proj" => ("down", 0, dim),
            _ => return None,
        };
        let (name, index) = (format!("blk.{layer}.ffn_{stored}_exps.{kind}"), [e.parse().ok()?, count]);
        Some(Origin::Stacked { name, index, start, step: 1, of, lie: Lie::Rows })
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

/// Whether it has rows, or channels, of queries, keys and values.
fn is_joined(name: &str) -> bool {
    name.ends_with("attn_qkv.weight") || name.ends_with("ssm_conv1d.weight")
}

fn find(pairs: &Pairs, module: &str) -> Option<&'static str> {
    pairs.iter().find(|(from, _)| *from == module).map(|(_, to)| *to)
}
