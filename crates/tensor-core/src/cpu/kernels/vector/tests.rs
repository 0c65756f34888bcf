//! Every instruction set against the scalar definition, at every length and misaligned; not the kernels.
#![allow(clippy::unwrap_used)]

use super::{Kernel, LANES, Vector};
use crate::cpu::kernels::scalar::Scalar;

/// A test that is run for each instruction set of this processor.
trait Check {
    fn check<V: Vector>(&self, name: &str);
}

fn everywhere(check: &impl Check) {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::cpu::kernels::{avx2::Avx2, avx512::Avx512};
        if Avx2::<false>::detected() {
            check.check::<Avx2<false>>("avx2");
        }
        if Avx2::<true>::detected() {
            check.check::<Avx2<true>>("avx2-vnni");
        }
        if Avx512::<false>::detected() {
            check.check::<Avx512<false>>("avx512");
        }
        if Avx512::<true>::detected() {
            check.check::<Avx512<true>>("avx512-bf16");
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use crate::cpu::kernels::neon::{BASE, DOTPROD, I8MM, Neon};
        check.check::<Neon<BASE>>("neon");
        if Neon::<DOTPROD>::detected() {
            check.check::<Neon<DOTPROD>>("neon-dotprod");
        }
        if Neon::<I8MM>::detected() {
            check.check::<Neon<I8MM>>("neon-i8mm");
        }
    }
    check.check::<Scalar>("scalar");
}

/// Bits without a pattern, the same each time.
fn noise(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) as u32 ^ (*seed >> 11) as u32
}

fn run<V: Vector, K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: only instantiated for vectors whose instruction set was detected, by `everywhere`.
    unsafe { V::call(kernel) }
}

/// A NaN's payload is nobody's business.
fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// Every operation on floats, of three vectors.
struct Floats<'a>([&'a [f32]; 3]);

impl Kernel for Floats<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Vec<u32> {
        let mut out = vec![];
        let mut lanes = [0.0f32; LANES];
        let mut halves = [0u16; LANES];
        // SAFETY: each slice has 16 values, and so have the arrays.
        unsafe {
            let [a, b, c] = self.0.map(|x| V::load(x.as_ptr()));
            let results = [
                V::add(a, b),
                V::sub(a, b),
                V::mul(a, b),
                V::div(a, b),
                V::abs(a),
                V::fma(a, b, c),
                V::max(a, b),
                V::min(a, b),
                V::neg(a),
                V::exp(a),
                V::from_bits(V::to_bits(a)),
                V::splat(V::reduce_sum(a)),
                V::splat(V::reduce_max(V::max(a, V::splat(-1e30)))),
            ];
            for x in results {
                V::store(lanes.as_mut_ptr(), x);
                out.extend(lanes.map(bits));
            }
            V::store_bf16(halves.as_mut_ptr(), a);
            out.extend(halves.map(|x| if x & 0x7fff > 0x7f80 { 0x7fc0 } else { u32::from(x) }));
            V::store(lanes.as_mut_ptr(), V::load_bf16(halves.as_ptr()));
            out.extend(lanes.map(bits));
            V::store_f16(halves.as_mut_ptr(), a);
            out.extend(halves.map(|x| if x & 0x7fff > 0x7c00 { 0x7e00 } else { u32::from(x) }));
            V::store(lanes.as_mut_ptr(), V::load_f16(halves.as_ptr()));
            out.extend(lanes.map(bits));
            halves =
                self.0[0][..LANES].iter().map(|x| x.to_bits() as u16).collect::<Vec<_>>().try_into().unwrap();
            V::store(lanes.as_mut_ptr(), V::load_f16(halves.as_ptr()));
            out.extend(lanes.map(bits));
        }
        out
    }
}

/// Values of every kind, at an address that is aligned to nothing more than a float.
fn floats() -> Vec<f32> {
    let mut seed = 7;
    let special =
        [0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-45, 3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let halfway =
        [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0, 65504.0, 65520.0, 1e-7, -104.5, 88.73];
    let mut x: Vec<f32> = special.into_iter().chain(halfway).collect();
    x.extend((0..2000).map(|_| f32::from_bits(noise(&mut seed))));
    x.extend((0..4000).map(|_| (noise(&mut seed) as f32 / 2f32.powi(31) - 1.0) * 100.0));
    x
}

#[test]
fn float_operations_agree_bit_for_bit() {
    struct Test(Vec<f32>);
    impl Check for Test {
        fn check<V: Vector>(&self, name: &str) {
            for at in 0..self.0.len() / 3 - LANES {
                let third = self.0.len() / 3;
                let x = [0, 1, 2].map(|i| &self.0[i * third + at..][..LANES]);
                assert_eq!(run::<V, _>(Floats(x)), run::<Scalar, _>(Floats(x)), "{name} at {at}: {x:?}");
            }
        }
    }
    everywhere(&Test(floats()));
}

/// Loads and stores of `n` values.
struct Partial<'a>(&'a [f32], &'a mut [f32], usize);

impl Kernel for Partial<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for at in (0..self.2).step_by(LANES) {
            let n = LANES.min(self.2 - at);
            // SAFETY: `at + n <= self.2`, the length of both slices.
            unsafe {
                let x = V::load_partial(self.0.as_ptr().add(at), n);
                assert_eq!(V::reduce_sum(x), self.0[at..at + n].iter().sum::<f32>());
                V::store_partial(self.1.as_mut_ptr().add(at), x, n);
                let halves: Vec<u16> =
                    self.0[at..at + n].iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
                let y = V::load_partial_f16(halves.as_ptr(), n);
                assert_eq!(V::reduce_sum(y), V::reduce_sum(x));
                let mut stored = [7u16; LANES];
                V::store_partial_f16(stored.as_mut_ptr(), x, n);
                assert_eq!((&stored[..n], &stored[n..]), (&halves[..], &[7; LANES][n..]));
            }
        }
    }
}

#[test]
fn partial_loads_and_stores_touch_what_they_say() {
    struct Test;
    impl Check for Test {
        fn check<V: Vector>(&self, name: &str) {
            // Small integers: every type holds them, and sums are exact in any order.
            let x: Vec<f32> = (0..300).map(|i| (i % 97) as f32 - 48.0).collect();
            for n in 0..=257 {
                for shift in [0, 1, 3] {
                    let mut y = vec![7.0; 300];
                    run::<V, _>(Partial(&x[shift..], &mut y[shift..], n));
                    assert_eq!(y[shift..shift + n], x[shift..shift + n], "{name} {n}");
                    assert!(y[..shift].iter().chain(&y[shift + n..]).all(|x| *x == 7.0), "{name} {n}");
                }
            }
        }
    }
    everywhere(&Test);
}

/// Every operation on integers, of two vectors and an accumulator.
struct Integers<'a>([&'a [u8]; 3]);

impl Kernel for Integers<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Vec<u32> {
        let mut out = vec![];
        let mut lanes = [0.0f32; LANES];
        // SAFETY: each slice has 64 bytes; shifts are below 32, table codes below 16, bytes in range.
        unsafe {
            let [a, b, c] = self.0.map(|x| V::load_i(x.as_ptr()));
            let low = V::and(a, V::splat_i(0x0f0f_0f0f));
            let small = V::and(a, V::splat_i(0x7f7f_7f7f));
            let table = std::array::from_fn(|i| (i * 37 + 5) as u8);
            let results = [
                V::add_i(a, b),
                V::sub_i(a, b),
                V::and(a, b),
                V::or(a, b),
                V::shl(a, 0),
                V::shl(a, 7),
                V::shr(a, 31),
                V::shr(a, 4),
                V::lookup(&table, low),
                V::dot_u8(c, a, b),
                V::dot_u7(c, small, b),
                V::shr_u8(a, 4),
                V::shr_u8(b, 7),
                V::to_bits(V::from_i32(a)),
            ];
            for x in results {
                V::store(lanes.as_mut_ptr(), V::from_bits(x));
                out.extend(lanes.map(f32::to_bits));
            }
            let mut bytes = [0i8; LANES];
            let byte = V::sub_i(V::and(a, V::splat_i(0xff)), V::splat_i(128));
            V::store_i8(bytes.as_mut_ptr(), byte);
            out.extend(bytes.map(|x| x as u32));
            V::store(lanes.as_mut_ptr(), V::from_i32(V::round(V::mul(V::from_i32(byte), V::splat(0.25)))));
            out.extend(lanes.map(f32::to_bits));
        }
        out
    }
}

#[test]
fn integer_operations_agree_bit_for_bit() {
    struct Test(Vec<u8>);
    impl Check for Test {
        fn check<V: Vector>(&self, name: &str) {
            for at in 0..=257 {
                let x = [0, 400, 800].map(|i| &self.0[i + at..][..64]);
                assert_eq!(run::<V, _>(Integers(x)), run::<Scalar, _>(Integers(x)), "{name} at {at}");
            }
        }
    }
    let mut seed = 3;
    everywhere(&Test((0..1200).map(|_| noise(&mut seed) as u8).collect()));
    // The products that saturate 16 bits if anything does.
    let extremes = [0u8, 255, 128, 127, 129, 1];
    everywhere(&Test((0..1200).map(|_| extremes[noise(&mut seed) as usize % 6]).collect()));
}

#[test]
fn dot_of_extremes_is_exact() {
    struct Test;
    impl Check for Test {
        fn check<V: Vector>(&self, name: &str) {
            for (w, x) in [(255u8, -128i8), (255, 127), (127, -128), (128, -127), (0, -128)] {
                let got = run::<V, _>(Integers([&[w; 64], &[x as u8; 64], &[0; 64]]))[9 * LANES];
                assert_eq!(got as i32, 4 * i32::from(w) * i32::from(x), "{name} {w} {x}");
            }
        }
    }
    everywhere(&Test);
}

struct Exp<'a>(&'a [f32; LANES]);

impl Kernel for Exp<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: both arrays have 16 values.
        unsafe { V::store(out.as_mut_ptr(), V::exp(V::load(self.0.as_ptr()))) }
        out
    }
}

#[test]
fn exp_is_within_two_ulp() {
    let mut x = -104.0f32;
    while x < 88.8 {
        let xs: [f32; LANES] = std::array::from_fn(|i| x + i as f32 * 0.000_37);
        for (x, got) in xs.iter().zip(run::<Scalar, _>(Exp(&xs))) {
            let want = f64::from(*x).exp();
            if want > f64::from(f32::MAX) {
                continue;
            }
            // An ulp of the result, or of the least normal below it.
            let ulp = f64::from(f32::from_bits((want as f32).max(f32::MIN_POSITIVE).to_bits() & 0xff80_0000))
                / 2f64.powi(23);
            assert!((f64::from(got) - want).abs() <= 2.0 * ulp, "exp({x}) = {got}, wanted {want}");
        }
        x += 0.0061;
    }
    let ends = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0, -200.0, 200.0, 1.0];
    let got = run::<Scalar, _>(Exp(&std::array::from_fn(|i| ends[i % 8])));
    assert_eq!(
        [got[0], got[1], got[3], got[4], got[5], got[6]],
        [0.0, f32::INFINITY, 1.0, 1.0, 0.0, f32::INFINITY]
    );
    assert!(got[2].is_nan() && (got[7] - std::f32::consts::E).abs() < 3e-7);
}

/// The dot product of bfloat16 pairs, of one vector.
struct Pairs<'a>(&'a [u8], &'a [u8]);

impl Kernel for Pairs<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: both slices have 64 bytes.
        unsafe {
            let dot = V::dot_bf16(V::splat(0.5), V::load_i(self.0.as_ptr()), V::load_i(self.1.as_ptr()));
            V::store(out.as_mut_ptr(), dot);
        }
        out
    }
}

#[test]
fn bf16_pairs_agree_within_an_ulp_of_the_terms() {
    struct Test(Vec<u8>);
    impl Check for Test {
        fn check<V: Vector>(&self, name: &str) {
            for at in 0..=257 {
                let (a, b) = (&self.0[2 * at..][..64], &self.0[2 * at + 600..][..64]);
                let (got, want) = (run::<V, _>(Pairs(a, b)), run::<Scalar, _>(Pairs(a, b)));
                for (got, want) in got.iter().zip(want) {
                    // Terms are below 1; the instruction and the default differ in where they round.
                    assert!((got - want).abs() <= 4.0 * f32::EPSILON, "{name}: {got} and {want}");
                }
            }
        }
    }
    let mut seed = 11;
    let values = (0..700).map(|_| half::bf16::from_f32(noise(&mut seed) as f32 / 2f32.powi(31) - 1.0));
    everywhere(&Test(values.flat_map(half::bf16::to_le_bytes).collect()));
}

/// Dot products of eight vectors of codes below `2^BITS` and the codes of `T` tokens; with half of the vectors, too.
struct Dots<'a, const BITS: u32, const T: usize>([&'a [u8]; 2]);

impl<const BITS: u32, const T: usize> Kernel for Dots<'_, BITS, T> {
    type Output = Vec<u32>;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Vec<u32> {
        let (mut lanes, mut out) = ([0.0f32; LANES], vec![]);
        // SAFETY: there are 8 vectors and 8 tokens of 32 bytes, none of them -128.
        unsafe {
            let mask = V::splat_i(i32::from_ne_bytes([(0xff >> (8 - BITS)) as u8; 4]));
            let mut w = [mask; 8];
            for (i, w) in w.iter_mut().enumerate() {
                *w = V::and(V::load_i(self.0[0].as_ptr().add(64 * i)), mask);
            }
            let x = self.0[1].as_ptr();
            let all: [V::I; T] = V::dots::<BITS, 8, T>(&w, x);
            let half: [V::I; T] = V::dots::<BITS, 4, T>(&[w[4], w[5], w[6], w[7]], x.add(16));
            for dot in all.into_iter().chain(half) {
                V::store(lanes.as_mut_ptr(), V::from_bits(dot));
                out.extend(lanes.map(f32::to_bits));
            }
        }
        out
    }
}

#[test]
fn dot_products_of_tokens_agree_bit_for_bit() {
    struct Test(Vec<u8>);
    impl Test {
        fn tokens<V: Vector, const BITS: u32>(&self, name: &str, [w, x]: [&[u8]; 2]) {
            let label = format!("{name}, {BITS} bits");
            assert_eq!(
                run::<V, _>(Dots::<BITS, 1>([w, x])),
                run::<Scalar, _>(Dots::<BITS, 1>([w, x])),
                "{label}"
            );
            assert_eq!(
                run::<V, _>(Dots::<BITS, 2>([w, x])),
                run::<Scalar, _>(Dots::<BITS, 2>([w, x])),
                "{label}"
            );
            assert_eq!(
                run::<V, _>(Dots::<BITS, 4>([w, x])),
                run::<Scalar, _>(Dots::<BITS, 4>([w, x])),
                "{label}"
            );
            assert_eq!(
                run::<V, _>(Dots::<BITS, 8>([w, x])),
                run::<Scalar, _>(Dots::<BITS, 8>([w, x])),
                "{label}"
            );
        }
    }
    impl Check for Test {
        fn check<V: Vector>(&self, name: &str) {
            // The greatest sums, then bytes of every kind at every address.
            let extremes = [[0xff, 0x81], [0xff, 0x7f], [0x00, 0x81], [0x00, 0x7f]];
            let mut pairs: Vec<[Vec<u8>; 2]> = extremes.map(|[w, x]| [vec![w; 512], vec![x; 256]]).into();
            pairs.extend((0..=257).map(|at| {
                let x = self.0[at + 512..][..256].iter().map(|x| if *x == 0x80 { 0x81 } else { *x });
                [self.0[at..][..512].to_vec(), x.collect()]
            }));
            for [w, x] in &pairs {
                self.tokens::<V, 2>(name, [w, x]);
                self.tokens::<V, 3>(name, [w, x]);
                self.tokens::<V, 4>(name, [w, x]);
                self.tokens::<V, 5>(name, [w, x]);
                self.tokens::<V, 6>(name, [w, x]);
                self.tokens::<V, 8>(name, [w, x]);
            }
        }
    }
    let mut seed = 11;
    everywhere(&Test((0..1100).map(|_| noise(&mut seed) as u8).collect()));
}
