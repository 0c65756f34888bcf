//! NEON: four registers a vector; with dotprod or i8mm also their dot products, in assembly because
//! their intrinsics are unstable.

use std::arch::aarch64::*;
use std::arch::asm;

use super::vector::{Kernel, Vector};
use crate::cpu::packed::UNIT;

/// NEON.
pub(crate) const BASE: u8 = 0;
/// NEON with `sdot`.
pub(crate) const DOTPROD: u8 = 1;
/// NEON with `sdot` and `usdot`.
pub(crate) const I8MM: u8 = 2;

/// NEON with the dot products of one of [`BASE`], [`DOTPROD`], [`I8MM`].
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: u8>;

impl<const DOT: u8> Neon<DOT> {
    /// Whether the processor has the instructions.
    pub(super) fn detected() -> bool {
        use std::arch::is_aarch64_feature_detected;
        is_aarch64_feature_detected!("neon")
            && (DOT < DOTPROD || is_aarch64_feature_detected!("dotprod"))
            && (DOT < I8MM || is_aarch64_feature_detected!("i8mm"))
    }
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each body is a few intrinsics; Vector's contract is all they need"
)]
impl<const DOT: u8> Vector for Neon<DOT> {
    type F = F;
    type I = I;
    type Base = Neon<BASE>;

    // NEON belongs to every aarch64 target that has floats, so there is nothing to enable here.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [vdupq_n_f32(x); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        vst1q_f32(p, x[0]);
        vst1q_f32(p.add(4), x[1]);
        vst1q_f32(p.add(8), x[2]);
        vst1q_f32(p.add(12), x[3]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        [widen_f16(p), widen_f16(p.add(4)), widen_f16(p.add(8)), widen_f16(p.add(12))]
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: F) {
        vst1_u16(p, f16_bits(x[0]));
        vst1_u16(p.add(4), f16_bits(x[1]));
        vst1_u16(p.add(8), f16_bits(x[2]));
        vst1_u16(p.add(12), f16_bits(x[3]));
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        [widen_bf16(p), widen_bf16(p.add(4)), widen_bf16(p.add(8)), widen_bf16(p.add(12))]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: F) {
        vst1_u16(p, bf16_bits(x[0]));
        vst1_u16(p.add(4), bf16_bits(x[1]));
        vst1_u16(p.add(8), bf16_bits(x[2]));
        vst1_u16(p.add(12), bf16_bits(x[3]));
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1]), vaddq_f32(a[2], b[2]), vaddq_f32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1]), vsubq_f32(a[2], b[2]), vsubq_f32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1]), vdivq_f32(a[2], b[2]), vdivq_f32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        [
            vfmaq_f32(c[0], a[0], b[0]),
            vfmaq_f32(c[1], a[1], b[1]),
            vfmaq_f32(c[2], a[2], b[2]),
            vfmaq_f32(c[3], a[3], b[3]),
        ]
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        [greater(a[0], b[0]), greater(a[1], b[1]), greater(a[2], b[2]), greater(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        [less(a[0], b[0]), less(a[1], b[1]), less(a[2], b[2]), less(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn reduce_sum(a: F) -> f32 {
        let a = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
        let a = vadd_f32(vget_low_f32(a), vget_high_f32(a));
        vget_lane_f32::<0>(a) + vget_lane_f32::<1>(a)
    }
    #[inline(always)]
    unsafe fn reduce_max(a: F) -> f32 {
        let a = greater(greater(a[0], a[2]), greater(a[1], a[3]));
        let a = greater(a, vextq_f32::<2>(a, a));
        vgetq_lane_f32::<0>(greater(a, vextq_f32::<1>(a, a)))
    }
    #[inline(always)]
    unsafe fn to_bits(a: F) -> I {
        [
            vreinterpretq_s32_f32(a[0]),
            vreinterpretq_s32_f32(a[1]),
            vreinterpretq_s32_f32(a[2]),
            vreinterpretq_s32_f32(a[3]),
        ]
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        [
            vreinterpretq_f32_s32(a[0]),
            vreinterpretq_f32_s32(a[1]),
            vreinterpretq_f32_s32(a[2]),
            vreinterpretq_f32_s32(a[3]),
        ]
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        [vcvtnq_s32_f32(a[0]), vcvtnq_s32_f32(a[1]), vcvtnq_s32_f32(a[2]), vcvtnq_s32_f32(a[3])]
    }
    #[inline(always)]
    unsafe fn from_i32(a: I) -> F {
        [vcvtq_f32_s32(a[0]), vcvtq_f32_s32(a[1]), vcvtq_f32_s32(a[2]), vcvtq_f32_s32(a[3])]
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        [vdupq_n_s32(x); 4]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> I {
        [load_s32(p), load_s32(p.add(16)), load_s32(p.add(32)), load_s32(p.add(48))]
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: I) {
        let lo = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
        let hi = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
        vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1]), vaddq_s32(a[2], b[2]), vaddq_s32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn sub_i(a: I, b: I) -> I {
        [vsubq_s32(a[0], b[0]), vsubq_s32(a[1], b[1]), vsubq_s32(a[2], b[2]), vsubq_s32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        [vandq_s32(a[0], b[0]), vandq_s32(a[1], b[1]), vandq_s32(a[2], b[2]), vandq_s32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        [vorrq_s32(a[0], b[0]), vorrq_s32(a[1], b[1]), vorrq_s32(a[2], b[2]), vorrq_s32(a[3], b[3])]
    }
    #[inline(always)]
    unsafe fn shl(a: I, n: u32) -> I {
        let n = vdupq_n_s32(n as i32);
        [vshlq_s32(a[0], n), vshlq_s32(a[1], n), vshlq_s32(a[2], n), vshlq_s32(a[3], n)]
    }
    #[inline(always)]
    unsafe fn shr(a: I, n: u32) -> I {
        let n = vdupq_n_s32(-(n as i32));
        [shift(a[0], n), shift(a[1], n), shift(a[2], n), shift(a[3], n)]
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: I) -> I {
        let table = vld1q_s8(table.as_ptr().cast());
        [pick(table, codes[0]), pick(table, codes[1]), pick(table, codes[2]), pick(table, codes[3])]
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: I, w: I, x: I) -> I {
        [
            dot_any::<DOT>(acc[0], w[0], x[0]),
            dot_any::<DOT>(acc[1], w[1], x[1]),
            dot_any::<DOT>(acc[2], w[2], x[2]),
            dot_any::<DOT>(acc[3], w[3], x[3]),
        ]
    }
    #[inline(always)]
    unsafe fn dot_u7(acc: I, w: I, x: I) -> I {
        [
            dot_small::<DOT>(acc[0], w[0], x[0]),
            dot_small::<DOT>(acc[1], w[1], x[1]),
            dot_small::<DOT>(acc[2], w[2], x[2]),
            dot_small::<DOT>(acc[3], w[3], x[3]),
        ]
    }
    #[inline(always)]
    unsafe fn dots<const BITS: u32, const N: usize, const T: usize>(w: &[I; N], x: *const u8) -> [I; T] {
        let mut dots = [[vdupq_n_s32(0); 4]; T];
        for (t, dot) in dots.iter_mut().enumerate() {
            for (i, w) in w.as_chunks::<4>().0.iter().enumerate() {
                let x = load_s32(x.add(t * UNIT + 16 * i));
                let offset = if BITS < 8 || DOT >= I8MM { vdupq_n_s32(0) } else { times_128(x) };
                for (lanes, dot) in dot.iter_mut().enumerate() {
                    let w = [w[0][lanes], w[1][lanes], w[2][lanes], w[3][lanes]];
                    *dot = if BITS < 8 {
                        dots_small::<DOT>(*dot, w, x)
                    } else {
                        dots_any::<DOT>(vaddq_s32(*dot, offset), w, x)
                    };
                }
            }
        }
        dots
    }
    #[inline(always)]
    unsafe fn shr_u8(a: I, n: u32) -> I {
        let n = vdupq_n_s8(-(n as i8));
        [shift_bytes(a[0], n), shift_bytes(a[1], n), shift_bytes(a[2], n), shift_bytes(a[3], n)]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
    }
}

/// Four lanes of `acc` plus products of signed bytes; dotprod.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn sdot(mut acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    asm!(
        ".arch_extension dotprod",
        "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
        acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// [`sdot`] with the same four bytes of `x` for each lane.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn sdot_lane<const LANE: u8>(mut acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    asm!(
        ".arch_extension dotprod",
        "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
        acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// Four lanes of `acc` plus products of unsigned bytes of `w` and signed bytes of `x`; i8mm.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn usdot(mut acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    asm!(
        ".arch_extension i8mm",
        "usdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
        acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// [`usdot`] with the same four bytes of `x` for each lane.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn usdot_lane<const LANE: u8>(mut acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    asm!(
        ".arch_extension i8mm",
        "usdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
        acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn dot_small<const DOT: u8>(acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    if DOT >= DOTPROD {
        return sdot(acc, w, x);
    }
    let [w, x] = [vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x)];
    let lo = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    let hi = vmull_high_s8(w, x);
    vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(lo), vpaddlq_s16(hi)))
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn dot_any<const DOT: u8>(acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    if DOT >= I8MM {
        return usdot(acc, w, x);
    }
    // `w x = (w - 128) x + 64 x + 64 x`.
    let half = vdupq_n_s32(0x4040_4040);
    dot_small::<DOT>(dot_small::<DOT>(dot_small::<DOT>(acc, less_128(w), x), half, x), half, x)
}

/// `acc` plus, in each lane, the dot products of its bytes in each `w` and four bytes of `x`: the first four for
/// `w[0]` and so on. The bytes of `w` are less than 128.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn dots_small<const DOT: u8>(acc: int32x4_t, w: [int32x4_t; 4], x: int32x4_t) -> int32x4_t {
    if DOT >= DOTPROD {
        let acc = sdot_lane::<1>(sdot_lane::<0>(acc, w[0], x), w[1], x);
        return sdot_lane::<3>(sdot_lane::<2>(acc, w[2], x), w[3], x);
    }
    let x = quads(x);
    let w = [bytes(w[0]), bytes(w[1]), bytes(w[2]), bytes(w[3])];
    // Two products, at most `2 * 127 * 128`, fit 16 bits.
    let low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[0]));
    let low = vmlal_s8(low, vget_low_s8(w[1]), vget_low_s8(x[1]));
    let high = vmlal_high_s8(vmull_high_s8(w[0], x[0]), w[1], x[1]);
    let sums = [vpaddlq_s16(low), vpaddlq_s16(high)];
    let low = vmull_s8(vget_low_s8(w[2]), vget_low_s8(x[2]));
    let low = vmlal_s8(low, vget_low_s8(w[3]), vget_low_s8(x[3]));
    let high = vmlal_high_s8(vmull_high_s8(w[2], x[2]), w[3], x[3]);
    vaddq_s32(acc, vpaddq_s32(vpadalq_s16(sums[0], low), vpadalq_s16(sums[1], high)))
}

/// [`dots_small`] for any bytes of `w`. Without i8mm, [`times_128`] of `x` is missing.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn dots_any<const DOT: u8>(acc: int32x4_t, w: [int32x4_t; 4], x: int32x4_t) -> int32x4_t {
    if DOT >= I8MM {
        let acc = usdot_lane::<1>(usdot_lane::<0>(acc, w[0], x), w[1], x);
        return usdot_lane::<3>(usdot_lane::<2>(acc, w[2], x), w[3], x);
    }
    let w = [less_128(w[0]), less_128(w[1]), less_128(w[2]), less_128(w[3])];
    if DOT >= DOTPROD {
        return dots_small::<DOT>(acc, w, x);
    }
    let x = quads(x);
    let mut sums = [vdupq_n_s32(0); 2];
    for i in 0..4 {
        let w = bytes(w[i]);
        // Two products may not fit 16 bits.
        sums[0] = vpadalq_s16(sums[0], vmull_s8(vget_low_s8(w), vget_low_s8(x[i])));
        sums[1] = vpadalq_s16(sums[1], vmull_high_s8(w, x[i]));
    }
    vaddq_s32(acc, vpaddq_s32(sums[0], sums[1]))
}

/// `w - 128`, which fits a signed byte.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn less_128(w: int32x4_t) -> int32x4_t {
    veorq_s32(w, vdupq_n_s32(0x8080_8080_u32 as i32))
}

/// 128 times the sum of the bytes of `x`, in each lane: what [`less_128`] takes away from a dot product.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn times_128(x: int32x4_t) -> int32x4_t {
    vdupq_n_s32(i32::from(vaddlvq_s8(bytes(x))) * 128)
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn bytes(x: int32x4_t) -> int8x16_t {
    vreinterpretq_s8_s32(x)
}

/// Each lane of `x` in all lanes.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn quads(x: int32x4_t) -> [int8x16_t; 4] {
    [
        bytes(vdupq_laneq_s32::<0>(x)),
        bytes(vdupq_laneq_s32::<1>(x)),
        bytes(vdupq_laneq_s32::<2>(x)),
        bytes(vdupq_laneq_s32::<3>(x)),
    ]
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn load_s32(p: *const u8) -> int32x4_t {
    vreinterpretq_s32_u8(vld1q_u8(p))
}

/// Shifts right by the negative counts in `n`, zeros coming in.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn shift(a: int32x4_t, n: int32x4_t) -> int32x4_t {
    vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), n))
}

/// [`shift`] of bytes.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn shift_bytes(a: int32x4_t, n: int8x16_t) -> int32x4_t {
    vreinterpretq_s32_u8(vshlq_u8(vreinterpretq_u8_s32(a), n))
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn pick(table: int8x16_t, codes: int32x4_t) -> int32x4_t {
    vreinterpretq_s32_s8(vqtbl1q_s8(table, vreinterpretq_u8_s32(codes)))
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcgtq_f32(a, b), a, b)
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn less(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcltq_f32(a, b), a, b)
}

/// Four half floats; `fcvtl` belongs to the base instruction set, Rust's half floats are unstable.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn widen_f16(p: *const u16) -> float32x4_t {
    let out: float32x4_t;
    asm!(
        "fcvtl {out:v}.4s, {x:v}.4h",
        out = out(vreg) out, x = in(vreg) vld1_u16(p),
        options(pure, nomem, nostack, preserves_flags)
    );
    out
}

/// The nearest half float of each lane; as with [`widen_f16`].
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn f16_bits(x: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    asm!(
        "fcvtn {out:v}.4h, {x:v}.4s",
        out = out(vreg) out, x = in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    out
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn widen_bf16(p: *const u16) -> float32x4_t {
    vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)))
}

/// The nearest bfloat16 of each lane.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn bf16_bits(x: float32x4_t) -> uint16x4_t {
    let bits = vreinterpretq_u32_f32(x);
    let top = vshrq_n_u32::<16>(bits);
    let odd = vandq_u32(top, vdupq_n_u32(1));
    let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    let quiet = vorrq_u32(top, vdupq_n_u32(0x40));
    vmovn_u32(vbslq_u32(vceqq_f32(x, x), vshrq_n_u32::<16>(up), quiet))
}
