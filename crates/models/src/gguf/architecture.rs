//! The architectures whose metadata and names are known, an entry each. Reads nothing.

use super::config::{Config, gpt2, like_llama};
use super::metadata::Metadata;
use super::{families, gemma, mixtures, recurrent};
use crate::Result;
use crate::names::Pairs;

/// What llama.cpp's converter makes of the checkpoints of a family.
pub(super) struct Architecture {
    /// In `general.architecture` and before the keys.
    pub name: &'static str,
    /// That of config.json.
    pub model_type: &'static str,
    /// Reads what else config.json says.
    pub config: fn(&Metadata<'_>) -> Result<Config>,
    /// The activation, which has no key.
    pub act: &'static str,
    /// The epsilon of the norms: its key, and that of config.json.
    pub eps: (&'static str, &'static str),
    /// Modules of a layer that are not where [`layout`](super::layout) has them: the checkpoint's name and the stored one.
    pub modules: &'static Pairs,
    /// What became of values and their order.
    pub stored: Stored,
    /// More of these where there are experts; `None` if there can't be.
    pub mixed: Option<&'static Pairs>,
}

/// What the converter does to parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Nothing.
    AsIs,
    /// Rows of queries and keys are in the order of interleaved rope; biases are if so stated.
    Permuted { biases: bool },
    /// Norms are what they multiply by, `1 + w`.
    NormsPlusOne,
    /// All queries come first, then all keys, then all values, where the checkpoint has them head by head.
    Stacked,
    /// The norms of all heads are the rows of a matrix.
    HeadNorms,
}

use Stored::{HeadNorms, NormsPlusOne, Stacked};

const RMS: (&str, &str) = ("attention.layer_norm_rms_epsilon", "rms_norm_eps");

const LFM2_EPS: (&str, &str) = (RMS.0, "norm_eps");

const NEMOTRON_EPS: (&str, &str) = (RMS.0, "layer_norm_epsilon");

/// A LayerNorm whose epsilon is `key` of config.json.
const fn layer_norm(key: &'static str) -> (&'static str, &'static str) {
    ("attention.layer_norm_epsilon", key)
}

const PERMUTED: Stored = Stored::Permuted { biases: true };
/// The norm after attention is one, not the one before the feed-forward layer.
const POST_NORM: &Pairs = &[("post_attention_layernorm", "post_attention_norm")];

/// The feed-forward layer of Granite 4 is an expert that all rows use where there are others.
const SHARED: Option<&Pairs> = Some(&[
    ("mlp.gate_proj", "ffn_gate_shexp"),
    ("mlp.up_proj", "ffn_up_shexp"),
    ("mlp.down_proj", "ffn_down_shexp"),
]);

/// An architecture with Llama's keys and names.
const fn named(name: &'static str, model_type: &'static str) -> Architecture {
    let (config, act, stored) = (like_llama as fn(&Metadata<'_>) -> _, "silu", Stored::AsIs);
    Architecture { name, model_type, config, act, eps: RMS, modules: &[], stored, mixed: None }
}

/// An architecture whose feed-forward layers are mixtures.
const fn mixture(
    name: &'static str,
    model_type: &'static str,
    config: fn(&Metadata<'_>) -> Result<Config>,
) -> Architecture {
    Architecture { config, mixed: Some(&[]), ..named(name, model_type) }
}

const GELU_TANH: &str = "gelu_pytorch_tanh";

/// In alphabetical order.
pub(super) const ALL: &[Architecture] = &[
    Architecture { act: "xielu", ..named("apertus", "apertus") },
    // The checkpoints of 2024: those of 2025, with a squared ReLU, have another name.
    named("bitnet", "bitnet"),
    Architecture { config: families::glm, ..named("chatglm", "glm") },
    Architecture {
        config: families::cohere2,
        eps: layer_norm("layer_norm_eps"),
        ..named("cohere2", "cohere2")
    },
    Architecture {
        config: families::cohere,
        eps: layer_norm("layer_norm_eps"),
        ..named("command-r", "cohere")
    },
    mixture("deepseek2", "deepseek_v2", mixtures::deepseek2),
    mixture("dots1", "dots1", mixtures::dots1),
    Architecture { config: families::ernie4_5, ..named("ernie4_5", "ernie4_5") },
    mixture("ernie4_5-moe", "ernie4_5_moe", mixtures::ernie4_5),
    Architecture { config: families::exaone4, modules: POST_NORM, ..named("exaone4", "exaone4") },
    Architecture { config: recurrent::falcon_h1, ..named("falcon-h1", "falcon_h1") },
    Architecture { act: GELU_TANH, stored: NormsPlusOne, ..named("gemma", "gemma") },
    Architecture {
        config: gemma::gemma2,
        act: GELU_TANH,
        modules: POST_NORM,
        stored: NormsPlusOne,
        ..named("gemma2", "gemma2")
    },
    Architecture {
        config: gemma::gemma3,
        act: GELU_TANH,
        modules: POST_NORM,
        stored: NormsPlusOne,
        ..named("gemma3", "gemma3_text")
    },
    Architecture { act: GELU_TANH, modules: POST_NORM, ..mixture("gemma4", "gemma4_text", gemma::gemma4) },
    named("glm4", "glm4"),
    Architecture { modules: POST_NORM, ..mixture("glm4moe", "glm4_moe", mixtures::glm4) },
    Architecture { modules: POST_NORM, ..mixture("gpt-oss", "gpt_oss", mixtures::gpt_oss) },
    Architecture {
        config: gpt2,
        act: "gelu_new",
        eps: layer_norm("layer_norm_epsilon"),
        ..named("gpt2", "gpt2")
    },
    Architecture {
        config: families::gpt_neox,
        act: "gelu",
        eps: layer_norm("layer_norm_eps"),
        stored: Stacked,
        ..named("gptneox", "gpt_neox")
    },
    Architecture { config: families::granite, stored: PERMUTED, ..named("granite", "granite") },
    Architecture {
        mixed: SHARED,
        stored: PERMUTED,
        ..mixture("granitehybrid", "granitemoehybrid", recurrent::granite_hybrid)
    },
    Architecture {
        mixed: SHARED,
        stored: PERMUTED,
        ..mixture("granitemoe", "granitemoe", mixtures::granite)
    },
    Architecture { config: families::hunyuan, ..named("hunyuan-dense", "hunyuan_v1_dense") },
    mixture("jamba", "jamba", recurrent::jamba),
    mixture("kimi-linear", "kimi_linear", recurrent::kimi_linear),
    Architecture { config: recurrent::lfm2, eps: LFM2_EPS, ..named("lfm2", "lfm2") },
    Architecture { eps: LFM2_EPS, ..mixture("lfm2moe", "lfm2_moe", recurrent::lfm2_moe) },
    Architecture { stored: PERMUTED, ..mixture("llama", "llama", mixtures::llama) },
    mixture("llama4", "llama4_text", mixtures::llama4),
    Architecture { config: recurrent::mamba, ..named("mamba", "mamba") },
    Architecture { config: recurrent::mamba2, ..named("mamba2", "mamba2") },
    mixture("minimax-m2", "minimax_m2", mixtures::minimax_m2),
    Architecture { config: families::ministral3, stored: PERMUTED, ..named("mistral3", "ministral3") },
    Architecture {
        act: "relu2",
        eps: layer_norm("norm_eps"),
        stored: NormsPlusOne,
        ..named("nemotron", "nemotron")
    },
    Architecture {
        config: recurrent::nemotron_h,
        act: "relu2",
        eps: NEMOTRON_EPS,
        ..named("nemotron_h", "nemotron_h")
    },
    Architecture {
        act: "relu2",
        eps: NEMOTRON_EPS,
        ..mixture("nemotron_h_moe", "nemotron_h", recurrent::nemotron_h)
    },
    Architecture {
        config: families::olmo,
        eps: layer_norm("layer_norm_eps"),
        stored: Stored::Permuted { biases: false },
        ..named("olmo", "olmo")
    },
    // OLMo 3 if there is a window.
    Architecture { config: families::olmo2, modules: POST_NORM, ..named("olmo2", "olmo2") },
    mixture("olmoe", "olmoe", mixtures::olmoe),
    Architecture { act: "gelu_new", eps: layer_norm("layer_norm_eps"), ..named("phi2", "phi") },
    Architecture { config: families::phi3, ..named("phi3", "phi3") },
    mixture("phimoe", "phimoe", mixtures::phimoe),
    named("qwen2", "qwen2"),
    mixture("qwen2moe", "qwen2_moe", mixtures::qwen2),
    named("qwen3", "qwen3"),
    Architecture {
        modules: POST_NORM,
        stored: NormsPlusOne,
        ..mixture("qwen35", "qwen3_5_text", recurrent::qwen3_5)
    },
    Architecture {
        modules: POST_NORM,
        stored: NormsPlusOne,
        ..mixture("qwen35moe", "qwen3_5_text", recurrent::qwen3_5)
    },
    mixture("qwen3moe", "qwen3_moe", mixtures::qwen3),
    Architecture {
        modules: POST_NORM,
        stored: NormsPlusOne,
        ..mixture("qwen3next", "qwen3_next", recurrent::qwen3_next)
    },
    Architecture {
        config: recurrent::rwkv7,
        eps: layer_norm("norm_eps"),
        modules: &[("ffn_norm", "attn_norm_2")],
        ..named("rwkv7", "rwkv7")
    },
    Architecture { config: families::seed_oss, modules: POST_NORM, ..named("seed_oss", "seed_oss") },
    Architecture { config: families::smollm3, stored: PERMUTED, ..named("smollm3", "smollm3") },
    Architecture {
        config: families::stablelm,
        eps: layer_norm("layer_norm_eps"),
        stored: HeadNorms,
        ..named("stablelm", "stablelm")
    },
    Architecture {
        config: families::gpt_bigcode,
        act: GELU_TANH,
        eps: layer_norm("layer_norm_epsilon"),
        ..named("starcoder", "gpt_bigcode")
    },
    Architecture {
        config: families::starcoder2,
        act: GELU_TANH,
        eps: layer_norm("norm_epsilon"),
        ..named("starcoder2", "starcoder2")
    },
];
