//! GGUF files: header, metadata, the list of tensors, and the decoding of each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rillm_nn::{Gguf, WeightSource};

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(data.to_vec()) else { return };
    for name in file.names() {
        if let Ok(Some(tensor)) = file.get(&name) {
            let _ = tensor.decode();
        }
    }
});
