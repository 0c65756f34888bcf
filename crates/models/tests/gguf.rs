//! The configuration and the names that GGUF files of the reference converter stand for. What models compute from
//! them is compared elsewhere.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rillm_models::{Error, gguf};
use rillm_nn::{Adapted, Gguf, Lie, Origin, WeightSource};
use serde_json::{Value, json};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn open(name: &str) -> Gguf {
    Gguf::open(&golden().join(name).join("model.gguf")).unwrap()
}

/// Equal, or numbers equal in single precision, which is what files keep.
fn close(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-7 * b.abs(),
        _ => a == b,
    }
}

/// That the configuration of `name` has these values, among others.
fn expect(name: &str, want: Value) {
    let config = gguf::config(&open(name)).unwrap();
    for (key, want) in want.as_object().unwrap() {
        let got = &config[key];
        let equal = match (got.as_object(), want.as_object()) {
            (Some(got), Some(want)) => want.iter().all(|(key, want)| close(&got[key], want)),
            _ => close(got, want),
        };
        assert!(equal, "{name}: {key}: {got}, wanted {want}");
    }
}

#[test]
fn configurations() {
    expect(
        "gguf-llama-f32",
        json!({
            "model_type": "llama", "vocab_size": 96, "tie_word_embeddings": true, "attention_bias": false,
            "mlp_bias": false, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": 1, "eos_token_id": [2],
        }),
    );
    expect("gguf-llama-biases", json!({"attention_bias": true, "tie_word_embeddings": false}));
    expect("gguf-llama-rope-linear", json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}));
    expect(
        "gguf-llama-rope-yarn",
        json!({"head_dim": 16, "max_position_embeddings": 1024, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 5000.0,
        }}),
    );
    expect("gguf-mistral", json!({"model_type": "llama", "head_dim": 16}));
    expect("gguf-qwen2", json!({"model_type": "qwen2", "rope_parameters": {"rope_theta": 1e6}}));
    expect("gguf-qwen3", json!({"model_type": "qwen3", "head_dim": 16, "attention_bias": false}));
    expect("gguf-gpt2", json!({"model_type": "gpt2", "n_positions": 48, "activation_function": "gelu_new"}));
    expect("gguf-phi3", json!({"model_type": "phi3", "rope_parameters": {"rope_type": "default"}}));
    expect("gguf-gemma", json!({"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}));
}

#[test]
fn configurations_of_other_families() {
    expect("gguf-apertus", json!({"model_type": "apertus", "hidden_act": "xielu"}));
    expect(
        "gguf-cohere",
        json!({"model_type": "cohere", "logit_scale": 0.3, "use_qk_norm": true, "attention_bias": true}),
    );
    let pattern = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"];
    expect("gguf-cohere2", json!({"model_type": "cohere2", "sliding_window": 10, "layer_types": pattern}));
    expect("gguf-exaone4", json!({"sliding_window": 10, "layer_types": pattern}));
    expect(
        "gguf-exaone4-no-window",
        json!({"sliding_window": null, "layer_types": ["full_attention", "full_attention"]}),
    );
    expect("gguf-glm4", json!({"attention_bias": true, "rope_parameters": {"partial_rotary_factor": 0.5}}));
    expect(
        "gguf-gpt-neox",
        json!({"model_type": "gpt_neox", "use_parallel_residual": true, "hidden_act": "gelu"}),
    );
    expect("gguf-gpt-neox-sequential", json!({"use_parallel_residual": false}));
    expect(
        "gguf-granite",
        json!({"embedding_multiplier": 4.0, "logits_scaling": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}),
    );
    expect(
        "gguf-ministral3",
        json!({"model_type": "ministral3", "rope_parameters": {
            "rope_type": "yarn", "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 16,
        }}),
    );
    expect("gguf-olmo", json!({"clip_qkv": 0.5}));
    expect("gguf-olmo2", json!({"model_type": "olmo2", "sliding_window": null}));
    let olmo3 = gguf::config(&open("gguf-olmo3")).unwrap();
    assert_eq!((&olmo3["model_type"], &olmo3["layer_types"]), (&json!("olmo3"), &json!(pattern)));
    assert_eq!(olmo3["rope_parameters"]["full_attention"]["rope_type"], "yarn");
    assert_eq!(olmo3["rope_parameters"]["sliding_attention"]["rope_type"], "default");
    expect("gguf-phi", json!({"model_type": "phi", "rope_parameters": {"partial_rotary_factor": 0.5}}));
    expect("gguf-seed-oss", json!({"attention_bias": true, "attention_out_bias": false}));
    expect(
        "gguf-stablelm",
        json!({"use_qkv_bias": true, "use_parallel_residual": false, "qk_layernorm": false}),
    );
    expect("gguf-stablelm-parallel", json!({"use_parallel_residual": true, "qk_layernorm": true}));
    expect("gguf-starcoder2", json!({"use_bias": true, "norm_epsilon": 1e-5}));
}

#[test]
fn configurations_of_gemma() {
    let types = |period: usize, layers: usize| -> Vec<&str> {
        let full = |i: usize| i.is_multiple_of(period);
        (1..=layers).map(|i| if full(i) { "full_attention" } else { "sliding_attention" }).collect()
    };
    let gemma2 = gguf::config(&open("gguf-gemma2")).unwrap();
    let layers = gemma2["num_hidden_layers"].as_u64().unwrap() as usize;
    assert_eq!(gemma2["layer_types"], json!(types(2, layers)));
    expect(
        "gguf-gemma2",
        json!({"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    );
    expect(
        "gguf-gemma3",
        json!({
            "model_type": "gemma3_text", "num_hidden_layers": 7, "query_pre_attn_scalar": 16,
            "layer_types": types(6, 7), "attn_logit_softcapping": null,
        }),
    );
    let gemma3 = gguf::config(&open("gguf-gemma3")).unwrap();
    assert_eq!(gemma3["rope_parameters"]["full_attention"]["rope_theta"], json!(1e6));
    assert_eq!(gemma3["rope_parameters"]["sliding_attention"]["rope_theta"], json!(1e4));
}

#[test]
fn divisors_of_frequencies() {
    let llama3 = gguf::config(&open("gguf-llama-rope-llama3")).unwrap();
    assert_eq!(llama3["rope_parameters"]["rope_type"], "gguf_factors");
    let factors = llama3["rope_parameters"]["factors"].as_array().unwrap();
    assert_eq!(factors.len(), llama3["head_dim"].as_u64().unwrap() as usize / 2);
    assert_eq!((&factors[0], factors.last().unwrap()), (&json!(1.0), &json!(8.0)));

    let phi3 = gguf::config(&open("gguf-phi3-longrope")).unwrap();
    let rope = &phi3["rope_parameters"];
    assert_eq!(
        (&rope["rope_type"], &rope["original_max_position_embeddings"]),
        (&json!("longrope"), &json!(32))
    );
    assert_eq!(rope["short_factor"].as_array().unwrap().len(), rope["long_factor"].as_array().unwrap().len());
    // sqrt(1 + ln(128 / 32) / ln(32))
    assert!((rope["attention_factor"].as_f64().unwrap() - 1.183_215_9).abs() < 1e-6);
}

/// The parameters around the layers of an architecture, and the modules of a layer, for families that have names of their
/// own or Llama's. That nothing is left of the others is part of loading them.
fn names(model_type: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    const TOP: &[&str] = &["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"];
    const TOP_GPT2: &[&str] =
        &["model.wte.weight", "model.wpe.weight", "model.ln_f.weight", "model.ln_f.bias", "lm_head.weight"];
    const LAYER: &[&str] = &[
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "self_attn.q_norm",
        "self_attn.k_norm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ];
    const PHI3: &[&str] = &[
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ];
    Some(match model_type {
        "gpt2" => (TOP_GPT2, &["ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        "phi3" => (TOP, PHI3),
        "gemma2" | "gemma3_text" | "olmo2" | "olmo3" | "exaone4" => (TOP, LAYER),
        "llama" | "qwen2" | "qwen3" | "gemma" | "granite" | "smollm3" | "seed_oss" | "ernie4_5" | "olmo"
        | "ministral3" | "internlm3" => (TOP, LAYER.split_last_chunk::<2>().unwrap().0),
        _ => return None,
    })
}

#[test]
fn every_stored_tensor_has_a_name() {
    let mut files = 0;
    for folder in std::fs::read_dir(golden()).unwrap() {
        let file = folder.unwrap().path().join("model.gguf");
        if !file.is_file() {
            continue;
        }
        let g = Gguf::open(&file).unwrap();
        let config = gguf::config(&g).unwrap();
        let layout = gguf::layout(&g).unwrap();
        let stored = g.names().len();
        let source = Adapted::new(g, layout);
        let Some((top, modules)) = names(config["model_type"].as_str().unwrap()) else { continue };
        let layers = config["num_hidden_layers"].as_u64().or(config["n_layer"].as_u64()).unwrap();
        let layer = if config["model_type"] == "gpt2" { "model.h" } else { "model.layers" };
        let in_layers = (0..layers).flat_map(|i| {
            let of = move |m: &&str| [format!("{layer}.{i}.{m}.weight"), format!("{layer}.{i}.{m}.bias")];
            modules.iter().flat_map(of)
        });
        let asked = top.iter().map(|n| n.to_string()).chain(in_layers);
        let found = asked.filter(|name| source.get(name).unwrap().is_some()).count();
        let left = source.names();
        assert!(left.iter().all(|n| n.starts_with("rope_")), "{}: {left:?}", file.display());
        assert_eq!(stored - left.len(), found, "{}", file.display());
        files += 1;
    }
    assert!(files > 20, "{files}");
}

#[test]
fn norms_of_gemma_are_stored_with_one_added() {
    let g = open("gguf-gemma");
    let stored = g.get("output_norm.weight").unwrap().unwrap().decode().unwrap();
    let source = Adapted::new(&g, gguf::layout(&g).unwrap());
    let norm = source.get("model.norm.weight").unwrap().unwrap().decode().unwrap();
    assert!(stored.iter().zip(&norm).all(|(s, n)| *n == s - 1.0));
}

/// A file of metadata alone.
struct Draft(u64, Vec<u8>);

impl Draft {
    fn new(architecture: &str) -> Self {
        Self(0, Vec::new()).value("general.architecture", 8, &text(architecture))
    }
    fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.0 += 1;
        self.1.extend([&text(key), &kind.to_le_bytes()[..], bytes].concat());
        self
    }
    fn count(self, key: &str, n: u32) -> Self {
        self.value(key, 4, &n.to_le_bytes())
    }
    fn file(self) -> Gguf {
        let head = [b"GGUF\x03\0\0\0".to_vec(), vec![0; 8], self.0.to_le_bytes().to_vec(), self.1];
        let mut file = head.concat();
        file.resize(file.len().next_multiple_of(32), 0);
        Gguf::from_bytes(file).unwrap()
    }
    fn error(self) -> Error {
        gguf::config(&self.file()).unwrap_err()
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A file that lacks nothing of `architecture` but its tensors.
fn complete(architecture: &str) -> Draft {
    let key = |name: &str| format!("{architecture}.{name}");
    let counts = ["embedding_length", "feed_forward_length", "context_length", "attention.head_count"];
    let draft = counts.iter().fold(Draft::new(architecture), |d, name| d.count(&key(name), 8));
    let eps = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"];
    let bytes = 1e-5f32.to_le_bytes();
    eps.iter().fold(draft, |d, name| d.value(&key(name), 6, &bytes)).count(&key("block_count"), 2)
}

/// An array of truth values.
fn bools(values: &[u8]) -> Vec<u8> {
    [&7u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), values].concat()
}

/// An array of counts.
fn counts(values: &[u32]) -> Vec<u8> {
    let bytes = values.iter().flat_map(|n| n.to_le_bytes());
    [4u32.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec(), bytes.collect()].concat()
}

#[test]
fn what_changes_the_result_is_refused() {
    let refused = |draft: Draft, want: &str| {
        let e = draft.error().to_string();
        assert!(e.contains(want), "{e}: not {want}");
    };
    let ahead = |n| complete("glm4").count("glm4.nextn_predict_layers", n);
    refused(ahead(2), "glm4.nextn_predict_layers: wanted fewer than the 2 layers, got 2");
    refused(ahead(u32::MAX), "wanted fewer than the 2 layers");
    refused(complete("llama").value("llama.attention.causal", 7, &[0]), "causal: wanted true, got false");
    let sections = counts(&[16, 24, 24, 0]);
    refused(complete("glm4").value("glm4.rope.dimension_sections", 9, &sections), "sections: wanted none");
    let draft = complete("granite").value("granite.logit_scale", 6, &2f32.to_le_bytes());
    refused(draft.value("granite.rope.scaling.finetuned", 7, &[0]), "finetuned: wanted true");
    let kv = counts(&[4, 2]);
    refused(
        complete("llama").value("llama.attention.head_count_kv", 9, &kv),
        "the same count for all layers",
    );
    refused(complete("gptneox"), "no metadata key gptneox.use_parallel_residual");
    let window = || complete("cohere2").count("cohere2.attention.sliding_window", 4);
    let pattern = "cohere2.attention.sliding_window_pattern";
    refused(window().value(pattern, 9, &bools(&[1; 3])), "or 2 times true or false");
    refused(window().count(pattern, 0), "pattern: wanted a count of layers");
    refused(complete("gemma4"), "no metadata key gemma4.attention.sliding_window_pattern");
    let gemma4 = || {
        let draft = complete("gemma4").value("gemma4.attention.sliding_window_pattern", 9, &bools(&[1, 0]));
        draft.count("gemma4.attention.sliding_window", 4)
    };
    refused(gemma4().value("gemma4.attention.head_count_kv", 9, &counts(&[1; 3])), "kv: wanted 2 counts");
    let shared = gemma4().count("gemma4.attention.shared_kv_layers", u32::MAX);
    refused(shared, "token_embd.weight");
}

#[test]
fn mixtures_that_are_not_computed_are_refused() {
    let refused = |draft: Draft, want: &str| {
        let e = draft.error().to_string();
        assert!(e.contains(want), "{e}: not {want}");
    };
    let experts = |n: u32| complete("qwen3moe").count("qwen3moe.expert_count", n);
    refused(complete("qwen3moe"), "no metadata key qwen3moe.expert_count");
    refused(experts(0), "qwen3moe.expert_count: wanted 1 to 4096, got 0");
    refused(experts(u32::MAX), "qwen3moe.expert_count: wanted 1 to 4096, got 4294967295");
    refused(experts(4), "no metadata key qwen3moe.expert_used_count");
    let set = |name: &str, n: u32| experts(4).count(&format!("qwen3moe.{name}"), n);
    refused(set("expert_gating_func", 2), "expert_gating_func: wanted 1, got 2");
    refused(set("expert_gating_func", 4), "expert_gating_func: wanted 1: softmax, 2: sigmoid, or 3");
    refused(set("expert_group_count", 2), "expert_group_count: wanted 1: experts chosen among all, got 2");
    let scale = experts(4).value("qwen3moe.expert_weights_scale", 6, &2f32.to_le_bytes());
    refused(scale, "expert_weights_scale: wanted 1, got 2");
    let rotated = complete("deepseek2").count("deepseek2.attention.kv_lora_rank", 8);
    refused(rotated, "no metadata key deepseek2.rope.dimension_count");
    let hybrid = complete("lfm2").value("lfm2.attention.head_count_kv", 9, &counts(&[2, 1]));
    refused(hybrid, "head_count_kv: wanted 0 or 2 in each layer, got 1");
    let states = |heads: u32| {
        let keys = [("inner_size", 64), ("time_step_rank", heads), ("group_count", 1), ("state_size", 8)];
        let draft = keys
            .iter()
            .fold(complete("granitehybrid"), |d, (key, n)| d.count(&format!("granitehybrid.ssm.{key}"), *n));
        draft.count("granitehybrid.ssm.conv_kernel", 4)
    };
    refused(states(0), "ssm.time_step_rank: wanted at least 1, got 0");
    refused(states(u32::MAX), "ssm.time_step_rank: wanted a divisor of 64, got 4294967295");
}

#[test]
fn what_has_no_key_and_differs_is_refused() {
    let refused = |draft: Draft, want: &str| {
        let e = draft.error().to_string();
        assert!(e.contains(want), "{e}: not {want}");
    };
    let llama4 = |name: &str, n: u32| complete("llama4").count(&format!("llama4.{name}"), n);
    refused(llama4("attention.sliding_window", 0), "sliding_window: wanted none: chunks of 8192, got 0");
    refused(llama4("expert_count", 0), "llama4.expert_count: wanted 1 to 4096, got 0");
    refused(llama4("expert_count", 4), "no metadata key llama4.expert_used_count");
    let other = complete("llama4").value("llama4.rope.freq_base_swa", 6, &5e5f32.to_le_bytes());
    refused(other, "rope.freq_base_swa: wanted that of all layers, got 500000");
    let heads = |list: &[u32]| complete("jamba").value("jamba.attention.head_count_kv", 9, &counts(list));
    refused(heads(&[0, 2, 2]), "head_count_kv: wanted 2 counts");
    refused(heads(&[2, 0]), "no metadata key jamba.ssm.inner_size");
    let rwkv7 = ["wkv.head_size", "attention.decay_lora_rank", "attention.iclr_lora_rank"];
    let ranks = ["attention.value_residual_mix_lora_rank", "attention.gate_lora_rank"];
    let keys = rwkv7.iter().chain(&ranks);
    let rwkv7 = keys.fold(complete("rwkv7"), |d, key| d.count(&format!("rwkv7.{key}"), 8));
    refused(rwkv7.count("rwkv7.token_shift_count", 1), "token_shift_count: wanted 2: both parts");
    refused(complete("rwkv7"), "no metadata key rwkv7.wkv.head_size");
    let latent = ["attention.kv_lora_rank", "rope.dimension_count", "attention.key_length_mla"];
    let kimi =
        || latent.iter().fold(complete("kimi-linear"), |d, key| d.count(&format!("kimi-linear.{key}"), 8));
    refused(kimi(), "no metadata key kimi-linear.attention.value_length");
    let kimi = kimi().count("kimi-linear.attention.value_length_mla", 8).count("kimi-linear.kda.head_dim", 8);
    let kimi = kimi.count("kimi-linear.ssm.conv_kernel", 4).count("kimi-linear.expert_count", 4);
    refused(kimi.count("kimi-linear.expert_gating_func", 1), "expert_gating_func: wanted 2, got 1");
}

/// Where files keep what is not where Llama's are, without such a file.
#[test]
fn names_of_architectures_with_parameters_of_their_own() {
    let tensor = |name: &str| Origin::Tensor(name.to_owned());
    let of = |draft: Draft| gguf::layout(&draft.file()).unwrap();
    let kimi = of(complete("kimi-linear").count("kimi-linear.rope.dimension_count", 8));
    assert_eq!(
        kimi("model.layers.1.self_attn.q_conv1d.weight"),
        Origin::Reshaped { name: "blk.1.ssm_conv1d_q.weight".to_owned() }
    );
    assert_eq!(kimi("model.layers.1.self_attn.A_log"), Origin::Logarithm { name: "blk.1.ssm_a".to_owned() });
    assert_eq!(kimi("model.layers.1.self_attn.dt_bias"), tensor("blk.1.ssm_dt.bias"));
    assert_eq!(kimi("model.layers.1.self_attn.o_norm.weight"), tensor("blk.1.ssm_norm.weight"));
    let jamba = of(complete("jamba"));
    assert_eq!(jamba("model.layers.0.mamba.b_layernorm.weight"), tensor("blk.0.ssm_b_norm.weight"));
    assert_eq!(jamba("model.layers.0.pre_ff_layernorm.weight"), tensor("blk.0.ffn_norm.weight"));
    assert_eq!(jamba("model.layers.0.feed_forward.router.weight"), tensor("blk.0.ffn_gate_inp.weight"));
    let llama4 = of(complete("llama4").count("llama4.expert_count", 4));
    let expert = |stored: &str| {
        let name = format!("blk.1.ffn_{stored}_exps.weight");
        Origin::Stacked { name, index: [3, 4], start: 0, step: 1, of: 8, lie: Lie::Rows }
    };
    assert_eq!(llama4("model.layers.1.feed_forward.experts.3.gate_proj.weight"), expert("gate"));
    assert_eq!(llama4("model.layers.1.feed_forward.experts.3.down_proj.weight"), expert("down"));
    assert_eq!(
        llama4("model.layers.1.feed_forward.shared_expert.up_proj.weight"),
        tensor("blk.1.ffn_up_shexp.weight")
    );
    let bitnet = of(complete("bitnet"));
    assert_eq!(bitnet("model.layers.0.mlp.ffn_sub_norm.weight"), tensor("blk.0.ffn_sub_norm.weight"));
    let rwkv7 = of(complete("rwkv7"));
    assert_eq!(rwkv7("model.layers.0.pre_norm.bias"), tensor("token_embd_norm.bias"));
    assert_eq!(rwkv7("model.layers.1.ffn_norm.weight"), tensor("blk.1.attn_norm_2.weight"));
    let name = "blk.1.time_mix_lerp_fused.weight".to_owned();
    assert_eq!(rwkv7("model.layers.1.attn.x_g"), Origin::Rows { name, rows: 5..6, of: 6 });
}

#[test]
fn configurations_with_experts_and_states() {
    expect("gguf-mixtral", json!({"model_type": "mixtral", "num_experts": 4, "num_experts_per_tok": 2}));
    expect("gguf-qwen3-moe", json!({"norm_topk_prob": true, "moe_intermediate_size": 32}));
    expect("gguf-qwen2-moe", json!({"shared_expert_intermediate_size": 64, "qkv_bias": true}));
    expect(
        "gguf-deepseek-v3",
        json!({
            "model_type": "deepseek_v3", "qk_rope_head_dim": 8, "qk_nope_head_dim": 32, "v_head_dim": 16,
            "kv_lora_rank": 32, "q_lora_rank": 32, "n_group": 2, "routed_scaling_factor": 1.7,
        }),
    );
    // One layer more predicts further tokens.
    expect("gguf-glm4-moe", json!({"num_hidden_layers": 2, "first_k_dense_replace": 1, "use_qk_norm": true}));
    expect(
        "gguf-granitemoe-shared",
        json!({"shared_intermediate_size": 64, "position_embedding_type": "rope"}),
    );
    expect("gguf-lfm2", json!({"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3}));
    expect("gguf-nemotron-h", json!({"layers_block_type": ["mamba", "mlp", "attention"]}));
    expect(
        "gguf-nemotron-h-moe",
        json!({
            "layers_block_type": ["mamba", "moe", "attention"], "moe_latent_size": 64, "routed_scaling_factor": 2.5,
            "moe_shared_expert_intermediate_size": 64, "norm_topk_prob": true,
        }),
    );
    expect(
        "gguf-gemma4-moe",
        json!({"enable_moe_block": true, "top_k_experts": 2, "moe_intermediate_size": 32, "intermediate_size": 32}),
    );
    expect(
        "gguf-rwkv7",
        json!({"head_dim": 16, "v_low_rank_dim": 6, "gate_low_rank_dim": 12, "norm_eps": 1e-5}),
    );
    // Key heads are repeated.
    expect("gguf-qwen3-5", json!({"linear_num_key_heads": 4, "linear_num_value_heads": 4}));
}

#[test]
fn metadata_that_stand_for_no_configuration() {
    let e = Draft::new("warp").error().to_string();
    assert!(
        e.starts_with("GGUF: general.architecture: wanted apertus, bitnet, ") && e.ends_with("got warp"),
        "{e}"
    );
    let e = Draft::new("llama").error().to_string();
    assert_eq!(e, "<memory>: no metadata key llama.embedding_length");
    let e = Draft::new("gemma").count("gemma.expert_count", 8).error().to_string();
    assert_eq!(e, "GGUF: gemma.expert_count: wanted 0: no experts, got 8");

    let draft = || {
        let counts = ["embedding_length", "feed_forward_length", "block_count", "context_length"];
        counts.iter().fold(Draft::new("llama"), |d, key| d.count(&format!("llama.{key}"), 64))
    };
    let e = draft().count("llama.attention.head_count", 0).error().to_string();
    assert!(e.ends_with("head_count: wanted at least 1, got 0"), "{e}");
    let heads = || draft().count("llama.attention.head_count", 4);
    let e = heads().count("llama.attention.value_length", 8).error().to_string();
    assert!(e.ends_with("value_length: wanted 16, the length of keys, got 8"), "{e}");
    let eps = "llama.attention.layer_norm_rms_epsilon";
    let e = heads().value(eps, 6, &f32::NAN.to_le_bytes()).error().to_string();
    assert!(e.ends_with("epsilon: wanted a finite number, got NaN"), "{e}");
    let rms = || heads().value(eps, 6, &1e-5f32.to_le_bytes());
    let e = rms().value("llama.rope.scaling.type", 8, &text("warp")).error().to_string();
    assert!(e.ends_with("got warp"), "{e}");
    let e = rms().error();
    assert!(
        matches!(&e, Error::Weights(rillm_nn::Error::MissingWeight { name }) if name == "token_embd.weight")
    );
}
