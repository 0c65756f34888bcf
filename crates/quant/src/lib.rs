//! What stored weight bytes mean: formats, block layouts and scalar reference codecs.
//!
//! Pure functions over bytes. No tensors, no threads, no SIMD: how to *compute* with these
//! formats is `rillm-tensor-core`'s business.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod affine;
mod bitstream;
mod codec;
mod error;
mod float;
mod format;
mod ggml;
mod microscaling;
mod row;

pub use bitstream::pack as pack_codes;
pub use codec::encode;
pub use error::{Error, Result};
pub use format::{FloatType, Format, RawTensor};
pub use ggml::SubScales;
pub use microscaling::{E2M1, e4m3_to_f32, e8m0_to_f32};
pub use row::RawRow;
