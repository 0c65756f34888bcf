//! config.json: its quantization.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rillm_nn::Quantization;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = serde_json::from_slice(data) else { return };
    let _ = Quantization::from_config(&config);
});
