//! Integer codes with a scale and a zero point for each group of columns: to affine groups where the groups lie so,
//! else to plain values. Nothing is lost either way.
//!
//! `w = scale * (code - zero)` is `scale * code + bias` with `bias = -zero * scale`.

use std::borrow::Cow;

use half::{bf16, f16};
use rillm_quant::{FloatType, Format, RawTensor, encode, pack_codes};

use crate::{Error, Result};

/// A quantized matrix `[rows, cols]`.
pub(super) struct Grouped<'a> {
    pub rows: usize,
    pub cols: usize,
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Each row a little-endian bit stream of its own, of a whole number of bytes.
    pub codes: Cow<'a, [u8]>,
    pub groups: Groups,
    /// `[rows, groups]`.
    pub scales: Vec<f32>,
    /// `[rows, groups]`, or one for all.
    pub zeros: Zeros,
    /// What the scales are stored as.
    pub meta: FloatType,
}

/// Which group a column belongs to.
pub(super) enum Groups {
    /// Runs of so many columns.
    Runs(usize),
    /// The group of each column.
    Listed(Vec<usize>),
}

/// The codes that mean zero.
pub(super) enum Zeros {
    Same(f32),
    Each(Vec<f32>),
}

/// Columns of an affine group, widest first.
const AFFINE_GROUPS: [usize; 3] = [128, 64, 32];

impl Groups {
    fn of(&self, col: usize) -> usize {
        match self {
            Self::Runs(n) => col / n,
            Self::Listed(list) => list[col],
        }
    }

    /// The widest affine group that never spans two of these.
    fn affine(&self, cols: usize) -> Option<usize> {
        AFFINE_GROUPS.into_iter().find(|width| {
            cols.is_multiple_of(*width)
                && match self {
                    Self::Runs(n) => n.is_multiple_of(*width) || *n >= cols,
                    Self::Listed(list) => list.chunks(*width).all(|run| run.iter().all(|g| *g == run[0])),
                }
        })
    }
}

impl<'a> Grouped<'a> {
    /// The matrix in the smallest of our formats that holds it. `name` is for errors.
    pub(super) fn tensor(self, name: &str) -> Result<RawTensor<'a>> {
        match self.groups.affine(self.cols) {
            Some(width) => self.affine(width, name),
            None => self.plain(name),
        }
    }

    /// Groups of a row.
    fn count(&self) -> usize {
        self.scales.len() / self.rows.max(1)
    }

    fn zero(&self, at: usize) -> f32 {
        match &self.zeros {
            Zeros::Same(zero) => *zero,
            Zeros::Each(zeros) => zeros[at],
        }
    }

    fn affine(mut self, width: usize, name: &str) -> Result<RawTensor<'a>> {
        let per_row = self.cols / width;
        let (mut scales, mut biases) = (Vec::new(), Vec::new());
        for row in 0..self.rows {
            for start in 0..per_row {
                let at = row * self.count() + self.groups.of(start * width);
                scales.push(self.scales[at]);
                biases.push(-self.zero(at) * self.scales[at]);
            }
        }
        // Most zero points times a half-precision scale have more digits than a half has.
        let exact = |t| scales.iter().chain(&biases).all(|x| is_exact(t, *x));
        let meta = if exact(self.meta) { self.meta } else { FloatType::F32 };
        self.widen();
        let shape = vec![self.rows, self.cols];
        let encoded = |values: &[f32]| encode(values, vec![values.len()], Format::Float(meta));
        let quant = |source| Error::Quant { name: name.to_owned(), source };
        let parts =
            [self.codes, encoded(&scales).map_err(quant)?.codes, encoded(&biases).map_err(quant)?.codes];
        RawTensor::new(Format::Affine { bits: self.bits, group: width, meta }, shape, parts).map_err(quant)
    }

    /// Codes of widths that affine groups don't have, in the next that they have.
    fn widen(&mut self) {
        let wide = match self.bits {
            1 => 2,
            7 => 8,
            _ => return,
        };
        let mut packed = Vec::with_capacity(self.rows * self.cols * wide as usize / 8);
        let mut codes = vec![0; self.cols];
        for row in 0..self.rows {
            self.unpack(row, &mut codes);
            pack_codes(wide, &codes, &mut packed);
        }
        (self.codes, self.bits) = (Cow::Owned(packed), wide);
    }

    fn unpack(&self, row: usize, codes: &mut [u8]) {
        let stride = self.codes.len() / self.rows.max(1);
        let bytes = &self.codes[row * stride..][..stride];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = code_at(bytes, self.bits, i);
        }
    }

    fn plain(self, name: &str) -> Result<RawTensor<'a>> {
        let mut values = Vec::with_capacity(self.rows * self.cols);
        let mut codes = vec![0; self.cols];
        for row in 0..self.rows {
            self.unpack(row, &mut codes);
            for (col, code) in codes.iter().enumerate() {
                let at = row * self.count() + self.groups.of(col);
                values.push(self.scales[at] * (f32::from(*code) - self.zero(at)));
            }
        }
        plain(&values, vec![self.rows, self.cols], name)
    }
}

/// Code `i` of a little-endian bit stream.
pub(super) fn code_at(bytes: &[u8], bits: u32, i: usize) -> u8 {
    let bit = i * bits as usize;
    let [low, high] = [bit / 8, bit / 8 + 1].map(|at| u32::from(bytes.get(at).copied().unwrap_or(0)));
    ((low | high << 8) >> (bit % 8) & ((1 << bits) - 1)) as u8
}

/// `values` as floats of the narrowest type that holds them all.
pub(super) fn plain(values: &[f32], shape: Vec<usize>, name: &str) -> Result<RawTensor<'static>> {
    let fits = |t: &FloatType| values.iter().all(|x| is_exact(*t, *x));
    let found = [FloatType::BF16, FloatType::F16].into_iter().find(fits).unwrap_or(FloatType::F32);
    encode(values, shape, Format::Float(found))
        .map_err(|source| Error::Quant { name: name.to_owned(), source })
}

/// Whether `t` holds `x`.
fn is_exact(t: FloatType, x: f32) -> bool {
    match t {
        FloatType::F32 => true,
        FloatType::F16 => f16::from_f32(x).to_f32() == x,
        FloatType::BF16 => x.is_nan() || bf16::from_f32(x).to_f32() == x,
    }
}

/// Rows of 32-bit words, `[rows, cols]`, as columns.
pub(super) fn transposed_words(words: &[u8], [rows, cols]: [usize; 2]) -> Vec<u8> {
    /// Words that a line of the cache holds.
    const LINE: usize = 16;
    let words = words.as_chunks::<4>().0;
    let mut turned = vec![[0; 4]; rows * cols];
    for start in (0..cols).step_by(LINE) {
        for row in 0..rows {
            for col in start..cols.min(start + LINE) {
                turned[col * rows + row] = words[row * cols + col];
            }
        }
    }
    turned.into_flattened()
}

/// The transpose of `values: [rows, cols]`.
pub(super) fn transposed(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}
