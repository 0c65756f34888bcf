//! The 16-lane vector that every kernel is written over, and the contract of a kernel. No instruction set here.
//!
//! A kernel is a struct of its arguments and one body, [`Kernel::run`], generic over [`Vector`].
//! [`Vector::call`] compiles that body for the instruction set of the vector: everything in it is
//! `#[inline(always)]`, down to the intrinsics. Closures are functions of their own and don't belong there.
//!
//! All arithmetic is IEEE single precision with fused multiply-add, and reductions have one order, so that
//! the same body gives the same bits on every instruction set ([`Vector::dot_bf16`] apart).

use crate::cpu::packed::UNIT;

/// Lanes of a [`Vector`]; rows of a packed block.
pub(crate) const LANES: usize = 16;

/// A function body to be compiled for several instruction sets.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The body; mark it `#[inline(always)]`.
    ///
    /// # Safety
    /// Called through [`Vector::call`]; and what the kernel says of its arguments.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// 16 lanes of `f32` ([`F`](Self::F)) or 32-bit integers ([`I`](Self::I)) of one instruction set.
///
/// # Safety
/// Of all functions but [`call`](Self::call): they run inside a [`Kernel`] that was started by `call` of the
/// same type. Pointers are valid for what is read or written through them, at any alignment.
#[allow(clippy::missing_safety_doc, reason = "said once, above")]
pub(crate) trait Vector: Copy + 'static {
    /// 16 floats.
    type F: Copy;
    /// 16 words of 32 bits.
    type I: Copy;
    /// The instruction set without its dot products: the same to every kernel that has none.
    type Base: Vector;
    /// Whether [`dot_bf16`](Self::dot_bf16) is an instruction.
    const BF16: bool = false;

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// 16 values stored as half floats.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// 16 values as half floats, rounded to nearest, ties to even; a NaN stays one.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Rounds to nearest, ties to even; a NaN stays one.
    unsafe fn store_bf16(p: *mut u16, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` if either is a NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: `b` if either is a NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The sum of all lanes: halves are added to halves, 8, 4, 2, 1.
    unsafe fn reduce_sum(a: Self::F) -> f32;
    /// The greatest lane, in the order of [`reduce_sum`](Self::reduce_sum).
    unsafe fn reduce_max(a: Self::F) -> f32;
    unsafe fn to_bits(a: Self::F) -> Self::I;
    unsafe fn from_bits(a: Self::I) -> Self::F;
    /// To the nearest integer, ties to even, for `|a| < 2^31`.
    unsafe fn round(a: Self::F) -> Self::I;
    /// Signed integers to floats, rounded to nearest.
    unsafe fn from_i32(a: Self::I) -> Self::F;

    unsafe fn splat_i(x: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// Lanes, all within `-128..=127`, as 16 bytes.
    unsafe fn store_i8(p: *mut i8, x: Self::I);
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// `a << n`, `n < 32`, meant for constants.
    unsafe fn shl(a: Self::I, n: u32) -> Self::I;
    /// `a >> n` with zeros shifted in, `n < 32`, meant for constants.
    unsafe fn shr(a: Self::I, n: u32) -> Self::I;
    /// Each byte of `codes`, all less than 16, replaced by `table[byte]`.
    unsafe fn lookup(table: &[u8; 16], codes: Self::I) -> Self::I;
    /// In each lane, `acc` plus the sum of four products of unsigned bytes of `w` and signed bytes of `x`.
    /// Exact for all bytes.
    unsafe fn dot_u8(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// [`dot_u8`](Self::dot_u8) for bytes of `w` that are less than 128.
    unsafe fn dot_u7(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;

    /// For each of `T` tokens, the sum of [`dot_u8`](Self::dot_u8) of each `w` and four bytes of the token at `x`,
    /// `x + 4`, .., the same in all lanes; a token is [`UNIT`] bytes further than the last. For bytes of `w` that are
    /// less than `2^BITS`, and of `x` that are not -128.
    #[inline(always)]
    unsafe fn dots<const BITS: u32, const N: usize, const T: usize>(
        w: &[Self::I; N],
        x: *const u8,
    ) -> [Self::I; T] {
        // SAFETY: this function's own contract, of `4 * N` bytes of each token.
        unsafe {
            let mut dots = [Self::splat_i(0); T];
            for (t, dot) in dots.iter_mut().enumerate() {
                for (i, w) in w.iter().enumerate() {
                    let x = Self::splat_i(x.add(t * UNIT + 4 * i).cast::<i32>().read_unaligned());
                    *dot = if BITS < 8 { Self::dot_u7(*dot, *w, x) } else { Self::dot_u8(*dot, *w, x) };
                }
            }
            dots
        }
    }

    /// Each byte `>> n`, `n < 8`, meant for constants.
    #[inline(always)]
    unsafe fn shr_u8(a: Self::I, n: u32) -> Self::I {
        // SAFETY: this function's own contract.
        unsafe { Self::and(Self::shr(a, n), Self::splat_i(i32::from_ne_bytes([0xff >> n; 4]))) }
    }

    /// Asks for the cache line of `p`, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    /// In each lane, `acc` plus the two products of the bfloat16 halves of `w` and `x`.
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: Self::I, x: Self::I) -> Self::F {
        // SAFETY: this function's own contract.
        unsafe {
            let high = Self::splat_i(0xffff_0000_u32 as i32);
            let odd = [Self::from_bits(Self::and(w, high)), Self::from_bits(Self::and(x, high))];
            let even = [Self::from_bits(Self::shl(w, 16)), Self::from_bits(Self::shl(x, 16))];
            Self::fma(even[0], even[1], Self::fma(odd[0], odd[1], acc))
        }
    }

    /// `a` and `b` as the low and the high bfloat16 halves of each lane, rounded to nearest, ties to even.
    #[inline(always)]
    unsafe fn pairs_bf16(a: Self::F, b: Self::F) -> Self::I {
        let mut halves = [[0u16; LANES]; 2];
        let mut pairs = [0u16; 2 * LANES];
        // SAFETY: this function's own contract; the arrays hold what is stored and loaded.
        unsafe {
            Self::store_bf16(halves[0].as_mut_ptr(), a);
            Self::store_bf16(halves[1].as_mut_ptr(), b);
            for (i, pair) in pairs.chunks_exact_mut(2).enumerate() {
                pair.copy_from_slice(&[halves[0][i], halves[1][i]]);
            }
            Self::load_i(pairs.as_ptr().cast())
        }
    }

    /// Stores the [`reduce_sum`](Self::reduce_sum) of each.
    #[inline(always)]
    unsafe fn store_sums(p: *mut f32, a: [Self::F; 4]) {
        for (i, a) in a.into_iter().enumerate() {
            // SAFETY: this function's own contract.
            unsafe { *p.add(i) = Self::reduce_sum(a) };
        }
    }

    #[inline(always)]
    unsafe fn neg(a: Self::F) -> Self::F {
        // SAFETY: this function's own contract. Subtracting from -0 flips the sign of zeros too.
        unsafe { Self::sub(Self::splat(-0.0), a) }
    }

    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        // SAFETY: this function's own contract.
        unsafe { Self::from_bits(Self::and(Self::to_bits(a), Self::splat_i(0x7fff_ffff))) }
    }

    /// The first `n <= 16` values, then zeros.
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::F {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `n` values can be read and fit `lanes`.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(LANES));
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `n <= 16` lanes.
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, x: Self::F, n: usize) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `n` values can be written and are in `lanes`.
        unsafe {
            Self::store(lanes.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(LANES));
        }
    }

    /// [`load_partial`](Self::load_partial) of half floats.
    #[inline(always)]
    unsafe fn load_partial_f16(p: *const u16, n: usize) -> Self::F {
        let mut lanes = [0u16; LANES];
        // SAFETY: `n` values can be read and fit `lanes`.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(LANES));
            Self::load_f16(lanes.as_ptr())
        }
    }

    /// [`store_f16`](Self::store_f16) of the first `n <= 16` lanes.
    #[inline(always)]
    unsafe fn store_partial_f16(p: *mut u16, x: Self::F, n: usize) {
        let mut lanes = [0u16; LANES];
        // SAFETY: `n` values can be written and are in `lanes`.
        unsafe {
            Self::store_f16(lanes.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(LANES));
        }
    }

    /// `e^x` within 2 ulp: `x = n ln 2 + r`, a polynomial in `|r| <= ln 2 / 2` (Cephes' `expf`), `2^n`. Underflows
    /// to 0 through the subnormals, overflows to infinity, keeps NaN.
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: this function's own contract.
        unsafe {
            // Beyond these the result is 0 or infinity; in this order of operands a NaN passes.
            let x = Self::min(Self::splat(89.0), Self::max(Self::splat(-104.0), x));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            let nf = Self::from_i32(n);
            let r = Self::fma(nf, Self::splat(-0.693_359_4), x);
            let r = Self::fma(nf, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            p = Self::fma(p, r, Self::splat(1.398_199_9e-3));
            p = Self::fma(p, r, Self::splat(8.333_452e-3));
            p = Self::fma(p, r, Self::splat(4.166_579_6e-2));
            p = Self::fma(p, r, Self::splat(1.666_666_5e-1));
            p = Self::fma(p, r, Self::splat(0.5));
            p = Self::add(Self::fma(p, Self::mul(r, r), r), Self::splat(1.0));
            // 2^n in two factors: -150 <= n <= 128 exceeds the exponents of one float.
            let offset = Self::splat_i(256);
            let half = Self::shr(Self::add_i(n, offset), 1);
            let rest = Self::add_i(n, Self::sub_i(offset, half));
            let low = Self::shl(Self::add_i(half, Self::splat_i(127 - 128)), 23);
            let high = Self::shl(Self::add_i(rest, Self::splat_i(127 - 128)), 23);
            Self::mul(Self::mul(p, Self::from_bits(low)), Self::from_bits(high))
        }
    }

    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;

    /// Vector `i` of lanes `i`: the columns of a matrix whose rows are `rows`.
    #[inline(always)]
    unsafe fn transpose(rows: [Self::I; LANES]) -> [Self::I; LANES] {
        let (mut words, mut turned) = ([[0.0f32; LANES]; LANES], [[0.0; LANES]; LANES]);
        // SAFETY: this function's own contract; each array has 16 values.
        unsafe {
            for (words, row) in words.iter_mut().zip(rows) {
                Self::store(words.as_mut_ptr(), Self::from_bits(row));
            }
            for (i, words) in words.iter().enumerate() {
                for (turned, word) in turned.iter_mut().zip(words) {
                    turned[i] = *word;
                }
            }
            let mut columns = rows;
            for (column, turned) in columns.iter_mut().zip(&turned) {
                *column = Self::load_i(turned.as_ptr().cast());
            }
            columns
        }
    }
}

/// Whether there are 32 registers of a whole vector each, as with AVX-512: room for more sums.
pub(super) const fn is_wide<V: Vector>() -> bool {
    align_of::<V::F>() == 4 * LANES
}

#[cfg(test)]
mod tests;
