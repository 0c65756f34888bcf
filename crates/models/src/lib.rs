//! Model families: from config.json to a description of layers to a model.
//!
//! A family is a file named after its `model_type` that translates a configuration into a [`DecoderSpec`]; a
//! family of another build implements [`CausalLm`](rillm_nn::CausalLm) out of `rillm-nn`'s layers. How tokens
//! come out of a model is `rillm-generate`'s business.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod composite;
mod config;
mod decoder;
mod error;
mod experts;
mod families;
#[cfg(feature = "gguf")]
pub mod gguf;
mod names;
mod registry;
mod spec;

pub use composite::{TextPart, text_config};
pub use config::Config;
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use names::Layout;
pub use registry::{DecoderFamily, Family, FamilyInfo, Registry, decoder_spec, families};
pub use spec::{BranchSpec, DecoderSpec, GroupSpec, HeadSpec, LayerSpec, MixerSpec, NormSpec, Norms};
