//! Safetensors: headers, the tensors behind them, quantized or not, and the index of a sharded checkpoint.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use rillm_nn::{Safetensors, WeightSource};

fuzz_target!(|data: &[u8]| {
    let _ = Safetensors::weight_map(Path::new("index"), data);
    let Ok(file) = Safetensors::from_bytes(data.to_vec()) else { return };
    for name in file.names() {
        if let Ok(Some(tensor)) = file.get_shaped(&name, &[64, 64]) {
            let _ = tensor.decode();
        }
    }
});
