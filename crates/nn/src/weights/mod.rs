//! Checkpoints: files of named parameters. Knows files, not backends or models.

mod adapt;
mod foreign;
mod gguf;
#[allow(unsafe_code)] // Mapping a file is unsafe; the file says why it holds.
mod map;
mod quantization;
mod safetensors;
mod scope;

pub use adapt::{Adapted, Lie, Origin};
pub use gguf::{Array, Gguf, NumberType, Numbers, Texts, Value};
pub use quantization::Quantization;
pub use safetensors::Safetensors;
pub use scope::Weights;

use rillm_quant::RawTensor;

use crate::Result;

/// A checkpoint: named parameters as stored. Knows files, not backends or models.
pub trait WeightSource: Send + Sync {
    /// The parameter called `name` (a matrix: `...weight`, with its scales and biases if it is quantized),
    /// borrowed from the mapped file where possible; `None` if there is none.
    ///
    /// # Errors
    /// The parameter is there, but of a type or shape that can't be read.
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>>;

    /// The parameter called `name` for a layer that wants shape `want`. A source whose files don't determine
    /// the shape (the codes of a quantized matrix only fix `bits * group`) settles it by `want`; the others
    /// ignore `want`. The caller still compares shapes.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
    fn get_shaped(&self, name: &str, want: &[usize]) -> Result<Option<RawTensor<'_>>> {
        let _ = want;
        self.get(name)
    }

    /// What the parameter called `name` is called in the files, for errors.
    fn stored_name(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Says that `bytes`, which a tensor of this source borrowed, were copied and won't be read soon: memory they
    /// are mapped to can go.
    fn release(&self, bytes: &[u8]) {
        let _ = bytes;
    }

    /// Names of all parameters (scales and biases of quantized matrices not listed on their own).
    fn names(&self) -> Vec<String>;
}
