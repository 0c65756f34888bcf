//! How to compute: the operations of language-model inference ([`Backend`]), and the CPU that runs them.
//!
//! Not a tensor library: no strides, no transpose, no broadcasting, no gradients. What bytes mean is
//! `rillm-quant`'s business; layers are `rillm-nn`'s.
#![deny(missing_docs)]

mod backend;
pub mod cpu;
mod error;
mod experts;
#[cfg(feature = "mlx")]
pub mod mlx;
mod params;
mod recurrent;
mod sampling;

pub use backend::{Backend, Ids, Input};
pub use error::{Error, Result};
pub use experts::{Experts, FullBackend, GroupScore, Groups, Routing, Score, Weigh};
pub use params::{Activation, AttnParams, AttnSpan, Batch, Keys, KvLayout, Pairing, Rope, Span};
pub use recurrent::{LinearAttention, Recurrent, RgLru, Rule, SelectiveScan, ShortConv, StateSpan, States};
pub use sampling::Sampling;
