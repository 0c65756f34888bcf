//! The stored tensors of one module, their types and shapes checked. Knows no quantization.

use rillm_quant::{FloatType, e4m3_to_f32, e8m0_to_f32};

use super::super::safetensors::{Dtype, Safetensors, Stored};
use crate::{Error, Result};

/// A module of a checkpoint.
pub(in crate::weights) struct Module<'a> {
    files: &'a Safetensors,
    path: String,
}

impl<'a> Module<'a> {
    pub(in crate::weights) fn new(files: &'a Safetensors, path: &str) -> Self {
        Self { files, path: path.to_owned() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn name(&self, leaf: &str) -> String {
        format!("{}.{leaf}", self.path)
    }

    pub(super) fn has(&self, leaf: &str) -> bool {
        self.files.stored(&self.name(leaf)).is_some()
    }

    /// Whether all bytes of a tensor are 0.
    pub(super) fn is_zero(&self, leaf: &str) -> bool {
        self.files.stored(&self.name(leaf)).is_some_and(|t| t.bytes.iter().all(|b| *b == 0))
    }

    pub(super) fn get(&self, leaf: &str) -> Option<Part<'a>> {
        let name = self.name(leaf);
        self.files.stored(&name).map(|stored| Part { name, stored })
    }

    pub(super) fn need(&self, leaf: &str) -> Result<Part<'a>> {
        self.get(leaf).ok_or_else(|| Error::MissingWeight { name: self.name(leaf) })
    }

    /// Whether the checkpoint has a tensor of this full name.
    pub(super) fn checkpoint_has(&self, name: &str) -> bool {
        self.files.stored(name).is_some()
    }

    /// Lets go of the pages of `leaves`, which were copied.
    pub(in crate::weights) fn release(&self, leaves: impl Iterator<Item = &'static str>) {
        use super::super::WeightSource;
        leaves.filter_map(|leaf| self.get(leaf)).for_each(|part| self.files.release(part.stored.bytes));
    }
}

/// A tensor of a module.
pub(super) struct Part<'a> {
    pub name: String,
    stored: Stored<'a>,
}

/// What is packed into 32-bit words.
pub(super) const WORDS: [Dtype; 2] = [Dtype::I32, Dtype::U32];

impl<'a> Part<'a> {
    pub(super) fn dtype(&self) -> &'a Dtype {
        self.stored.dtype
    }

    pub(super) fn shape(&self) -> &'a [usize] {
        self.stored.shape
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.stored.bytes
    }

    /// This tensor, if it is of one of the types `want`.
    pub(super) fn typed(self, want: &[Dtype]) -> Result<Self> {
        if want.contains(self.stored.dtype) { Ok(self) } else { Err(self.wrong_type(want)) }
    }

    fn wrong_type(&self, want: &[Dtype]) -> Error {
        let want = want.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        Error::WeightType { name: self.name.clone(), got: self.stored.dtype.to_string(), want }
    }

    pub(super) fn wrong_shape(&self, want: &[usize]) -> Error {
        Error::WeightShape { name: self.name.clone(), got: self.shape().to_vec(), want: want.to_vec() }
    }

    pub(super) fn wrong_value(&self, want: String, got: impl ToString) -> Error {
        Error::WeightValue { name: self.name.clone(), want, got: got.to_string() }
    }

    /// This tensor, if it has shape `want`.
    pub(super) fn shaped(self, want: &[usize]) -> Result<Self> {
        if self.shape() == want { Ok(self) } else { Err(self.wrong_shape(want)) }
    }

    /// Rows and columns of a matrix that has some.
    pub(super) fn matrix(&self) -> Result<[usize; 2]> {
        match *self.shape() {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => Err(self.wrong_value("a matrix".to_owned(), format!("shape {:?}", self.shape()))),
        }
    }

    /// The type of plain values.
    pub(super) fn float_type(&self) -> Option<FloatType> {
        match self.stored.dtype {
            Dtype::Float(t) => Some(*t),
            _ => None,
        }
    }

    /// Values of scales: floats of any type, or bytes that are exponents.
    pub(super) fn scales(&self) -> Result<Vec<f32>> {
        let bytes = self.bytes();
        Ok(match self.stored.dtype {
            Dtype::Float(FloatType::F32) => {
                bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Dtype::Float(FloatType::F16) => {
                bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
            }
            Dtype::Float(FloatType::BF16) => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
            Dtype::E4M3 => bytes.iter().map(|b| e4m3_to_f32(*b)).collect(),
            Dtype::U8 | Dtype::E8M0 => bytes.iter().map(|b| e8m0_to_f32(*b)).collect(),
            _ => {
                let floats = [FloatType::F32, FloatType::F16, FloatType::BF16].map(Dtype::Float);
                return Err(self.wrong_type(&floats));
            }
        })
    }

    /// The only value of a tensor of floats.
    pub(super) fn scalar(&self) -> Result<f32> {
        match self.scales()?[..] {
            [x] => Ok(x),
            _ => Err(self.wrong_shape(&[1])),
        }
    }

    /// One over the only value of a tensor of floats.
    pub(super) fn divisor(&self) -> Result<f32> {
        match self.scalar()? {
            x if x.is_finite() && x != 0.0 => Ok(1.0 / x),
            x => Err(self.wrong_value("a finite number other than 0".to_owned(), x)),
        }
    }

    /// Integers of 32 or 64 bits.
    pub(super) fn integers(&self) -> Result<Vec<i64>> {
        let bytes = self.bytes();
        match self.stored.dtype {
            Dtype::I32 => Ok(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()),
            Dtype::I64 => Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            _ => Err(self.wrong_type(&[Dtype::I32, Dtype::I64])),
        }
    }
}
