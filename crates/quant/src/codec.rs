//! The one door to the codecs: checks, then hands over to the file of the format. Holds no format itself.

use crate::affine::{self, Affine};
use crate::row::check_length;
use crate::{Error, Format, RawRow, RawTensor, Result, float, ggml, microscaling};

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
        self.row(row)?.decode(out)
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

    /// Codes of row `row`, one a byte; see [`RawRow::codes`]. `out: [cols]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for plain values, else as [`decode_row`](Self::decode_row).
    pub fn codes_of_row(&self, row: usize, out: &mut [u8]) -> Result<()> {
        self.row(row)?.codes(out)
    }

    /// Scale and bias of each group of row `row`; see [`RawRow::scales`]. `scales, biases: [cols / meta_group]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for plain values, else as [`decode_row`](Self::decode_row).
    pub fn scales_of_row(&self, row: usize, scales: &mut [f32], biases: &mut [f32]) -> Result<()> {
        self.row(row)?.scales(scales, biases)
    }

    /// Row `row` as stored.
    ///
    /// # Errors
    /// [`Error::Row`], and those of [`RawTensor::new`] if the fields do not fit.
    pub fn row(&self, row: usize) -> Result<RawRow<'_>> {
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
        Ok(RawRow {
            format: self.format,
            factor: self.factor,
            cols: self.cols(),
            codes: &self.codes[cut("codes", &self.codes, want[0])?],
            scales: &self.scales[cut("scales", &self.scales, want[1])?],
            biases: &self.biases[cut("biases", &self.biases, want[2])?],
        })
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
