//! The stored formats and the tensor that carries bytes of one of them. Decoding is in the codec files.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use crate::{Error, Result, ggml};

/// A floating-point type of stored values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    BF16,
}

impl FloatType {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// How the elements of a stored tensor are encoded. Everything is little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Plain values.
    Float(FloatType),
    /// MLX affine: `bits`-wide codes in one contiguous bit stream a row, and for each group of
    /// `group` values a scale and a bias of type `meta`: `w = scale * q + bias`.
    Affine {
        /// Bits of a code: 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// Values of a group: 32, 64 or 128.
        group: usize,
        /// Type of scales and biases.
        meta: FloatType,
    },
    /// E2M1 codes, groups of 32, E8M0 scales.
    MxFp4,
    /// E4M3 codes, groups of 32, E8M0 scales.
    MxFp8,
    /// E2M1 codes, groups of 16, E4M3 scales, optionally one global scale.
    NvFp4,
    /// GGML: blocks of 32, `{f16 d; 16 bytes}`, `d * (q - 8)`.
    Q4_0,
    /// GGML: blocks of 32, `{f16 d; f16 m; 16 bytes}`, `d * q + m`.
    Q4_1,
    /// GGML: blocks of 32, `{f16 d; u32 high bits; 16 bytes}`, `d * (q - 16)`.
    Q5_0,
    /// GGML: blocks of 32, `{f16 d; f16 m; u32 high bits; 16 bytes}`, `d * q + m`.
    Q5_1,
    /// GGML: blocks of 32, `{f16 d; 32 x i8}`, `d * q`.
    Q8_0,
    /// GGML's MXFP4: blocks of 32, `{E8M0 scale; 16 bytes}`; the values of [`MxFp4`](Self::MxFp4).
    MxFp4Blocks,
    /// GGML: super-blocks of 256, 4 bits, 6-bit scales and minima for each 32.
    Q4K,
    /// GGML: super-blocks of 256, 5 bits, 6-bit scales and minima for each 32.
    Q5K,
    /// GGML: super-blocks of 256, 6 bits, i8 scales for each 16.
    Q6K,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(t) => write!(f, "{t:?}"),
            Self::Affine { bits, group, .. } => write!(f, "affine {bits}-bit, groups of {group}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Format {
    /// Values that share a block, group or bit-stream byte boundary: rows are a multiple of this.
    pub const fn group(self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Affine { group, .. } => group,
            Self::NvFp4 => 16,
            Self::MxFp4 | Self::MxFp8 => 32,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::MxFp4Blocks => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Values that share one scale and bias: 1 for plain values, which have neither.
    ///
    /// This is [`group`](Self::group) except in super-blocks, which hold several such groups.
    pub const fn meta_group(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K => 32,
            Self::Q6K => 16,
            other => other.group(),
        }
    }

    /// Bytes of the codes, scales and biases of one row of `cols` values.
    ///
    /// # Errors
    /// [`Error::Group`] if `cols` is not a multiple of the group, [`Error::Affine`], [`Error::Overflow`].
    pub fn row_bytes(self, cols: usize) -> Result<[usize; 3]> {
        let group = self.group();
        if group == 0 || !cols.is_multiple_of(group) {
            return Err(Error::Group { format: self.to_string(), cols, group });
        }
        if cols >= 1 << 40 {
            return Err(Error::Overflow { shape: vec![cols] });
        }
        if let Self::Affine { bits, group, .. } = self
            && (!matches!(bits, 2..=6 | 8) || !matches!(group, 32 | 64 | 128))
        {
            return Err(Error::Affine { bits, group });
        }
        let n = cols / group;
        Ok(self.group_bytes().map(|bytes| n * bytes))
    }

    /// Bytes of the codes, scales and biases of one group.
    pub(crate) const fn group_bytes(self) -> [usize; 3] {
        match self {
            Self::Float(t) => [t.bytes(), 0, 0],
            Self::Affine { bits, group, meta } => [group / 8 * bits as usize, meta.bytes(), meta.bytes()],
            Self::MxFp4 => [16, 1, 0],
            Self::NvFp4 => [8, 1, 0],
            Self::MxFp8 => [32, 1, 0],
            Self::Q4_0 => [18, 0, 0],
            Self::Q4_1 => [20, 0, 0],
            Self::Q5_0 => [22, 0, 0],
            Self::Q5_1 => [24, 0, 0],
            Self::Q8_0 => [34, 0, 0],
            Self::MxFp4Blocks => [17, 0, 0],
            Self::Q4K => [144, 0, 0],
            Self::Q5K => [176, 0, 0],
            Self::Q6K => [210, 0, 0],
        }
    }
}

/// A tensor as stored: backend-free and not yet decoded; borrowed from the mapped file where possible.
///
/// The last dimension is the one that is encoded; the others are rows.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// Encoding.
    pub format: Format,
    /// Logical dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Encoded elements, or GGML blocks, row-major.
    pub codes: Cow<'a, [u8]>,
    /// Scales of each group, row-major; empty where the format keeps none apart.
    pub scales: Cow<'a, [u8]>,
    /// Biases of each group (affine only), row-major.
    pub biases: Cow<'a, [u8]>,
    /// Factor of the whole tensor (nvfp4's `global_scale / 2688`), else 1.
    pub factor: f32,
}

impl<'a> RawTensor<'a> {
    /// A tensor whose three parts have the sizes that `shape` takes in `format`.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::Group`], [`Error::Affine`], [`Error::Overflow`].
    pub fn new(
        format: Format,
        shape: Vec<usize>,
        [codes, scales, biases]: [Cow<'a, [u8]>; 3],
    ) -> Result<Self> {
        let t = Self { format, shape, codes, scales, biases, factor: 1.0 };
        t.check()?;
        Ok(t)
    }

    /// Whether the three parts have the sizes that the shape takes; the fields are public.
    pub(crate) fn check(&self) -> Result<()> {
        let overflow = || Error::Overflow { shape: self.shape.clone() };
        let rows = self.checked_rows().ok_or_else(overflow)?;
        let want = self.format.row_bytes(self.cols())?;
        for (part, want, got) in [
            ("codes", want[0], self.codes.len()),
            ("scales", want[1], self.scales.len()),
            ("biases", want[2], self.biases.len()),
        ] {
            let want = want.checked_mul(rows).ok_or_else(overflow)?;
            if want != got {
                let (format, shape) = (self.format.to_string(), self.shape.clone());
                return Err(Error::Size { format, part, shape, want, got });
            }
        }
        Ok(())
    }

    /// Plain `f32` values of `shape`.
    ///
    /// # Errors
    /// [`Error::Size`] if the shape does not hold `values.len()`.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<RawTensor<'static>> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        RawTensor::new(
            Format::Float(FloatType::F32),
            shape,
            [Cow::Owned(bytes), Cow::Borrowed(&[]), Cow::Borrowed(&[])],
        )
    }

    /// The tensor with scales apart from codes, where its format is [`Format::MxFp4Blocks`]; any other as it is.
    ///
    /// # Errors
    /// Those of [`new`](Self::new) if the fields do not fit.
    pub fn apart(&self) -> Result<RawTensor<'_>> {
        if self.format != Format::MxFp4Blocks {
            let [codes, scales, biases] =
                [&self.codes, &self.scales, &self.biases].map(|part| Cow::Borrowed(&part[..]));
            let shape = self.shape.clone();
            return Ok(RawTensor { format: self.format, shape, codes, scales, biases, factor: self.factor });
        }
        self.check()?;
        let [codes, scales] = ggml::apart(&self.codes);
        RawTensor::new(Format::MxFp4, self.shape.clone(), [codes.into(), scales.into(), Cow::Borrowed(&[])])
    }

    /// [`rows`](Self::rows), if the shape's product fits.
    pub(crate) fn checked_rows(&self) -> Option<usize> {
        let lead = &self.shape[..self.shape.len().saturating_sub(1)];
        let rows = lead.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        rows.checked_mul(self.cols())?;
        Some(rows)
    }

    /// Values of a row: the last dimension, or 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// The same tensor with rows `order[0], order[1], ..` of this one, as a matrix
    /// `[order.len(), cols]`. Works on every format: rows are contiguous in all of them.
    pub fn take_rows(&self, order: impl ExactSizeIterator<Item = usize> + Clone) -> RawTensor<'static> {
        let n = self.rows().max(1);
        let pick = |bytes: &[u8]| {
            let w = bytes.len() / n;
            let mut out = Vec::with_capacity(w * order.len());
            for r in order.clone() {
                out.extend_from_slice(&bytes[r * w..][..w]);
            }
            Cow::Owned(out)
        };
        RawTensor {
            format: self.format,
            shape: vec![order.len(), self.cols()],
            codes: pick(&self.codes),
            scales: pick(&self.scales),
            biases: pick(&self.biases),
            factor: self.factor,
        }
    }

    /// Rows `r` of this tensor, as a matrix, borrowed where this one is.
    pub fn rows_range(&self, r: Range<usize>) -> RawTensor<'a> {
        let n = self.rows().max(1);
        let cut = |bytes: &Cow<'a, [u8]>| {
            let w = bytes.len() / n;
            let span = r.start * w..r.end * w;
            match bytes {
                Cow::Borrowed(b) => Cow::Borrowed(&b[span]),
                Cow::Owned(b) => Cow::Owned(b[span].to_vec()),
            }
        };
        RawTensor {
            format: self.format,
            shape: vec![r.len(), self.cols()],
            codes: cut(&self.codes),
            scales: cut(&self.scales),
            biases: cut(&self.biases),
            factor: self.factor,
        }
    }
}
