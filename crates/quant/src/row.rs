//! One row as stored, or a run of its columns: the views of it that decoding and rearranging take. Which bytes of a
//! tensor are a row is in `codec`.

use std::ops::Range;

use crate::affine::{self, Affine};
use crate::ggml::{self, SubScales};
use crate::{Error, Format, Result, bitstream, float, microscaling};

/// A row of a tensor, or a run of its columns, as stored.
#[derive(Clone, Copy, Debug)]
pub struct RawRow<'a> {
    pub(crate) format: Format,
    pub(crate) factor: f32,
    pub(crate) cols: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
}

impl<'a> RawRow<'a> {
    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Encoding.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The stored elements, or GGML blocks.
    pub fn bytes(&self) -> &'a [u8] {
        self.codes
    }

    /// Columns `run` alone. Both ends are multiples of [`Format::group`].
    ///
    /// # Errors
    /// [`Error::Group`], or [`Error::Length`] if the row is shorter.
    pub fn columns(&self, run: Range<usize>) -> Result<Self> {
        let group = self.format.group();
        let cols = run.end.saturating_sub(run.start);
        // Groups are powers of two: this is called too often for divisions.
        let count = |cols: usize| (cols & (group - 1) == 0).then_some(cols >> group.trailing_zeros());
        let [Some(start), Some(count)] = [count(run.start), count(cols)] else {
            return Err(Error::Group { format: self.format.to_string(), cols, group });
        };
        if run.start.saturating_add(cols) > self.cols {
            return Err(Error::Length { what: "run of columns", want: self.cols, got: run.end });
        }
        let sizes = self.format.group_bytes();
        let cut = |bytes: &'a [u8], size: usize| &bytes[start * size..][..count * size];
        let codes = cut(self.codes, sizes[0]);
        let scales = cut(self.scales, sizes[1]);
        Ok(Self { cols, codes, scales, biases: cut(self.biases, sizes[2]), ..*self })
    }

    /// The exact f32 results of the format's formula. `out: [cols]`.
    ///
    /// # Errors
    /// [`Error::Length`] of `out`.
    pub fn decode(&self, out: &mut [f32]) -> Result<()> {
        check_length("row of values", self.cols, out.len())?;
        match self.format {
            Format::Float(t) => float::decode(t, self.codes, out),
            Format::Affine { bits, group, meta } => affine::decode(Affine { bits, group, meta }, *self, out),
            Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => microscaling::decode(*self, out),
            _ => ggml::decode(self.format, self.codes, out),
        }
        Ok(())
    }

    /// Codes, one a byte, as unsigned integers that [`scales`](Self::scales) gives a meaning to: Q8_0 as `q + 128`,
    /// the K-quants' as stored, E2M1 and E4M3 as the bits of the code. `out: [cols]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for plain values, [`Error::Length`] of `out`.
    pub fn codes(&self, out: &mut [u8]) -> Result<()> {
        check_length("row of codes", self.cols, out.len())?;
        match self.format {
            Format::Float(_) => return Err(self.no("integer codes")),
            Format::Affine { bits, .. } => bitstream::unpack(bits, self.codes, out),
            Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => {
                microscaling::codes(self.format, self.codes, out);
            }
            _ => ggml::codes(self.format, self.codes, out),
        }
        Ok(())
    }

    /// Scale and bias of each group of [`Format::meta_group`] columns, such that `w = scale * code + bias`, or
    /// `w = scale * E2M1[code]` (mxfp8: `scale * e4m3_to_f32(code)`) with biases of 0.
    /// `scales, biases: [cols / meta_group]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for plain values, [`Error::Length`].
    pub fn scales(&self, scales: &mut [f32], biases: &mut [f32]) -> Result<()> {
        self.check_scales(scales.len(), biases.len())?;
        match self.format {
            Format::Affine { meta, .. } => {
                float::decode(meta, self.scales, scales);
                float::decode(meta, self.biases, biases);
            }
            Format::MxFp4 | Format::MxFp8 | Format::NvFp4 => {
                for (scale, code) in scales.iter_mut().zip(self.scales) {
                    *scale = microscaling::scale(self.format, *code, self.factor);
                }
                biases.fill(0.0);
            }
            _ => ggml::scales(self.format, self.codes, scales, biases),
        }
        Ok(())
    }

    /// The bits of each group's scale and bias where these are stored as 16-bit floats (affine formats with such a
    /// type, GGML's `d` and `m`); biases of formats that store none are left alone.
    /// `scales, biases: [cols / meta_group]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where they are not, [`Error::Length`].
    pub fn scale_bits(&self, scales: &mut [u16], biases: &mut [u16]) -> Result<()> {
        self.check_scales(scales.len(), biases.len())?;
        match self.format {
            Format::Affine { meta, .. } if meta.bytes() == 2 => {
                for (stored, out) in [(self.scales, scales), (self.biases, biases)] {
                    for (b, out) in stored.as_chunks().0.iter().zip(out) {
                        *out = u16::from_le_bytes(*b);
                    }
                }
                Ok(())
            }
            _ if ggml::scale_bits(self.format, self.codes, scales, biases) => Ok(()),
            _ => Err(self.no("scales of 16 bits")),
        }
    }

    /// The scales of each super-block of a K-quant.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other formats.
    pub fn sub_scales(&self) -> Result<impl Iterator<Item = SubScales>> {
        match self.format {
            Format::Q4K | Format::Q5K | Format::Q6K => Ok(ggml::sub_scales_of(self.format, self.codes)),
            _ => Err(self.no("sub-scales")),
        }
    }

    fn check_scales(&self, scales: usize, biases: usize) -> Result<()> {
        if let Format::Float(_) = self.format {
            return Err(self.no("integer codes"));
        }
        let groups = self.cols / self.format.meta_group();
        check_length("row of scales", groups, scales)?;
        check_length("row of biases", groups, biases)
    }

    fn no(&self, what: &'static str) -> Error {
        Error::Unsupported { format: self.format.to_string(), what }
    }
}

pub(crate) fn check_length(what: &'static str, want: usize, got: usize) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Length { what, want, got }) }
}
