//! GGUF files: header, metadata, the list of tensors, the configuration they stand for, and the decoding of each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rillm_nn::{Adapted, Gguf, WeightSource};

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(data.to_vec()) else { return };
    for name in file.names() {
        if let Ok(Some(tensor)) = file.get(&name) {
            let _ = tensor.decode();
        }
    }
    let _ = rillm_models::gguf::config(&file);
    let Ok(layout) = rillm_models::gguf::layout(&file) else { return };
    let source = Adapted::new(file, layout);
    for name in [
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.layers.0.self_attn.k_layernorm.norms.1.weight",
        "model.layers.0.mlp.act_fn.alpha_p",
        "gpt_neox.layers.0.attention.query_key_value.weight",
    ] {
        let _ = source.get_shaped(name, &[8, 8]);
        let _ = source.get(name);
    }
});
