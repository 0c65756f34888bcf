//! SmolLM2-135M-Instruct itself: its greedy tokens are those of transformers on the same weights.
//!
//! The model comes from where the examples take it, once, into the user's cache directory.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../examples/support/mod.rs"]
mod support;

use std::path::Path;

use rillm::Loader;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    prompt_text: String,
    prompt_tokens: Vec<u32>,
    greedy: Vec<u32>,
    greedy_text: String,
    top2_logits: Vec<[f32; 2]>,
}

#[test]
fn greedy_tokens_and_text_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2-greedy.json");
    let references: Vec<Reference> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(references.len(), 10);
    let model = support::quantized_default_model().unwrap();
    let lm = Loader::new(model.to_str().unwrap()).exact().load().unwrap();
    for r in references {
        let generation = lm.complete(r.prompt_text.as_str()).ignore_eos().max_tokens(r.greedy.len());
        assert_eq!(generation.prompt_tokens().unwrap(), r.prompt_tokens, "{}", r.prompt_text);
        let got = generation.run().unwrap();
        if let Some(i) = (0..r.greedy.len()).find(|&i| got.tokens[i] != r.greedy[i]) {
            let [first, second] = r.top2_logits[i];
            panic!(
                "{}: token {i}: {} not {}; logits there {first} and {second}",
                r.prompt_text, got.tokens[i], r.greedy[i]
            );
        }
        assert_eq!(got.text, r.greedy_text, "{}", r.prompt_text);
    }
}
