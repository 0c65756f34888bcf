//! Run language models inside Rust programs: load a Hugging Face, MLX or GGUF checkpoint and generate text.
//!
//! ```no_run
//! let lm = rillm::load("HuggingFaceTB/SmolLM2-135M-Instruct")?;
//! for piece in lm.chat("Why is the sky blue?").max_tokens(128).stream()? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), rillm::Error>(())
//! ```
//!
//! This crate is a facade: [`load`] puts together the layers below, each of them a crate of its own that can be
//! used alone. [`quant`] knows what stored bytes mean, [`tensor`] computes, [`kvcache`] remembers, [`nn`] has layers
//! and checkpoints, [`models`] the families, [`mod@generate`] makes tokens and text.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod error;
mod generation;
#[cfg(feature = "hub")]
pub mod hub;
mod json;
mod loader;
mod model;
mod random;
mod statistics;

pub use rillm_generate as generate;
pub use rillm_kvcache as kvcache;
pub use rillm_models as models;
pub use rillm_nn as nn;
pub use rillm_quant as quant;
pub use rillm_tensor_core as tensor;

pub use error::{Error, Result};
pub use generation::{Completion, Generation, Prompt, Stream};
pub use loader::{Device, Loader, load};
pub use model::{LanguageModel, ModelInfo};
pub use random::RandomShape;
pub use rillm_generate::{
    CancelHandle, FinishReason, Message, Piece, Progress, SamplerOptions, SamplerOrder, Token, Tokenizer,
};
pub use rillm_models::{FamilyInfo, families};
#[cfg(feature = "mlx")]
pub use rillm_tensor_core::mlx::MlxDevice;
pub use statistics::{DeviceUsage, Statistics, peak_memory_bytes};
