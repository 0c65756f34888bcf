//! The one door to the codecs: checks, then hands over to the file of the format. Holds no format itself.

use crate::affine::{self, Affine};
use crate::{Error, Format, RawTensor, Result, bitstream, float, ggml, microscaling};

/// The bytes of one row.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
}

/// The bytes of a tensor that is being encoded.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    pub(crate) biases: Vec<u8>,
}

impl RawTensor<'_> {
    /// Values of row `row`, the exact f32 results of the format's formula. `out: [cols]`.
    ///
    /// # Errors
    /// [`Error::Row`], [`Error::Length`] of `out`, and those of [`RawTensor::new`] if the fields do not fit.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        check_length("row of values", self.cols(), out.len())?;
        let row = self.row(row)?;
        match self.format {
            Format::Float(t) => float::decode(t, row.codes, out),
            Format::Affine { bits, group, meta } => affine::decode(Affine { bits, group, meta }, row, out),
            Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => {
                microscaling::decode(self.format, row, self.factor, out);
            }
            _ => ggml::decode(self.format, row.codes, out),
        }
        Ok(())
    }

    /// Values of the whole tensor, row-major.
    ///
    /// # Errors
    /// Those of [`RawTensor::new`] if the fields do not fit; nothing is allocated before that is known.
    pub fn decode(&self) -> Result<Vec<f32>> {
        self.check()?;
        let mut values = vec![0.0; self.rows() * self.cols()];
        for (row, out) in values.chunks_exact_mut(self.cols().max(1)).enumerate() {
            self.decode_row(row, out)?;
        }
        Ok(values)
    }

    /// Codes of row `row`, one a byte, as unsigned integers that [`scales_of_row`](Self::scales_of_row)
    /// gives a meaning to: Q8_0 as `q + 128`, the K-quants' as stored, E2M1 and E4M3 as the bits of the
    /// code. `out: [cols]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for plain values, else as [`decode_row`](Self::decode_row).
    pub fn codes_of_row(&self, row: usize, out: &mut [u8]) -> Result<()> {
        check_length("row of codes", self.cols(), out.len())?;
        let codes = self.row(row)?.codes;
        match self.format {
            Format::Float(_) => return Err(self.no_codes()),
            Format::Affine { bits, .. } => bitstream::unpack(bits, codes, out),
            Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => microscaling::codes(self.format, codes, out),
            _ => ggml::codes(self.format, codes, out),
        }
        Ok(())
    }

    /// Scale and bias of each group of [`Format::meta_group`] values of row `row`, such that
    /// `w = scale * code + bias`, or `w = scale * E2M1[code]` (mxfp8: `scale * e4m3_to_f32(code)`) with
    /// biases of 0. `scales, biases: [cols / meta_group]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for plain values, else as [`decode_row`](Self::decode_row).
    pub fn scales_of_row(&self, row: usize, scales: &mut [f32], biases: &mut [f32]) -> Result<()> {
        let row = self.row(row)?;
        let groups = self.cols() / self.format.meta_group();
        match self.format {
            Format::Float(_) => return Err(self.no_codes()),
            _ => {
                check_length("row of scales", groups, scales.len())?;
                check_length("row of biases", groups, biases.len())?;
            }
        }
        match self.format {
            Format::Affine { meta, .. } => {
                float::decode(meta, row.scales, scales);
                float::decode(meta, row.biases, biases);
            }
            Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => {
                for (scale, code) in scales.iter_mut().zip(row.scales) {
                    *scale = microscaling::scale(self.format, *code, self.factor);
                }
                biases.fill(0.0);
            }
            _ => ggml::scales(self.format, row.codes, scales, biases),
        }
        Ok(())
    }

    /// The bytes of row `row`, of the sizes that the format says.
    fn row(&self, row: usize) -> Result<Row<'_>> {
        let rows = self.checked_rows().ok_or_else(|| Error::Overflow { shape: self.shape.clone() })?;
        if row >= rows {
            return Err(Error::Row { row, rows });
        }
        let want = self.format.row_bytes(self.cols())?;
        let cut = |part, bytes: &'_ [u8], want: usize| {
            let start = row.saturating_mul(want);
            match start.checked_add(want) {
                Some(end) if end <= bytes.len() => Ok(start..end),
                _ => Err(Error::Size {
                    format: self.format.to_string(),
                    part,
                    shape: self.shape.clone(),
                    want: want.saturating_mul(rows),
                    got: bytes.len(),
                }),
            }
        };
        Ok(Row {
            codes: &self.codes[cut("codes", &self.codes, want[0])?],
            scales: &self.scales[cut("scales", &self.scales, want[1])?],
            biases: &self.biases[cut("biases", &self.biases, want[2])?],
        })
    }

    fn no_codes(&self) -> Error {
        Error::Unsupported { format: self.format.to_string(), what: "integer codes" }
    }
}

/// `values` of `shape`, row-major, in `format`: the nearest codes under the scales that the format's own
/// quantizer would choose (MLX on a CPU, ggml). Values are taken to be finite.
///
/// # Errors
/// [`Error::Unsupported`] for formats that are only read, [`Error::Length`] if `shape` does not hold
/// `values.len()`, and those of [`RawTensor::new`].
pub fn encode(values: &[f32], shape: Vec<usize>, format: Format) -> Result<RawTensor<'static>> {
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let want = count.ok_or_else(|| Error::Overflow { shape: shape.clone() })?;
    check_length("shape", want, values.len())?;
    let cols = shape.last().copied().unwrap_or(1);
    let [codes, scales, biases] =
        format.row_bytes(cols)?.map(|bytes| Vec::with_capacity(bytes * (want / cols.max(1))));
    let mut parts = Parts { codes, scales, biases };
    match format {
        Format::Float(t) => values.iter().for_each(|x| float::push(t, *x, &mut parts.codes)),
        Format::Affine { bits, group, meta } => {
            affine::encode(Affine { bits, group, meta }, values, &mut parts);
        }
        Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => microscaling::encode(format, values, &mut parts),
        Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => ggml::encode(format, values, &mut parts),
        _ => return Err(Error::Unsupported { format: format.to_string(), what: "encoder" }),
    }
    RawTensor::new(format, shape, [parts.codes.into(), parts.scales.into(), parts.biases.into()])
}

fn check_length(what: &'static str, want: usize, got: usize) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Length { what, want, got }) }
}
