//! E4M3 weights `[out, in]` with scales for the tensor, each row or each block: DeepSeek-V3's and Qwen3's
//! `weight_scale_inv` (which multiplies, whatever its name says), vLLM's and FBGEMM's `weight_scale`.
//!
//! Powers of two over at least 32 columns are mxfp8. The product of a code and another scale takes all 24 bits of an
//! f32, so other matrices become that: bf16 would round every weight by up to 0.4 %.

use std::borrow::Cow;

use rillm_quant::{Format, RawTensor, e4m3_to_f32};

use super::super::safetensors::Dtype;
use super::grouped::plain;
use super::module::{Module, Part};
use super::options::Options;
use crate::{Error, Result};

/// Names of the scales.
const SCALES: [&str; 4] = ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"];
/// What may lie beside `weight`: these, and scales of activations.
pub(super) const PARTS: &[&str] = &[
    "weight_scale_inv",
    "weight_scale",
    "scale",
    "qscale_weight",
    "activation_scale",
    "input_scale",
    "input_scale_ub",
    "qscale_act",
    "output_scale",
];

#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct Fp8 {
    block: Option<[usize; 2]>,
}

impl Fp8 {
    pub(super) fn from_config(options: &Options<'_>) -> Result<Self> {
        options.one_of("fmt", "e4m3", &["e4m3", "float8_e4m3fn"], "e4m3")?;
        options.one_of("scale_fmt", "float", &["float", "ue8m0"], "float or ue8m0")?;
        options.one_of("activation_scheme", "dynamic", &["dynamic", "static"], "dynamic or static")?;
        options.one_of("expert_dtype", "fp8", &["fp8"], "fp8")?;
        Ok(Self { block: options.block("weight_block_size")? })
    }

    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        let Some(weight) = module.get("weight") else { return Ok(None) };
        let scale = SCALES.iter().find_map(|leaf| module.get(leaf));
        match (weight.dtype(), scale) {
            (Dtype::E4M3, Some(scale)) => matrix(&weight, &scale, self.block).map(Some),
            (Dtype::E4M3, None) => Err(Error::MissingWeight { name: module.name(SCALES[0]) }),
            (_, Some(_)) => weight.typed(&[Dtype::E4M3]).map(|_| None),
            _ => Ok(None),
        }
    }
}

/// The matrix `weight * scale`; `block` is the size of blocks if it is known.
pub(super) fn matrix<'a>(
    weight: &Part<'a>,
    scale: &Part<'_>,
    block: Option<[usize; 2]>,
) -> Result<RawTensor<'a>> {
    let shape = weight.matrix()?;
    let grid = Grid::new(scale, shape, block)?;
    let scales = scale.scales()?;
    if let Some(scales) = grid.exponents(&scales) {
        let parts = [Cow::Borrowed(weight.bytes()), Cow::Owned(scales), Cow::Borrowed(&[][..])];
        return RawTensor::new(Format::MxFp8, shape.to_vec(), parts)
            .map_err(|source| Error::Quant { name: weight.name.clone(), source });
    }
    let rows = weight.bytes().chunks_exact(shape[1]).enumerate();
    let value = |(row, codes): (usize, &[u8])| -> Vec<f32> {
        let scales = grid.row(&scales, row);
        codes.iter().enumerate().map(|(c, code)| e4m3_to_f32(*code) * scales[c / grid.block[1]]).collect()
    };
    plain(&rows.flat_map(value).collect::<Vec<_>>(), shape.to_vec(), &weight.name)
}

/// Scales over the blocks of a matrix.
pub(super) struct Grid {
    shape: [usize; 2],
    /// Rows and columns of a block; those at the end may be smaller.
    pub block: [usize; 2],
    /// Blocks from left to right.
    pub across: usize,
}

impl Grid {
    /// The grid of `scale` over a matrix of `shape`: one scale, one a row, or one a block. Blocks have the size `block`
    /// if that gives as many, else all the same size.
    pub(super) fn new(scale: &Part<'_>, shape: [usize; 2], block: Option<[usize; 2]>) -> Result<Self> {
        let [rows, cols] = shape;
        let blocks = match *scale.shape() {
            [] | [1] => [1, 1],
            [n] if n == rows => [rows, 1],
            [down, across] => [down, across],
            _ => [0, 0],
        };
        let cut = |block: [usize; 2]| [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        if let Some(block) = block.filter(|block| cut(*block) == blocks) {
            return Ok(Self { shape, block, across: blocks[1] });
        }
        let [down, across] = blocks;
        if down == 0 || across == 0 || !rows.is_multiple_of(down) || !cols.is_multiple_of(across) {
            return Err(scale.wrong_shape(&cut(block.unwrap_or([1, cols]))));
        }
        Ok(Self { shape, block: [rows / down, cols / across], across })
    }

    /// The scales of row `row`.
    pub(super) fn row<'s>(&self, scales: &'s [f32], row: usize) -> &'s [f32] {
        &scales[row / self.block[0] * self.across..][..self.across]
    }

    /// The exponents of the scales of each 32 columns, if all are powers of two.
    fn exponents(&self, scales: &[f32]) -> Option<Vec<u8>> {
        let [rows, cols] = self.shape;
        let group = Format::MxFp8.group();
        if !cols.is_multiple_of(group) || !(self.block[1].is_multiple_of(group) || self.across == 1) {
            return None;
        }
        let exponent = |scale: &f32| {
            let bits = scale.to_bits();
            let exponent = u8::try_from(bits >> 23).ok()?;
            (bits & 0x7f_ffff == 0 && matches!(exponent, 1..=254)).then_some(exponent)
        };
        let exponents = scales.iter().map(exponent).collect::<Option<Vec<u8>>>()?;
        let of = |row: usize, i: usize| row / self.block[0] * self.across + i * group / self.block[1];
        Some(
            (0..rows)
                .flat_map(|row| (0..cols / group).map(move |i| (row, i)))
                .map(|(row, i)| exponents[of(row, i)])
                .collect(),
        )
    }
}
