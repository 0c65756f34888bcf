//! E2M1 codes, two a byte, the first in the low half, under scales of groups: nvfp4 and mxfp4, stored as ours are.

use std::borrow::Cow;

use rillm_quant::{Format, RawTensor};

use super::super::safetensors::Dtype;
use super::module::Part;
use crate::{Error, Result};

/// E4M3 scales for each 16 columns, all multiplied by `factor`.
pub(super) fn nvfp4<'a>(codes: &Part<'a>, scales: Part<'a>, factor: f32) -> Result<RawTensor<'a>> {
    let scales = scales.typed(&[Dtype::E4M3])?;
    Ok(RawTensor { factor, ..tensor(Format::NvFp4, codes, &scales)? })
}

/// Exponents for each 32 columns.
pub(super) fn mxfp4<'a>(codes: &Part<'a>, scales: Part<'a>) -> Result<RawTensor<'a>> {
    tensor(Format::MxFp4, codes, &scales.typed(&[Dtype::U8, Dtype::E8M0])?)
}

fn tensor<'a>(format: Format, codes: &Part<'a>, scales: &Part<'a>) -> Result<RawTensor<'a>> {
    let [rows, bytes] = codes.matrix()?;
    let cols = bytes.checked_mul(2).ok_or_else(|| codes.wrong_shape(&[rows]))?;
    if !cols.is_multiple_of(format.group()) || scales.shape() != [rows, cols / format.group()] {
        return Err(scales.wrong_shape(&[rows, cols.div_ceil(format.group())]));
    }
    let parts = [Cow::Borrowed(codes.bytes()), Cow::Borrowed(scales.bytes()), Cow::Borrowed(&[][..])];
    RawTensor::new(format, vec![rows, cols], parts)
        .map_err(|source| Error::Quant { name: codes.name.clone(), source })
}
