//! Key and value heads where a configuration is silent: those of transformers' configuration classes.
#![allow(clippy::unwrap_used, missing_docs)]

use rillm_models::{Config, decoder_spec};
use serde_json::json;

#[test]
fn heads_of_keys_are_those_of_the_class() {
    // None: as many as queries have.
    let classes = [
        ("apertus", None),
        ("bitnet", Some(5)),
        ("cohere", None),
        ("cohere2", None),
        ("ernie4_5", Some(2)),
        ("exaone4", Some(32)),
        ("gemma", Some(16)),
        ("gemma2", Some(4)),
        ("gemma3_text", Some(4)),
        ("glm", Some(2)),
        ("glm4", Some(2)),
        ("granite", None),
        ("helium", Some(20)),
        ("hunyuan_v1_dense", None),
        ("internlm3", Some(2)),
        ("llama", None),
        ("mistral", Some(8)),
        ("olmo", None),
        ("olmo2", None),
        ("olmo3", None),
        ("phi", None),
        ("phi3", None),
        ("qwen2", Some(32)),
        ("qwen3", Some(32)),
        ("seed_oss", Some(8)),
        ("smollm3", Some(4)),
        ("stablelm", Some(32)),
        ("starcoder2", Some(2)),
    ];
    for (model_type, heads) in classes {
        let config = json!({
            "model_type": model_type, "hidden_size": 1280, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 160, "head_dim": 8, "vocab_size": 96,
        });
        let mut spec = decoder_spec(&Config::new(&config).unwrap()).unwrap();
        let got = spec.attentions().next().unwrap().params.kv_heads;
        assert_eq!(got, heads.unwrap_or(160), "{model_type}");
    }
}
