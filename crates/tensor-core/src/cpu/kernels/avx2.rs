//! AVX2 (with FMA and F16C): two registers a vector; with AVX-VNNI also its dot product.

use std::arch::asm;
use std::arch::x86_64::*;

use super::vector::{Kernel, Vector};
use crate::cpu::packed::UNIT;

/// AVX2, and AVX-VNNI if so said.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Avx2<VNNI> {
    /// Whether the processor has the instructions.
    pub(super) fn detected() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"))
    }
}

type F = [__m256; 2];
type I = [__m256i; 2];

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stamped<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract; the features of `Avx2<false>` are enabled here.
    unsafe { kernel.run::<Avx2<false>>() }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn stamped_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract; the features of `Avx2<true>` are enabled here.
    unsafe { kernel.run::<Avx2<true>>() }
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each body is a few intrinsics; Vector's contract is all they need"
)]
impl<const VNNI: bool> Vector for Avx2<VNNI> {
    type F = F;
    type I = I;
    type Base = Avx2<false>;

    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        if VNNI { stamped_vnni(kernel) } else { stamped(kernel) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [_mm256_set1_ps(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        _mm256_storeu_ps(p, x[0]);
        _mm256_storeu_ps(p.add(8), x[1]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: F) {
        _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
        _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        [widen_bf16(p), widen_bf16(p.add(8))]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: F) {
        // Words below 2^16 pack without saturating; the packing interleaves 128-bit halves.
        let packed = _mm256_packus_epi32(bf16_bits(x[0]), bf16_bits(x[1]));
        _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn store_sums(p: *mut f32, [a, b, c, d]: [F; 4]) {
        let (a, b) = (_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]));
        let (c, d) = (_mm256_add_ps(c[0], c[1]), _mm256_add_ps(d[0], d[1]));
        let ab = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        let cd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
        let x = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
        let x = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(x, x), _mm256_shuffle_ps::<0xdd>(x, x));
        // a and c in the lower half, b and d in the upper one.
        _mm_storeu_ps(p, _mm_unpacklo_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
    }
    #[inline(always)]
    unsafe fn reduce_sum(a: F) -> f32 {
        let a = _mm256_add_ps(a[0], a[1]);
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
    }
    #[inline(always)]
    unsafe fn reduce_max(a: F) -> f32 {
        let a = _mm256_max_ps(a[0], a[1]);
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
    }
    #[inline(always)]
    unsafe fn to_bits(a: F) -> I {
        [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])]
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])]
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])]
    }
    #[inline(always)]
    unsafe fn from_i32(a: I) -> F {
        [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])]
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        [_mm256_set1_epi32(x); 2]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> I {
        [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())]
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: I) {
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
        let [lo, hi] = [_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)];
        _mm_storeu_si128(p.cast(), _mm_packs_epi16(lo, hi));
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn sub_i(a: I, b: I) -> I {
        [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn shl(a: I, n: u32) -> I {
        let n = _mm256_set1_epi32(n as i32);
        [_mm256_sllv_epi32(a[0], n), _mm256_sllv_epi32(a[1], n)]
    }
    #[inline(always)]
    unsafe fn shr(a: I, n: u32) -> I {
        let n = _mm256_set1_epi32(n as i32);
        [_mm256_srlv_epi32(a[0], n), _mm256_srlv_epi32(a[1], n)]
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: I) -> I {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: I, w: I, x: I) -> I {
        if VNNI { vnni(acc, w, x) } else { [dot_wide(acc[0], w[0], x[0]), dot_wide(acc[1], w[1], x[1])] }
    }
    #[inline(always)]
    unsafe fn dot_u7(acc: I, w: I, x: I) -> I {
        if VNNI { vnni(acc, w, x) } else { [dot_pairs(acc[0], w[0], x[0]), dot_pairs(acc[1], w[1], x[1])] }
    }
    #[inline(always)]
    unsafe fn dots<const BITS: u32, const N: usize, const T: usize>(w: &[I; N], x: *const u8) -> [I; T] {
        let mut dots = [[_mm256_setzero_si256(); 2]; T];
        if VNNI || (BITS == 8 && T <= 2) {
            for (t, dot) in dots.iter_mut().enumerate() {
                for (i, w) in w.iter().enumerate() {
                    *dot = Self::dot_u8(
                        *dot,
                        *w,
                        Self::splat_i(x.add(t * UNIT + 4 * i).cast::<i32>().read_unaligned()),
                    );
                }
            }
            return dots;
        }
        // The vectors' halves one after the other: eight of them stay in registers for all tokens.
        for half in 0..2 {
            let halves: [__m256i; N] = std::array::from_fn(|i| w[i][half]);
            let tokens = if T > 2 { opaque(T) } else { T };
            if BITS < 8 {
                for (t, dot) in dots.iter_mut().enumerate().take(tokens) {
                    dot[half] = self::dot::<Once, N>(BITS, &halves, x.add(t * UNIT));
                }
                continue;
            }
            // Products of whole bytes don't fit 16 bits; those of half bytes do, several of them.
            let nibble = _mm256_set1_epi8(15);
            let low = halves.map(|w| _mm256_and_si256(w, nibble));
            for (t, dot) in dots.iter_mut().enumerate().take(tokens) {
                dot[half] = self::dot::<Once, N>(4, &low, x.add(t * UNIT));
            }
            let high = halves.map(|w| _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble));
            for (t, dot) in dots.iter_mut().enumerate().take(tokens) {
                let high = _mm256_slli_epi32::<4>(self::dot::<Once, N>(4, &high, x.add(t * UNIT)));
                dot[half] = _mm256_add_epi32(dot[half], high);
            }
        }
        dots
    }
    #[inline(always)]
    unsafe fn transpose(rows: [I; 16]) -> [I; 16] {
        let mut columns = rows;
        for (half, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
            for part in 0..2 {
                // Columns `i` and `i + 4` of four rows, in 128 bits each.
                let mut pairs = [[_mm256_setzero_si256(); 4]; 2];
                for (rows, out) in rows.as_chunks::<4>().0.iter().zip(&mut pairs) {
                    let [a, b, c, d] = [rows[0][part], rows[1][part], rows[2][part], rows[3][part]];
                    let [ab, cd] = [_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)];
                    let [ab2, cd2] = [_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)];
                    *out = [
                        _mm256_unpacklo_epi64(ab, cd),
                        _mm256_unpackhi_epi64(ab, cd),
                        _mm256_unpacklo_epi64(ab2, cd2),
                        _mm256_unpackhi_epi64(ab2, cd2),
                    ];
                }
                for i in 0..4 {
                    let [a, b] = [pairs[0][i], pairs[1][i]];
                    columns[8 * part + i][half] = _mm256_permute2x128_si256::<0x20>(a, b);
                    columns[8 * part + 4 + i][half] = _mm256_permute2x128_si256::<0x31>(a, b);
                }
            }
        }
        columns
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn vnni(acc: I, w: I, x: I) -> I {
    [_mm256_dpbusd_avx_epi32(acc[0], w[0], x[0]), _mm256_dpbusd_avx_epi32(acc[1], w[1], x[1])]
}

/// Products of bytes below 128 and signed bytes: the sum of two, at most `2 * 127 * 128`, fits 16 bits.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn dot_pairs(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)))
}

/// `n`, of which the compiler knows nothing: a loop so often is not unrolled, which would mix the registers of several
/// rounds until they go through memory.
#[inline(always)]
pub(super) fn opaque(mut n: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { asm!("/* {} */", inout(reg) n, options(pure, nomem, nostack, preserves_flags)) };
    n
}

/// Where four bytes of a token are.
pub(super) trait Fours {
    /// Bytes from some to the next.
    const STRIDE: usize;

    /// Those at `x` in each lane.
    ///
    /// # Safety
    /// Of [`Vector`].
    unsafe fn load(x: *const u8) -> __m256i;
}

/// Once, behind those before them.
struct Once;

impl Fours for Once {
    const STRIDE: usize = 4;

    #[inline(always)]
    unsafe fn load(x: *const u8) -> __m256i {
        // SAFETY: the same contract.
        unsafe { splat4(x) }
    }
}

/// [`Vector::dots`] of half the lanes and one token, for bytes of `w` that are less than `2^bits`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
pub(super) unsafe fn dot<X: Fours, const N: usize>(bits: u32, w: &[__m256i; N], x: *const u8) -> __m256i {
    // Sums of two products, at most `2 * 2^bits * 127`, of which 16 bits hold a few.
    let few = match bits {
        ..=4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    };
    let mut dot = _mm256_setzero_si256();
    for (j, w) in w.chunks(few).enumerate() {
        let x = x.add(X::STRIDE * few * j);
        let mut words = _mm256_maddubs_epi16(w[0], X::load(x));
        for (i, w) in w.iter().enumerate().skip(1) {
            words = _mm256_add_epi16(words, _mm256_maddubs_epi16(*w, X::load(x.add(X::STRIDE * i))));
        }
        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
    }
    dot
}

/// Four bytes in each lane.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn splat4(x: *const u8) -> __m256i {
    _mm256_set1_epi32(x.cast::<i32>().read_unaligned())
}

/// Products of any bytes, widened first: two of them would saturate 16 bits.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn dot_wide(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    let even_w = _mm256_and_si256(w, _mm256_set1_epi16(0xff));
    let even_x = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
    let odd_w = _mm256_srli_epi16::<8>(w);
    let odd_x = _mm256_srai_epi16::<8>(x);
    let even = _mm256_madd_epi16(even_w, even_x);
    _mm256_add_epi32(acc, _mm256_add_epi32(even, _mm256_madd_epi16(odd_w, odd_x)))
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn widen_bf16(p: *const u16) -> __m256 {
    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
}

/// The nearest bfloat16 in the low half of each lane.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn bf16_bits(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let top = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    _mm256_blendv_epi8(_mm256_srli_epi32::<16>(up), quiet, nan)
}
