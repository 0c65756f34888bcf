//! A stored matrix in the order in which the kernels read it. Neither how it was stored (`rillm-quant`) nor how
//! it is multiplied (`kernels/matmul.rs`).
//!
//! A *block* is 16 rows, one in each lane of a vector; a *unit* is 32 consecutive columns of them. The units of a
//! block follow each other; blocks follow each other:
//!
//! ```text
//! [scales of 16 rows] [biases of 16 rows]      where a group starts; biases unless the zero point is constant;
//!                                              twice in a unit of two groups
//! [plane] [plane]                              the unit's codes, their low bits first
//! ```
//!
//! Under K-quants' super-scales what starts a group's units stands in front of the 8 units that share these:
//!
//! ```text
//! [f16 d] [f16 min]                            of 16 rows; `min` and what belongs to it unless the zero point is
//!                                              constant
//! [scales] .. [mins] ..                        vectors with a group's byte in each byte of a row's 32-bit lane:
//!                                              scales plus 128, mins as they are
//! ```
//!
//! A *quad* is the codes of 4 consecutive columns, one in each byte of a row's 32-bit lane; a unit has 8. A plane of
//! `b` bits is `b` vectors of 64 bytes; vector `v` holds the quads `v * 8 / b ..`, the first in the lowest bits of
//! every byte, so that a shift and a mask give the quad. Plain values have no groups: f32 and f16 are 32 vectors of one
//! column, bf16 is 16 vectors of two.
//!
//! Missing rows and columns of the last block and unit are zero bytes; activations are zero there.

mod pack;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::{bf16, f16};
use rillm_quant::{E2M1, FloatType, Format, RawTensor};

use super::arena::{Arena, Piece};
use super::kernels::Kernels;
use super::kernels::vector::LANES;
use super::threads::Threads;
use crate::{Error, Result};

/// Columns of a unit.
pub(crate) const UNIT: usize = 32;
/// What [`Codes::E2M1`] adds to twice the value to make it unsigned.
const E2M1_OFFSET: f32 = 12.0;

/// How the elements of a unit lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codes {
    /// Unsigned integers of 2, 3, 4, 5, 6 or 8 bits.
    Bits(u32),
    /// The bits of E2M1; their integer meaning is `2 * value + 12` (see [`E2M1_TABLE`]).
    E2M1,
    /// Plain values.
    Float(FloatType),
}

/// `2 * value + 12` of each E2M1 code.
pub(crate) const E2M1_TABLE: [u8; 16] = {
    let mut table = [0; 16];
    let mut code = 0;
    while code < 16 {
        table[code] = (2.0 * E2M1[code] + E2M1_OFFSET) as u8;
        code += 1;
    }
    table
};

impl Codes {
    /// Widths of the bit planes, low bits first.
    const fn planes(self) -> &'static [u32] {
        match self {
            Self::Bits(2) => &[2],
            Self::Bits(3) => &[2, 1],
            Self::Bits(5) => &[4, 1],
            Self::Bits(6) => &[4, 2],
            Self::Bits(8) => &[8],
            Self::Bits(_) | Self::E2M1 => &[4],
            Self::Float(_) => &[],
        }
    }

    /// Bytes of a unit without scales.
    pub(crate) const fn unit_bytes(self) -> usize {
        match self {
            Self::Bits(bits) => bits as usize * 64,
            Self::E2M1 => 4 * 64,
            Self::Float(t) => UNIT * LANES * t.bytes(),
        }
    }
}

/// Units that share a super-scale.
pub(crate) const SUPER_UNITS: usize = 8;

/// What is added to the sub-scales of [`Meta::Super`] to make them unsigned.
pub(crate) const SUB_SCALE_OFFSET: f32 = 128.0;

/// How the scales and biases of groups are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    /// As floats.
    Float(FloatType),
    /// As bytes under f16 super-scales, one for [`SUPER_UNITS`] units.
    Super,
}

/// What the kernels must know of a packed matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    /// Elements.
    pub codes: Codes,
    /// Scales and biases.
    pub meta: Meta,
    /// Columns of a group: 16, 32, 64 or 128.
    pub group: usize,
    /// The code that means zero, in place of biases.
    pub zero: Option<f32>,
    /// Factor of all scales.
    pub factor: f32,
    /// Units of a block.
    pub units: usize,
}

impl Layout {
    /// Whether scales are stored at all.
    const fn has_groups(&self) -> bool {
        !matches!(self.codes, Codes::Float(_))
    }

    /// Units whose scales are stored together.
    pub(crate) const fn group_units(&self) -> usize {
        if matches!(self.meta, Meta::Super) {
            SUPER_UNITS
        } else if self.group <= UNIT {
            1
        } else {
            self.group / UNIT
        }
    }

    /// Groups of a unit.
    const fn groups_in_unit(&self) -> usize {
        if self.group < UNIT { UNIT / self.group } else { 1 }
    }

    /// Bytes of the scales and biases in front of a unit that starts a group.
    pub(crate) const fn meta_bytes(&self) -> usize {
        if !self.has_groups() {
            return 0;
        }
        let vectors = if self.zero.is_some() { 1 } else { 2 };
        match self.meta {
            Meta::Float(t) => self.groups_in_unit() * vectors * LANES * t.bytes(),
            Meta::Super => vectors * LANES * (2 + SUPER_UNITS * self.groups_in_unit()),
        }
    }

    /// Bytes of `units` units that start with a group.
    const fn units_bytes(&self, units: usize) -> usize {
        units * self.codes.unit_bytes() + units.div_ceil(self.group_units()) * self.meta_bytes()
    }

    /// Bytes of a block.
    pub(crate) const fn block_bytes(&self) -> usize {
        self.units_bytes(self.units)
    }

    /// Where unit `unit` lies in a block: its group's scales, and its codes.
    pub(crate) fn offsets(&self, unit: usize) -> (usize, usize) {
        let (group, within) = (unit / self.group_units(), unit % self.group_units());
        let start = group * self.units_bytes(self.group_units());
        (start, start + self.meta_bytes() + within * self.codes.unit_bytes())
    }

    /// The layout for `raw`.
    fn of(raw: &RawTensor<'_>) -> Result<Self> {
        use FloatType::{BF16, F16};
        use Meta::{Float, Super};
        let (codes, meta, zero) = match raw.format {
            Format::Float(t) => (Codes::Float(t), Float(t), None),
            Format::Affine { bits, meta, .. } => (Codes::Bits(bits), Float(meta), None),
            Format::MxFp4 | Format::MxFp4Blocks | Format::NvFp4 => {
                (Codes::E2M1, Float(BF16), Some(E2M1_OFFSET))
            }
            Format::MxFp8 => (Codes::Float(mxfp8_type(raw)?), Float(BF16), None),
            Format::Q4_0 => (Codes::Bits(4), Float(F16), Some(8.0)),
            Format::Q4_1 => (Codes::Bits(4), Float(F16), None),
            Format::Q5_0 => (Codes::Bits(5), Float(F16), Some(16.0)),
            Format::Q5_1 => (Codes::Bits(5), Float(F16), None),
            Format::Q8_0 => (Codes::Bits(8), Float(F16), Some(128.0)),
            Format::Q4K => (Codes::Bits(4), Super, None),
            Format::Q5K => (Codes::Bits(5), Super, None),
            Format::Q6K => (Codes::Bits(6), Super, Some(32.0)),
            format => return Err(Error::UnsupportedFormat { op: "pack", format }),
        };
        let group = raw.format.meta_group();
        let factor = if raw.format == Format::NvFp4 { raw.factor } else { 1.0 };
        Ok(Self { codes, meta, group, zero, factor, units: raw.cols().div_ceil(UNIT) })
    }
}

/// The narrowest type that holds all values of an mxfp8 tensor: bf16 has the range and more than the precision, but
/// for products at the bottom of the range.
fn mxfp8_type(raw: &RawTensor<'_>) -> Result<FloatType> {
    // Codes are multiples of 2^-9, scales are `2^(s - 127)`, and bf16 has all multiples of 2^-133.
    if raw.scales.iter().all(|s| *s >= 3) {
        return Ok(FloatType::BF16);
    }
    let mut row = vec![0.0; raw.cols()];
    for r in 0..raw.rows() {
        raw.decode_row(r, &mut row)?;
        if row.iter().any(|x| !x.is_nan() && bf16::from_f32(*x).to_f32() != *x) {
            return Ok(FloatType::F32);
        }
    }
    Ok(FloatType::BF16)
}

/// A matrix `[rows, cols]`, packed.
#[derive(Debug)]
pub(crate) struct Packed {
    layout: Layout,
    rows: usize,
    cols: usize,
    data: Piece,
}

impl Packed {
    /// Packs `raw` into `memory`, all its dimensions but the last taken as rows, blocks in parallel.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`], [`Error::OutOfMemory`], [`Error::Quant`] for fields that do not fit.
    pub(crate) fn new(
        raw: &RawTensor<'_>,
        memory: &Arena,
        kernels: &Kernels,
        threads: &Threads,
    ) -> Result<Self> {
        let (rows, cols) = (raw.rows(), raw.cols());
        // What the fields claim must be there before memory is taken for it.
        let stored = raw.codes.len().saturating_add(raw.scales.len());
        let claimed = raw.format.row_bytes(cols)?[0].checked_mul(rows);
        if claimed.is_none_or(|bytes| bytes > stored) {
            let shape = raw.shape.clone();
            return Err(rillm_quant::Error::Overflow { shape }.into());
        }
        let layout = Layout::of(raw)?;
        // The layout has the factor.
        let raw = &RawTensor {
            format: raw.format,
            shape: raw.shape.clone(),
            codes: Cow::Borrowed(&raw.codes),
            scales: Cow::Borrowed(&raw.scales),
            biases: Cow::Borrowed(&raw.biases),
            factor: 1.0,
        };
        let block_bytes = layout.block_bytes();
        let blocks = rows.div_ceil(LANES);
        let mut data = memory.take(blocks * block_bytes, "packed weights")?;
        if block_bytes > 0 {
            let bytes = &mut data.bytes_mut()[..blocks * block_bytes];
            pack(bytes, block_bytes, threads, &|block, bytes| {
                pack::pack_block(raw, &layout, kernels, block, bytes)
            })?;
        }
        Ok(Self { layout, rows, cols, data })
    }

    /// Rows: outputs of a projection.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a projection.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that one read of the matrix moves.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks() * self.layout.block_bytes()
    }

    /// Blocks of 16 rows.
    pub(crate) fn blocks(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// What the kernels must know.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes of blocks `blocks`.
    pub(crate) fn run(&self, blocks: Range<usize>) -> &[u8] {
        let size = self.layout.block_bytes();
        &self.data.bytes()[blocks.start * size..blocks.end * size]
    }

    /// The values of row `row`, exactly as stored. `out: [cols]`.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.run(row / LANES..row / LANES + 1);
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            let (meta, codes) = self.layout.offsets(unit);
            let values = &bytes[codes..][..self.layout.codes.unit_bytes()];
            match self.layout.codes {
                Codes::Float(t) => float_unit(t, values, row % LANES, out),
                codes => {
                    let mut quants = code_unit(codes, values, row % LANES);
                    if codes == Codes::E2M1 {
                        quants = quants.map(|q| E2M1_TABLE[usize::from(q)]);
                    }
                    self.scale_unit(&bytes[meta..], [unit, row % LANES], &quants, out);
                }
            }
        }
    }

    /// Values of the codes of unit `unit` of row `lane`, whose scales start `meta`.
    fn scale_unit(&self, meta: &[u8], [unit, lane]: [usize; 2], codes: &[u8; UNIT], out: &mut [f32]) {
        let layout = &self.layout;
        let group = layout.group.min(UNIT);
        for (g, (codes, out)) in codes.chunks(group).zip(out.chunks_mut(group)).enumerate() {
            let [scale, bias] = match layout.meta {
                Meta::Float(t) => {
                    let vectors = if layout.zero.is_some() { 1 } else { 2 };
                    let at = |v: usize| load(t, &meta[(g * vectors + v) * LANES * t.bytes()..], lane);
                    [at(0), if layout.zero.is_some() { 0.0 } else { at(1) }]
                }
                Meta::Super => self.super_scale(meta, unit % SUPER_UNITS * layout.groups_in_unit() + g, lane),
            };
            let scale = scale * layout.factor;
            let zero = layout.zero.unwrap_or(0.0);
            for (x, q) in out.iter_mut().zip(codes) {
                let product = scale * (f32::from(*q) - zero);
                *x = if layout.zero.is_some() { product } else { product + bias * layout.factor };
            }
        }
    }

    /// Scale and bias of group `group` of those whose scales start `meta`.
    fn super_scale(&self, meta: &[u8], group: usize, lane: usize) -> [f32; 2] {
        let groups = SUPER_UNITS * self.layout.groups_in_unit();
        let byte = |bytes: &[u8]| bytes[group / 4 * 4 * LANES + lane * 4 + group % 4];
        let (factors, bytes) = meta.split_at(LANES * if self.layout.zero.is_some() { 2 } else { 4 });
        let scale = load(FloatType::F16, factors, lane) * (f32::from(byte(bytes)) - SUB_SCALE_OFFSET);
        if self.layout.zero.is_some() {
            return [scale, 0.0];
        }
        let min = load(FloatType::F16, &factors[2 * LANES..], lane);
        [scale, -(min * f32::from(byte(&bytes[groups * LANES..])))]
    }
}

/// Calls `pack_block` for each block of `bytes`, on all threads.
///
/// A thread begins with its own share and then helps the others: threads that wrote side by side would wait for, or
/// clear in vain, the same huge pages.
fn pack(
    bytes: &mut [u8],
    block_bytes: usize,
    threads: &Threads,
    pack_block: &(impl Fn(usize, &mut [u8]) -> Result<()> + Sync),
) -> Result<()> {
    let share = (bytes.len() / block_bytes).div_ceil(threads.count());
    let shares: Vec<_> = bytes
        .chunks_mut(share * block_bytes)
        .enumerate()
        .map(|(i, bytes)| Mutex::new((i * share..).zip(bytes.chunks_exact_mut(block_bytes))))
        .collect();
    let failed = Mutex::new(None);
    threads.run(shares.len(), &|first| {
        for share in shares[first..].iter().chain(&shares[..first]) {
            let next = || lock(share).next();
            while let Some((block, bytes)) = next() {
                if let Err(error) = pack_block(block, bytes) {
                    *lock(&failed) = Some(error);
                }
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Locks, whatever became of the last holder: what is guarded stays valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Value `i` of an array of type `t`.
fn load(t: FloatType, bytes: &[u8], i: usize) -> f32 {
    let b = &bytes[i * t.bytes()..];
    match t {
        FloatType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        FloatType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        FloatType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
    }
}

/// Index of the value of row `lane` and column `k` in a unit of plain values.
fn float_index(t: FloatType, lane: usize, k: usize) -> usize {
    if t == FloatType::BF16 { (k / 2 * LANES + lane) * 2 + k % 2 } else { k * LANES + lane }
}

fn float_unit(t: FloatType, bytes: &[u8], lane: usize, out: &mut [f32]) {
    for (k, x) in out.iter_mut().enumerate() {
        *x = load(t, bytes, float_index(t, lane, k));
    }
}

/// The codes of row `lane` of a unit.
fn code_unit(codes: Codes, bytes: &[u8], lane: usize) -> [u8; UNIT] {
    let mut quads = [0u32; UNIT / 4];
    let (mut offset, mut shift) = (0, 0);
    for &bits in codes.planes() {
        let per_word = (8 / bits) as usize;
        let mask = u32::from_le_bytes([((1u32 << bits) - 1) as u8; 4]);
        for (i, quad) in quads.iter_mut().enumerate() {
            let at = offset + i / per_word * 64 + lane * 4;
            let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            *quad |= (word >> (bits as usize * (i % per_word)) & mask) << shift;
        }
        offset += bits as usize * 64;
        shift += bits;
    }
    let mut out = [0; UNIT];
    for (out, quad) in out.chunks_exact_mut(4).zip(quads) {
        out.copy_from_slice(&quad.to_le_bytes());
    }
    out
}

#[cfg(test)]
pub(crate) mod tests;
