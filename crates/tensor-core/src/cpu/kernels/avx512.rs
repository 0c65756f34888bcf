//! AVX-512 (F, BW, DQ, VL, VNNI): one register a vector; with BF16 also its dot product.

use std::arch::x86_64::*;

use super::vector::{Kernel, Vector};

/// AVX-512 with VNNI, and with BF16 if so said.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

impl<const BF16: bool> Avx512<BF16> {
    /// Whether the processor has the instructions.
    pub(super) fn detected() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!BF16 || is_x86_feature_detected!("avx512bf16"))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
unsafe fn stamped<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract; the features of `Avx512<false>` are enabled here.
    unsafe { kernel.run::<Avx512<false>>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,f16c")]
unsafe fn stamped_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract; the features of `Avx512<true>` are enabled here.
    unsafe { kernel.run::<Avx512<true>>() }
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each body is a few intrinsics; Vector's contract is all they need"
)]
impl<const BF16: bool> Vector for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    type Base = Avx512<false>;
    const BF16: bool = BF16;

    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        if BF16 { stamped_bf16(kernel) } else { stamped(kernel) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        _mm512_storeu_ps(p, x);
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> __m512 {
        _mm512_maskz_loadu_ps(mask(n), p)
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, x: __m512, n: usize) {
        _mm512_mask_storeu_ps(p, mask(n), x);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m512) {
        _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        let bits = _mm512_castps_si512(x);
        let top = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let top = _mm512_mask_blend_epi32(nan, _mm512_srli_epi32::<16>(up), quiet);
        _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(top));
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn store_sums(p: *mut f32, [a, b, c, d]: [__m512; 4]) {
        // Quarters of registers: those of two vectors are added in one register, then those of four.
        let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        let x = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
        let x = _mm512_add_ps(x, _mm512_permute_ps::<0b01_00_11_10>(x));
        let x = _mm512_add_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x));
        let sums = _mm512_maskz_compress_ps(0x1111, x);
        _mm_storeu_ps(p, _mm512_castps512_ps128(sums));
    }
    #[inline(always)]
    unsafe fn reduce_sum(a: __m512) -> f32 {
        let [lo, hi] = halves(a);
        let a = _mm256_add_ps(lo, hi);
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
    }
    #[inline(always)]
    unsafe fn reduce_max(a: __m512) -> f32 {
        let [lo, hi] = halves(a);
        let a = _mm256_max_ps(lo, hi);
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
    }
    #[inline(always)]
    unsafe fn to_bits(a: __m512) -> __m512i {
        _mm512_castps_si512(a)
    }
    #[inline(always)]
    unsafe fn from_bits(a: __m512i) -> __m512 {
        _mm512_castsi512_ps(a)
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512i {
        _mm512_cvtps_epi32(a)
    }
    #[inline(always)]
    unsafe fn from_i32(a: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(a)
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> __m512i {
        _mm512_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: __m512i) {
        _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x));
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn sub_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_sub_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn shl(a: __m512i, n: u32) -> __m512i {
        _mm512_sllv_epi32(a, _mm512_set1_epi32(n as i32))
    }
    #[inline(always)]
    unsafe fn shr(a: __m512i, n: u32) -> __m512i {
        _mm512_srlv_epi32(a, _mm512_set1_epi32(n as i32))
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: __m512i) -> __m512i {
        let table = _mm_loadu_si128(table.as_ptr().cast());
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(acc, w, x)
    }
    #[inline(always)]
    unsafe fn dot_u7(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(acc, w, x)
    }
    #[inline(always)]
    unsafe fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
        let mut quarters = rows;
        for (rows, out) in rows.as_chunks().0.iter().zip(quarters.as_chunks_mut().0) {
            // Columns `i`, `i + 4`, `i + 8`, `i + 12` of these four rows, in 128 bits each.
            let [a, b, c, d] = *rows;
            let [ab, cd] = [_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)];
            let [ab2, cd2] = [_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)];
            *out = [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab2, cd2),
                _mm512_unpackhi_epi64(ab2, cd2),
            ];
        }
        let mut columns = rows;
        for i in 0..4 {
            let [a, b, c, d] = [quarters[i], quarters[4 + i], quarters[8 + i], quarters[12 + i]];
            let [ab, cd] = [_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d)];
            let [ab2, cd2] = [_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d)];
            columns[i] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
            columns[4 + i] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
            columns[8 + i] = _mm512_shuffle_i32x4::<0x88>(ab2, cd2);
            columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(ab2, cd2);
        }
        columns
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn pairs_bf16(a: __m512, b: __m512) -> __m512i {
        if BF16 {
            // SAFETY: both types are 64 bytes without invalid values.
            let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            // Those of `a` are the lower half of the register.
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(halves));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        } else {
            let mut halves = [0u16; 32];
            Self::store_bf16(halves.as_mut_ptr(), a);
            Self::store_bf16(halves.as_mut_ptr().add(16), b);
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves.as_ptr().cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves.as_ptr().add(16).cast()));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: __m512, w: __m512i, x: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: both types are 64 bytes without invalid values.
            let [w, x]: [__m512bh; 2] = std::mem::transmute([w, x]);
            _mm512_dpbf16_ps(acc, w, x)
        } else {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = [_mm512_and_si512(w, high), _mm512_and_si512(x, high)];
            let even = [_mm512_slli_epi32::<16>(w), _mm512_slli_epi32::<16>(x)];
            let acc = _mm512_fmadd_ps(_mm512_castsi512_ps(odd[0]), _mm512_castsi512_ps(odd[1]), acc);
            _mm512_fmadd_ps(_mm512_castsi512_ps(even[0]), _mm512_castsi512_ps(even[1]), acc)
        }
    }
}

/// The first `n <= 16` lanes.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

#[inline(always)]
unsafe fn halves(a: __m512) -> [__m256; 2] {
    // SAFETY: only called from `Vector`'s functions, whose contract gives AVX-512.
    unsafe { [_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)] }
}
