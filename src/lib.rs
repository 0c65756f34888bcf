//! Run language models inside Rust programs: load a Hugging Face, MLX or GGUF checkpoint and generate text.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "hub")]
pub mod hub;
