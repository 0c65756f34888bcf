//! Files and requests that are wrong: each gives one typed error that says which file and what is wrong with it,
//! and none makes the process panic or take more memory than the file justifies.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rillm::generate::{Generator, Request};
use rillm::{Error, LanguageModel, Loader};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use support::{golden, tokens};

/// Remembers the largest allocation.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator unchanged; the counter allocates nothing.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as in `alloc`; `ptr` came from `System`, as all memory here.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// No allocation of this binary may be larger: the checkpoints have a few hundred kilobytes.
const ALLOWED: usize = 8 << 20;

fn load(path: &Path) -> Result<LanguageModel, Box<Error>> {
    let lm = Loader::new(path.to_str().unwrap()).exact().threads(1).load();
    let largest = LARGEST.swap(0, Ordering::Relaxed);
    assert!(largest <= ALLOWED, "{}: an allocation of {largest} bytes", path.display());
    lm.map_err(Box::new)
}

/// The message of the error that loading gives: it names the file or its folder.
fn refused(path: &Path) -> String {
    let message = match load(path) {
        Ok(_) => panic!("{} loads", path.display()),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(path.to_str().unwrap()), "{message} does not name {}", path.display());
    message
}

/// A copy of a golden checkpoint.
fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("golden.safetensors") {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// The checkpoint `name` with its configuration changed by `edits`; null removes a key.
fn with_config(name: &str, edits: &Value) -> TempDir {
    let dir = copy(name);
    let path = dir.path().join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in edits.as_object().unwrap() {
        match value {
            Value::Null => config.remove(key),
            value => config.insert(key.clone(), value.clone()),
        };
    }
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
    dir
}

/// Header and data of `model.safetensors` of the golden `llama`, changed by `edit`, in a folder.
fn with_weights(edit: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) -> TempDir {
    let dir = copy("llama");
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let mut data = bytes[8 + n..].to_vec();
    edit(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], &header, &data].concat()).unwrap();
    dir
}

/// A change to `key` of the header's entry of a tensor.
fn with_info(tensor: &str, key: &str, value: &Value) -> TempDir {
    with_weights(|header, _| {
        header.get_mut(tensor).unwrap()[key] = value.clone();
    })
}

/// A folder and the words that its error must have.
type Case = (TempDir, &'static [&'static str]);

fn all_refused(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (dir, words) in cases {
        match load(dir.path()).map_err(|e| e.to_string()) {
            Ok(_) => wrong.push(format!("{words:?} loads")),
            Err(message) if !message.contains(dir.path().to_str().unwrap()) => {
                wrong.push(format!("{message:?} names no file"));
            }
            Err(message) => {
                let missing = words.iter().filter(|word| !message.contains(**word));
                wrong.extend(missing.map(|word| format!("{message:?} does not say {word:?}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_that_are_nothing() {
    let error = load(Path::new("/no/such/model")).unwrap_err();
    assert!(matches!(*error, Error::NotFound { .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(dir.path()).contains("config.json"), "an empty folder");
    let file = dir.path().join("model.gguf");
    fs::write(&file, "GGUF").unwrap();
    assert!(refused(&file).contains("truncated"));
    fs::write(&file, "not a model at all").unwrap();
    assert!(refused(&file).contains("not a GGUF file"));
    fs::create_dir(dir.path().join("folder.gguf")).unwrap();
    refused(&dir.path().join("folder.gguf"));
    assert!(Loader::new(golden("llama").to_str().unwrap()).kernels("abacus").load().is_err());
}

#[test]
fn configurations_that_are_no_json() {
    for (text, words) in
        [("", "config.json"), ("{", "config.json"), ("[1]", "an object"), ("{\"a\": 1e999}", "config.json")]
    {
        let dir = copy("llama");
        fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(refused(dir.path()).contains(words), "{text:?}");
    }
    let dir = copy("llama");
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(refused(dir.path()).contains("config.json"));
    fs::create_dir(dir.path().join("config.json")).unwrap();
    refused(dir.path());
    let dir = copy("llama");
    fs::write(dir.path().join("config.json"), "[".repeat(1 << 20)).unwrap();
    refused(dir.path());
    let dir = copy("llama");
    fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    assert!(refused(dir.path()).contains("generation_config.json"));
}

#[test]
fn configurations_without_sense() {
    let llama = |edits: Value, words| -> Case { (with_config("llama", &edits), words) };
    let nine = 1_000_000_000u64;
    all_refused(&[
        llama(json!({"model_type": "gpt9"}), &["gpt9", "known are", "llama", "qwen3"]),
        llama(json!({"model_type": null}), &["model_type", "nothing"]),
        llama(json!({"model_type": 3}), &["model_type", "3"]),
        llama(json!({"hidden_size": nine}), &["hidden_size", "1000000000"]),
        llama(json!({"num_hidden_layers": nine}), &["num_hidden_layers", "1000000000"]),
        llama(json!({"num_hidden_layers": 1_000_000}), &["num_hidden_layers", "at most 4096"]),
        llama(json!({"num_hidden_layers": 3}), &["no parameter model.layers.2."]),
        llama(json!({"num_hidden_layers": 0}), &["num_hidden_layers"]),
        llama(json!({"num_hidden_layers": 1}), &["does not use", "model.layers.1."]),
        llama(json!({"hidden_size": 1 << 24, "head_dim": null}), &["head"]),
        llama(json!({"head_dim": 1 << 24}), &["head_dim"]),
        llama(json!({"head_dim": 0}), &["head_dim"]),
        llama(json!({"num_attention_heads": 0}), &["num_attention_heads"]),
        llama(json!({"num_attention_heads": -4}), &["num_attention_heads", "-4"]),
        llama(json!({"num_attention_heads": 1 << 24, "num_key_value_heads": 1}), &["shape", "q_proj"]),
        llama(json!({"num_attention_heads": 3}), &["num_key_value_heads", "divisor of 3"]),
        llama(json!({"num_key_value_heads": 3}), &["num_key_value_heads", "divisor of 4"]),
        llama(json!({"num_key_value_heads": 0}), &["num_key_value_heads"]),
        llama(json!({"num_key_value_heads": 8}), &["num_key_value_heads"]),
        llama(json!({"vocab_size": 0}), &["vocab_size"]),
        llama(json!({"vocab_size": 319}), &["embed_tokens", "319", "320"]),
        llama(json!({"vocab_size": 1 << 24}), &["embed_tokens"]),
        llama(json!({"intermediate_size": 0}), &["intermediate_size"]),
        llama(json!({"intermediate_size": u64::MAX}), &["intermediate_size"]),
        llama(json!({"intermediate_size": 1 << 24}), &["mlp."]),
        llama(json!({"intermediate_size": "128"}), &["intermediate_size", "128"]),
        llama(json!({"intermediate_size": 128.5}), &["intermediate_size", "128.5"]),
        llama(json!({"max_position_embeddings": 0}), &["max_position_embeddings"]),
        llama(json!({"rms_norm_eps": 0}), &["rms_norm_eps"]),
        llama(json!({"rms_norm_eps": "small"}), &["rms_norm_eps", "small"]),
        llama(json!({"hidden_act": "swishy"}), &["hidden_act", "swishy", "silu"]),
        llama(json!({"hidden_act": 7}), &["hidden_act"]),
        llama(json!({"tie_word_embeddings": false}), &["lm_head.weight"]),
        llama(json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings"]),
        llama(json!({"attention_bias": true}), &["_proj.bias"]),
        llama(json!({"mlp_bias": 1}), &["mlp_bias"]),
    ]);
    let mistral = |edits: Value, words| -> Case { (with_config("mistral-sliding", &edits), words) };
    all_refused(&[
        mistral(json!({"sliding_window": 0}), &["sliding_window"]),
        mistral(json!({"sliding_window": -1}), &["sliding_window", "-1"]),
        mistral(json!({"sliding_window": 1.5}), &["sliding_window"]),
    ]);
    let gemma = |edits: Value, words| -> Case { (with_config("gemma3-linear", &edits), words) };
    all_refused(&[
        gemma(json!({"layer_types": ["full_attention"]}), &["layer_types"]),
        gemma(json!({"layer_types": "full_attention"}), &["layer_types"]),
        gemma(json!({"query_pre_attn_scalar": 0}), &["query_pre_attn_scalar"]),
        gemma(json!({"query_pre_attn_scalar": -1}), &["query_pre_attn_scalar"]),
    ]);
    let gpt2 = |edits: Value, words| -> Case { (with_config("gpt2-n-inner", &edits), words) };
    all_refused(&[
        gpt2(json!({"n_head": 3}), &["n_head"]),
        gpt2(json!({"n_head": 0}), &["n_head"]),
        gpt2(json!({"n_positions": 1 << 24}), &["wpe.weight"]),
        gpt2(json!({"n_layer": 1 << 24}), &["n_layer"]),
        gpt2(json!({"activation_function": "tan"}), &["activation_function"]),
    ]);
}

#[test]
fn configurations_of_other_families_without_sense() {
    let of = |name: &str, edits: Value, words| -> Case { (with_config(name, &edits), words) };
    let other = json!({"sliding_attention": {"rope_type": "default", "rope_theta": 5e6}});
    let endless = json!({"intermediate_size": null, "expand": 1e300});
    all_refused(&[
        of("lfm2-adjusted", json!({"block_ffn_dim_multiplier": 1e300}), &["block_ffn_dim_multiplier"]),
        of("mamba", endless, &["expand", "1e"]),
        of("mamba2", json!({"expand": 1e300}), &["expand"]),
        of("ernie4-5-moe", json!({"moe_norm_min": 0.5}), &["moe_norm_min", "0.5"]),
        of("llama", json!({"rope_parameters": other}), &["rope_parameters", "full_attention"]),
        of("gemma3-linear", json!({"rope_parameters": other}), &["rope_parameters", "full_attention"]),
        of("nemotron-h-moe", json!({"hybrid_override_pattern": "ME*X"}), &["hybrid_override_pattern", "E"]),
        of("nemotron-h-moe", json!({"num_experts_per_tok": 7}), &["num_experts_per_tok", "6 experts"]),
        of("nemotron-h-latent", json!({"moe_latent_size": 16}), &["experts.0.up_proj", "[16, 24]"]),
        of("gemma4-moe", json!({"num_experts": null}), &["num_experts", "nothing"]),
        of("gemma4-moe", json!({"top_k_experts": 6}), &["top_k_experts", "5 experts"]),
        of("mlx-falcon-h1-4bit-g32", json!({"mlp_bias": true}), &["mlp_bias", "mlx-lm"]),
        of("rwkv7", json!({"num_heads": 3}), &["num_heads", "3"]),
        of("rwkv7", json!({"value_dim": [64, 32]}), &["value_dim", "32"]),
        of("rwkv7", json!({"head_dim": 24}), &["head_dim"]),
        of("rwkv7", json!({"hidden_act": "relu"}), &["hidden_act", "relu"]),
    ]);
}

#[test]
fn frequencies_without_sense() {
    let rope = |p: Value, words| -> Case { (with_config("llama", &json!({"rope_parameters": p})), words) };
    let long = |short: Value, long: Value| {
        json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": 64})
    };
    let ones = json!([1, 1, 1, 1, 1, 1, 1, 1]);
    all_refused(&[
        rope(json!({"rope_type": "spiral"}), &["rope_type", "spiral", "llama3"]),
        rope(json!({"rope_type": 3}), &["rope_type"]),
        rope(json!([1]), &["rope_parameters"]),
        rope(json!({"rope_type": "linear"}), &["factor", "nothing"]),
        rope(json!({"rope_type": "linear", "factor": 0}), &["factor"]),
        rope(json!({"rope_type": "linear", "factor": -2}), &["factor", "-2"]),
        rope(json!({"rope_type": "linear", "factor": "NaN"}), &["factor", "NaN"]),
        rope(json!({"rope_type": "dynamic", "factor": 0.5}), &["factor", "0.5"]),
        rope(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 0}), &["low_freq_factor"]),
        rope(json!({"rope_type": "yarn", "factor": 4, "beta_fast": -1}), &["beta_fast"]),
        rope(
            json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0}),
            &["original_max"],
        ),
        rope(json!({"rope_type": "yarn", "factor": 4, "truncate": 1}), &["truncate"]),
        rope(json!({"rope_theta": 0}), &["rope_theta"]),
        rope(json!({"rope_theta": -10_000}), &["rope_theta"]),
        rope(json!({"partial_rotary_factor": 0.01}), &["partial_rotary_factor"]),
        rope(json!({"partial_rotary_factor": 2}), &["partial_rotary_factor"]),
        (with_config("llama", &json!({"head_dim": 15})), &["partial_rotary_factor", "pairs", "15"]),
        rope(long(json!([1]), ones.clone()), &["short_factor", "8 numbers"]),
        rope(long(ones.clone(), json!([0, 1, 1, 1, 1, 1, 1, 1])), &["long_factor"]),
        rope(long(ones.clone(), json!("long")), &["long_factor"]),
    ]);
    // Degenerate, but numbers: the model loads, and a step answers or says that it can't.
    for p in [
        json!({"rope_theta": 1.0, "rope_type": "yarn", "factor": 4}),
        json!({"rope_theta": 1e300, "rope_type": "dynamic", "factor": 1e300}),
        json!({"rope_type": "linear", "factor": 1e308}),
        json!({"rope_type": "longrope", "short_factor": ones, "long_factor": ones,
            "original_max_position_embeddings": 1, "factor": 4}),
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
    ] {
        let dir = with_config("llama", &json!({"rope_parameters": p}));
        let lm = load(dir.path()).unwrap_or_else(|e| panic!("{p}: {e}"));
        let steps = Generator::new(lm.session(), Request::new(tokens(9, 320, 1)).max_tokens(4)).unwrap();
        assert!(steps.count() > 0, "{p}");
    }
}

#[test]
fn weights_that_are_cut_short() {
    let whole = fs::read(golden("llama").join("model.safetensors")).unwrap();
    let dir = copy("llama");
    let path = dir.path().join("model.safetensors");
    for n in [0, 1, 7, 8, 9, 100, 1000, 3000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..n]).unwrap();
        let message = refused(dir.path());
        assert!(message.contains("truncated") && message.contains("model.safetensors"), "{n}: {message}");
    }
    let file = dir.path().join("model.gguf");
    let whole = fs::read(golden("gguf-llama-q8_0").join("model.gguf")).unwrap();
    for n in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        fs::write(&file, &whole[..n]).unwrap();
        refused(&file);
    }
}

#[test]
fn counts_of_gguf_that_contradict_its_tensors() {
    let with = |name: &str, key: &str, n: u32| {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(golden(name).join("model.gguf")).unwrap();
        let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
        let file = dir.path().join("model.gguf");
        fs::write(&file, bytes).unwrap();
        refused(&file)
    };
    let experts = |n| with("gguf-qwen3-moe", "qwen3moe.expert_count", n);
    assert!(experts(u32::MAX).contains("qwen3moe.expert_count: wanted 1 to 4096, got 4294967295"));
    let message = experts(4096);
    assert!(message.contains("ffn_gate_exps.weight") && message.contains("4096"), "{message}");
    assert!(experts(1).contains("experts"));
    let hidden = |n| with("gguf-qwen3-moe", "qwen3moe.expert_feed_forward_length", n);
    for n in [1, 31, 33, 1 << 30, u32::MAX] {
        let message = hidden(n);
        assert!(
            ["exps.weight", "moe_intermediate_size"].iter().any(|word| message.contains(word)),
            "{n}: {message}"
        );
    }
    for (name, key, n, word) in [
        ("gguf-deepseek-v3", "deepseek2.attention.kv_lora_rank", 1 << 20, "attn_k"),
        ("gguf-qwen3-5", "qwen35.ssm.time_step_rank", 1 << 20, "ssm.time_step_rank"),
        ("gguf-qwen3-5", "qwen35.ssm.group_count", u32::MAX, "ssm.time_step_rank"),
        ("gguf-qwen3-5", "qwen35.ssm.state_size", u32::MAX, "ssm.inner_size"),
        ("gguf-mamba2", "mamba2.ssm.inner_size", 1 << 20, "ssm_in"),
        ("gguf-mamba", "mamba.ssm.state_size", 1 << 20, "ssm_x"),
        ("gguf-lfm2", "lfm2.shortconv.l_cache", 1 << 20, "shortconv.conv"),
    ] {
        let message = with(name, key, n);
        assert!(message.contains(word), "{name}: {key} {n}: {message}");
    }
}

/// A matrix of one column has many rows in a small file, and some of them are listed 16 times.
#[test]
fn rows_of_gguf_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(golden("gguf-qwen3-5").join("model.gguf")).unwrap();
    let after = |bytes: &[u8], word: &str| {
        bytes.windows(word.len()).position(|w| w == word.as_bytes()).unwrap() + word.len()
    };
    let rows: u32 = (1 << 20) + 16;
    for (key, n) in [("group_count", 1), ("time_step_rank", 16), ("inner_size", 16), ("state_size", 1 << 19)]
    {
        let at = after(&bytes, &format!("qwen35.ssm.{key}")) + 4;
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(n));
    }
    // Dimensions, type (f16) and offset, which is past all others.
    let offset = bytes.len().next_multiple_of(32);
    let at = after(&bytes, "blk.0.attn_qkv.weight") + 4;
    bytes[at..at + 8].copy_from_slice(&1u64.to_le_bytes());
    bytes[at + 8..at + 16].copy_from_slice(&u64::from(rows).to_le_bytes());
    bytes[at + 16..at + 20].copy_from_slice(&1u32.to_le_bytes());
    bytes[at + 20..at + 28].copy_from_slice(&(offset as u64).to_le_bytes());
    bytes.resize(bytes.len() + offset + 2 * rows as usize, 0);
    let file = dir.path().join("model.gguf");
    fs::write(&file, bytes).unwrap();
    let message = refused(&file);
    assert!(message.contains("ssm.state_size") && message.contains("1048592"), "{message}");
}

#[test]
fn headers_that_contradict_the_file() {
    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    const NORM: &str = "model.norm.weight";
    all_refused(&[
        (with_info(NORM, "dtype", &json!("I32")), &[NORM, "I32", "not supported"]),
        (with_info(NORM, "dtype", &json!("F16")), &[NORM, "F16", "bytes"]),
        (with_info(NORM, "dtype", &json!("X9")), &[NORM, "X9", "not supported"]),
        (with_info(NORM, "shape", &json!([65])), &[NORM, "65", "bytes"]),
        (with_info(NORM, "shape", &json!([64, 1])), &[NORM, "shape [64]", "[64, 1]"]),
        (with_info(Q, "shape", &json!([32, 128])), &[Q, "[64, 64]", "[32, 128]"]),
        (with_info(Q, "shape", &json!([u64::MAX, 2])), &[Q, "overflows"]),
        (with_info(Q, "shape", &json!([1u64 << 40, 1u64 << 40])), &[Q, "overflows"]),
        (with_info(Q, "shape", &json!([-1, 64])), &["header"]),
        (with_info(Q, "data_offsets", &json!([0, 16384])), &["bytes"]),
        (with_info(Q, "data_offsets", &json!([u64::MAX, 0])), &["bytes", "wanted a range"]),
        (with_info(Q, "data_offsets", &json!([16384, 0])), &[]),
        (with_info("model.norm.weight", "data_offsets", &json!([0, 1u64 << 60])), &[]),
        (with_weights(|_, data| data.extend([0; 3])), &["3 bytes follow"]),
        (with_weights(|header, _| drop(header.insert("x".into(), json!({})))), &["header"]),
        (
            with_weights(|header, data| {
                let end = data.len();
                header.insert(
                    "model.extra".into(),
                    json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}),
                );
                data.extend([0; 4]);
            }),
            &["does not use 1", "model.extra"],
        ),
        (
            with_weights(|header, _| {
                let info = header.remove(NORM).unwrap();
                header.insert("model.nrom.weight".into(), info);
            }),
            &["no parameter model.norm.weight"],
        ),
    ]);
    let dir = copy("llama");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() as u64, 1 << 40, u64::MAX] {
        fs::write(&path, [&length.to_le_bytes(), &whole[8..]].concat()).unwrap();
        assert!(refused(dir.path()).contains("header"), "{length}");
    }
    fs::remove_file(&path).unwrap();
    assert!(refused(dir.path()).contains("safetensors"));
}

#[test]
fn shards_that_do_not_fit_together() {
    let dir = copy("llama-sharded");
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(refused(dir.path()).contains("model-00002-of-00003.safetensors"));
    let dir = copy("llama-sharded");
    fs::copy(
        dir.path().join("model-00001-of-00003.safetensors"),
        dir.path().join("model-00002-of-00003.safetensors"),
    )
    .unwrap();
    assert!(refused(dir.path()).contains("twice"));
    let index = "model.safetensors.index.json";
    for (text, word) in [
        ("{", index),
        ("{}", index),
        (r#"{"weight_map": {"a": "../../etc/passwd"}}"#, "not a plain file name"),
        (r#"{"weight_map": {"a": "model-00001-of-00003.safetensors"}}"#, "does not hold a"),
    ] {
        fs::write(dir.path().join(index), text).unwrap();
        assert!(refused(dir.path()).contains(word), "{text}");
    }
}

#[test]
fn quantizations_that_are_unknown_or_do_not_fit() {
    let mlx =
        |q: Value, words| -> Case { (with_config("mlx-llama-4bit-g64", &json!({"quantization": q})), words) };
    all_refused(&[
        mlx(json!({"group_size": 64, "bits": 4, "mode": "fp3"}), &["fp3", "affine"]),
        mlx(json!({"group_size": 64, "bits": 7, "mode": "affine"}), &["7"]),
        mlx(json!({"group_size": 63, "bits": 4}), &["63"]),
        mlx(json!({"group_size": 0, "bits": 0}), &["quantization"]),
        mlx(json!({"model.embed_tokens": {"group_size": 32, "bits": 4}}), &["model.embed_tokens", "codes"]),
        mlx(json!({"model.embed_tokens": {"group_size": 64, "bits": 8}}), &["model.embed_tokens", "codes"]),
        mlx(json!({"model.embed_tokens": {"mode": "mxfp4"}}), &["model.embed_tokens", "codes"]),
        mlx(json!({"model.embed_tokens": false}), &["model.embed_tokens", "U32", "not supported"]),
        mlx(json!("4 bits"), &["quantization"]),
    ]);
    let of = |q: Value, words| -> Case { (with_config("llama", &json!({"quantization_config": q})), words) };
    all_refused(&[
        of(json!({"quant_method": "aqlm", "bits": 4}), &["aqlm"]),
        of(json!({"quant_method": "gptq"}), &["gptq", "bits"]),
        of(json!({"quant_method": "gptq", "bits": 5}), &["gptq", "bits", "5"]),
        of(json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), &["checkpoint_format"]),
        of(json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), &["group_size"]),
        of(json!({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}), &["dynamic"]),
        of(json!({"quant_method": "awq", "version": "gemv_fast"}), &["awq", "version", "gemv_fast"]),
        of(json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), &["weight_block_size"]),
        of(json!({"quant_method": "bitnet", "use_rms_norm": true}), &["use_rms_norm"]),
        of(json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), &["format", "marlin-24"]),
        of(json!({"quant_method": "modelopt", "quant_algo": "INT8"}), &["quant_algo", "INT8"]),
    ]);
}

#[test]
fn weights_that_are_not_numbers() {
    let dir = with_weights(|header, data| {
        let at = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
        data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let lm = load(dir.path()).unwrap();
    let mut generator = Generator::new(lm.session(), Request::new([1, 2, 3])).unwrap();
    let error = generator.next().unwrap().unwrap_err();
    assert!(matches!(error, rillm::generate::Error::NanLogits { .. }), "{error}");
    assert!(generator.next().is_none());
}

#[test]
fn text_of_a_model_without_a_tokenizer() {
    let lm = load(&golden("llama")).unwrap();
    for generation in [lm.chat("Hello"), lm.complete("Hello"), lm.complete(vec![1, 2])] {
        let message = generation.run().unwrap_err().to_string();
        assert!(message.contains("tokenizer.json is missing"), "{message}");
    }
    assert!(lm.tokenizer().is_err() && lm.chat_template().is_err());
    assert_eq!(lm.tokens(Request::new([1, 2]).max_tokens(3)).unwrap().count(), 3);
    let dir = copy("llama");
    fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
    let message = load(dir.path()).unwrap().complete("a").run().unwrap_err().to_string();
    assert!(message.contains("tokenizer.json"), "{message}");
}

/// A tokenizer of words, and a model with fewer tokens than it knows.
fn with_tokenizer(chat_template: &Value) -> TempDir {
    let dir = copy("llama");
    let vocab: Map<String, Value> = (0..400).map(|i| (format!("w{i}"), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
        "truncation": null, "padding": null, "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"chat_template": chat_template});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn a_chat_template_that_can_not_be_read_fails_chats_alone() {
    for (template, word) in [
        (json!("{% if %}"), "chat template"),
        (json!("{{ messages | nonsense }}"), "nonsense"),
        (json!("{{ raise_exception('no such role') }}"), "no such role"),
        (Value::Null, "no chat template"),
        (json!(7), "no chat template"),
    ] {
        let dir = with_tokenizer(&template);
        let lm = load(dir.path()).unwrap();
        assert_eq!(lm.complete("w1 w2").max_tokens(3).run().unwrap().tokens.len(), 3, "{template}");
        let message = lm.chat("w1").run().unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn prompts_that_can_not_be_run() {
    let dir = with_tokenizer(&Value::Null);
    let lm = load(dir.path()).unwrap();
    let word = |n: usize| vec!["w1"; n].join(" ");
    for (generation, words) in [
        (lm.complete("w1 w320"), "token 320 is outside the vocabulary of 320"),
        (lm.complete(vec![u32::MAX]), "outside the vocabulary"),
        (lm.complete(""), "the prompt is empty"),
        (lm.complete(Vec::<u32>::new()), "the prompt is empty"),
        (lm.complete(word(257).as_str()), "257 tokens does not fit a context of 256"),
        (lm.complete("w1").stop(""), "stop"),
    ] {
        let message = generation.max_tokens(4).run().unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(lm.cache_bytes(), 0, "nothing is left behind");
    let batch = vec![lm.complete("w1").max_tokens(2), lm.complete("w399")];
    let message = lm.generate_batch(batch).unwrap_err().to_string();
    assert!(message.contains("token 399"), "{message}");
    assert_eq!(lm.cache_bytes(), 0, "nothing is left behind");
    assert_eq!(lm.complete("w5").max_tokens(2).run().unwrap().tokens.len(), 2);
}
