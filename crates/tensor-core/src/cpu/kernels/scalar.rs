//! Vectors of plain arrays: the definition of every operation, and the fallback of every processor.
//!
//! What is sixteen calls or many instructions is a function, not inlined: it was half of the crate's code, at no gain.

use half::{bf16, f16};

use super::vector::{Kernel, LANES, Vector};

/// No instruction set beyond the target's own.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map2<T: Copy>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> T) -> [T; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn fold(mut a: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            a[i] = f(a[i], a[i + half]);
        }
    }
    a[0]
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each body is a read, a write or neither; Vector's contract covers it"
)]
impl Vector for Scalar {
    type F = F;
    type I = I;
    type Base = Self;

    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        p.cast::<F>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        p.cast::<F>().write_unaligned(x);
    }
    #[inline(never)]
    unsafe fn load_f16(p: *const u16) -> F {
        p.cast::<[u16; LANES]>().read_unaligned().map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(never)]
    unsafe fn store_f16(p: *mut u16, x: F) {
        p.cast::<[u16; LANES]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits()));
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        p.cast::<[u16; LANES]>().read_unaligned().map(|x| bf16::from_bits(x).to_f32())
    }
    #[inline(never)]
    unsafe fn store_bf16(p: *mut u16, x: F) {
        p.cast::<[u16; LANES]>().write_unaligned(x.map(|x| bf16::from_f32(x).to_bits()));
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(never)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn reduce_sum(a: F) -> f32 {
        fold(a, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn reduce_max(a: F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn to_bits(a: F) -> I {
        a.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        a.map(|x| f32::from_bits(x as u32))
    }
    #[inline(never)]
    unsafe fn round(a: F) -> I {
        a.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn from_i32(a: I) -> F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> I {
        p.cast::<I>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: I) {
        p.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x as i8));
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn sub_i(a: I, b: I) -> I {
        map2(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        map2(a, b, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        map2(a, b, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn shl(a: I, n: u32) -> I {
        a.map(|x| x << n)
    }
    #[inline(always)]
    unsafe fn shr(a: I, n: u32) -> I {
        a.map(|x| (x as u32 >> n) as i32)
    }
    #[inline(never)]
    unsafe fn lookup(table: &[u8; 16], codes: I) -> I {
        codes.map(|x| i32::from_ne_bytes(x.to_ne_bytes().map(|c| table[usize::from(c & 15)])))
    }
    #[inline(never)]
    unsafe fn dot_u8(acc: I, w: I, x: I) -> I {
        std::array::from_fn(|i| {
            let (w, x) = (w[i].to_ne_bytes(), x[i].to_ne_bytes());
            let products: [i32; 4] = std::array::from_fn(|j| i32::from(w[j]) * i32::from(x[j] as i8));
            acc[i].wrapping_add(products.iter().sum())
        })
    }
    #[inline(always)]
    unsafe fn dot_u7(acc: I, w: I, x: I) -> I {
        Self::dot_u8(acc, w, x)
    }
}
