//! config.json: its quantization, and the decoder that it describes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rillm_models::{Config, decoder_spec};
use rillm_nn::Quantization;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = serde_json::from_slice(data) else { return };
    let _ = Quantization::from_config(&config);
    if let Ok(config) = Config::new(&config) {
        let _ = decoder_spec(&config);
    }
});
