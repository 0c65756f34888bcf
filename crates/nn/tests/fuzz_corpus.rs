//! Runs the committed corpus of each fuzz target: what the targets do, without a fuzzer.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use rillm_nn::{Gguf, Quantization, Safetensors, WeightSource};

/// Runs `target` on each file and says for how many it returned true.
fn run(name: &str, target: impl Fn(Vec<u8>) -> bool) -> usize {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    fs::read_dir(corpus)
        .unwrap()
        .filter(|file| target(fs::read(file.as_ref().unwrap().path()).unwrap()))
        .count()
}

fn decode_all(source: &dyn WeightSource) {
    for name in source.names() {
        if let Ok(Some(tensor)) = source.get_shaped(&name, &[64, 64]) {
            let _ = tensor.decode();
        }
    }
}

#[test]
fn gguf() {
    assert!(run("gguf", |bytes| Gguf::from_bytes(bytes).map(|file| decode_all(&file)).is_ok()) > 0);
}

#[test]
fn safetensors_index() {
    let read = run("safetensors_index", |bytes| {
        let index = Safetensors::weight_map(Path::new("index"), &bytes).is_ok();
        Safetensors::from_bytes(bytes).map(|file| decode_all(&file)).is_ok() || index
    });
    assert!(read > 0);
}

#[test]
fn config() {
    let read = run("config", |bytes| {
        serde_json::from_slice(&bytes).is_ok_and(|config| Quantization::from_config(&config).is_ok())
    });
    assert!(read > 0);
}
