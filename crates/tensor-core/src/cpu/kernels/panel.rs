//! Activations in the order in which the matrix kernels read them. Not the matrix kernels.
//!
//! A *panel* is the rows of one tile, up to 8 tokens, unit by unit (32 columns, zeros after the last). It has slots for
//! 1, 2, 4, 8 or 16 tokens, those without a token are zeros. Of a unit, with `t` slots:
//!
//! ```text
//! int8   t x 32 x i8 | t x f32 scale | t x f32 sum | t x f32 sum of the first half | t x f32 of the second
//! bf16   16 pairs of columns x t tokens x 2 values
//! f32    32 columns x t tokens
//! tiles  16 tokens x 32 columns in bf16
//! ```
//!
//! A unit of int8 values is `scale * q`, `|q| <= 127`; sums are those of `scale * q`, so that what quantizing
//! did to the values it did to their sums.

use super::matmul::MAX_TOKENS;
use super::vector::{Kernel, LANES, Vector};
use crate::cpu::packed::UNIT;

/// In which form the matrix kernels of a format want their activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Panel {
    /// 8-bit integers with a scale for each unit.
    Int8,
    /// bfloat16 pairs.
    Bf16,
    /// As they are.
    F32,
    /// bfloat16 in tiles of 16 tokens.
    Tiles,
}

/// Kinds of panels.
pub(crate) const PANELS: usize = 4;

impl Panel {
    /// Slots of a panel for the next of `left` tokens.
    pub(crate) fn slots(self, left: usize) -> usize {
        match self {
            Self::Tiles => LANES,
            Self::Int8 => left.min(MAX_TOKENS).next_power_of_two(),
            Self::Bf16 | Self::F32 => left.min(MAX_TOKENS / 2).next_power_of_two(),
        }
    }

    /// Slots of all panels of `t` tokens.
    pub(crate) fn all_slots(self, t: usize) -> usize {
        let most = self.slots(usize::MAX / 2);
        t / most * most + if t.is_multiple_of(most) { 0 } else { self.slots(t % most) }
    }

    /// Bytes of a unit of one token.
    pub(crate) const fn unit_bytes(self) -> usize {
        match self {
            Self::Int8 => INT8_BYTES,
            Self::Bf16 | Self::Tiles => UNIT * 2,
            Self::F32 => UNIT * 4,
        }
    }
}

/// Bytes of an int8 unit of one token: codes, scale and three sums.
pub(super) const INT8_BYTES: usize = UNIT + 16;

/// The rows that become a panel.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    /// The first row, and those that follow it.
    pub data: &'a [f32],
    /// Rows.
    pub tokens: usize,
    /// Slots of the panel, at least as many.
    pub slots: usize,
    /// Columns.
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

impl Tokens<'_> {
    /// The values of slot `t` in a unit, none if no token is there.
    #[inline(always)]
    fn unit(&self, t: usize, unit: usize) -> &[f32] {
        if t >= self.tokens {
            return &[];
        }
        let start = t * self.stride + unit * UNIT;
        &self.data[start..start + UNIT.min(self.cols - unit * UNIT)]
    }
}

/// Writes the panel of `tokens` as `panel` into `out`, which has `units * slots * unit_bytes` bytes.
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn build<V: Vector>(panel: Panel, tokens: Tokens<'_>, out: &mut [u8]) {
    let bytes = tokens.cols.div_ceil(UNIT) * tokens.slots * panel.unit_bytes();
    let out = &mut out[..bytes];
    // SAFETY: tables are handed out after detection; `out` has the size that the kernels write.
    unsafe {
        match panel {
            Panel::Int8 => V::call(Int8 { tokens, out }),
            Panel::Bf16 => V::call(Bf16 { tokens, out }),
            Panel::F32 => V::call(F32 { tokens, out }),
            Panel::Tiles => V::call(TileRows { tokens, out }),
        }
    }
}

/// `out` has `units * slots * INT8_BYTES` bytes.
struct Int8<'a> {
    tokens: Tokens<'a>,
    out: &'a mut [u8],
}

impl Kernel for Int8<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let n = self.tokens.slots;
        for unit in 0..self.tokens.cols.div_ceil(UNIT) {
            for t in 0..n {
                let x = self.tokens.unit(t, unit);
                // SAFETY: this kernel's contract: unit and token lie in `out`, and partial loads stay in `x`.
                unsafe {
                    let base = self.out.as_mut_ptr().add(unit * n * INT8_BYTES);
                    let [lo, hi] = if x.len() == UNIT {
                        [V::load(x.as_ptr()), V::load(x.as_ptr().add(LANES))]
                    } else {
                        let rest = x.len().saturating_sub(LANES);
                        let tail = x.as_ptr().add(x.len() - rest);
                        [V::load_partial(x.as_ptr(), x.len().min(LANES)), V::load_partial(tail, rest)]
                    };
                    let amax = V::reduce_max(V::max(V::abs(lo), V::abs(hi)));
                    let inverse = V::splat(if amax > 0.0 { 127.0 / amax } else { 0.0 });
                    // 0 for finite values, else NaN: comparisons above may lose a NaN.
                    let finite = V::add(V::sub(lo, lo), V::sub(hi, hi));
                    let lo = V::round(clamp::<V>(V::mul(lo, inverse)));
                    let hi = V::round(clamp::<V>(V::mul(hi, inverse)));
                    V::store_i8(base.add(t * UNIT).cast(), lo);
                    V::store_i8(base.add(t * UNIT + LANES).cast(), hi);
                    let mut sums = [0.0; 4];
                    V::store_sums(sums.as_mut_ptr(), [V::from_i32(lo), V::from_i32(hi), finite, finite]);
                    let scale = amax / 127.0 + sums[2];
                    let floats = base.add(n * UNIT).cast::<f32>();
                    floats.add(t).write_unaligned(scale);
                    floats.add(n + t).write_unaligned(scale * (sums[0] + sums[1]));
                    floats.add(2 * n + t).write_unaligned(scale * sums[0]);
                    floats.add(3 * n + t).write_unaligned(scale * sums[1]);
                }
            }
        }
    }
}

/// To the range of a code: the inverse scale of subnormals is infinite.
#[inline(always)]
unsafe fn clamp<V: Vector>(x: V::F) -> V::F {
    // SAFETY: Vector's contract, handed on.
    unsafe { V::min(V::max(x, V::splat(-127.0)), V::splat(127.0)) }
}

/// `out` has `units * slots * 64` bytes.
struct Bf16<'a> {
    tokens: Tokens<'a>,
    out: &'a mut [u8],
}

impl Kernel for Bf16<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let n = self.tokens.slots;
        for unit in 0..self.tokens.cols.div_ceil(UNIT) {
            for t in 0..n {
                let x = self.tokens.unit(t, unit);
                let mut values = [0.0; UNIT];
                values[..x.len()].copy_from_slice(x);
                let mut rounded = [0u32; UNIT / 2];
                // SAFETY: `values` and `rounded` hold a unit; unit and token lie in `out`.
                unsafe {
                    let halves = rounded.as_mut_ptr().cast::<u16>();
                    V::store_bf16(halves, V::load(values.as_ptr()));
                    V::store_bf16(halves.add(LANES), V::load(values.as_ptr().add(LANES)));
                    let out = self.out.as_mut_ptr().cast::<u32>().add(unit * n * UNIT / 2 + t);
                    for (i, pair) in rounded.iter().enumerate() {
                        out.add(i * n).write_unaligned(*pair);
                    }
                }
            }
        }
    }
}

/// `out` has `units * slots * 128` bytes.
struct F32<'a> {
    tokens: Tokens<'a>,
    out: &'a mut [u8],
}

impl Kernel for F32<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let n = self.tokens.slots;
        for unit in 0..self.tokens.cols.div_ceil(UNIT) {
            for t in 0..n {
                let x = self.tokens.unit(t, unit);
                let mut values = [0.0; UNIT];
                values[..x.len()].copy_from_slice(x);
                for (i, x) in values.iter().enumerate() {
                    // SAFETY: unit, column and token lie in `out`.
                    unsafe {
                        let out = self.out.as_mut_ptr().cast::<f32>();
                        out.add((unit * UNIT + i) * n + t).write_unaligned(*x);
                    }
                }
            }
        }
    }
}

/// `out` has `units * 16` rows of 64 bytes; there are 16 slots.
struct TileRows<'a> {
    tokens: Tokens<'a>,
    out: &'a mut [u8],
}

impl Kernel for TileRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for unit in 0..self.tokens.cols.div_ceil(UNIT) {
            for t in 0..self.tokens.slots {
                let x = self.tokens.unit(t, unit);
                // SAFETY: unit and token lie in `out`; whole units are read from `x`, others from `values`.
                unsafe {
                    let out = self.out.as_mut_ptr().cast::<u16>().add((unit * LANES + t) * UNIT);
                    let mut values = [0.0; UNIT];
                    let x = if x.len() == UNIT {
                        x.as_ptr()
                    } else {
                        values[..x.len()].copy_from_slice(x);
                        values.as_ptr()
                    };
                    V::store_bf16(out, V::load(x));
                    V::store_bf16(out.add(LANES), V::load(x.add(LANES)));
                }
            }
        }
    }
}
