//! Units of packed matrices as kernels read them: codes to integers or values, and the scales of their groups. How they lie
//! is `cpu/packed.rs`.

use std::marker::PhantomData;

use rillm_quant::FloatType;

use super::vector::{LANES, Vector};
use crate::cpu::packed::{Codes, E2M1_TABLE, Layout, Meta, SUB_SCALE_OFFSET, SUPER_UNITS, UNIT};

/// Quads of a unit.
pub(super) const QUADS: usize = UNIT / 4;

/// How the quads of a unit are read.
pub(super) trait Elements {
    /// Bytes of a unit.
    const BYTES: usize;
    /// Whether the values have scales.
    const SCALED: bool = true;
    /// Whether each half of a unit has its own scales.
    const HALVES: bool = false;
    /// Whether each unit has its own scales, under super-scales of the group.
    const SUPER: bool = false;

    /// Columns `4 i ..` of the unit at `w`, without scale and bias.
    ///
    /// # Safety
    /// Of [`Vector`]; `w` has a unit, `i < 8`.
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4];
}

/// Elements that are integers.
pub(super) trait Quants: Elements {
    /// Of which values are less than 2 to this.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only slabs ask"))]
    const BITS: u32;

    /// Quad `i` of the unit at `w`.
    ///
    /// # Safety
    /// Of [`Vector`]; `w` has a unit, `i < 8`.
    unsafe fn quad<V: Vector>(w: *const u8, i: usize) -> V::I;

    /// [`Vector::dots`] for codes of this width.
    ///
    /// # Safety
    /// Of [`Vector`]; at `x` are units of `T` tokens, or their second halves.
    unsafe fn dots<V: Vector, const N: usize, const T: usize>(quads: &[V::I; N], x: *const u8) -> [V::I; T];
}

/// Integers of `BITS` bits.
pub(super) struct Bits<const BITS: u32>;
/// Integers with scales for each half of a unit, or under super-scales, or both.
pub(super) struct Scaled<Q, const HALVES: bool, const SUPER: bool>(PhantomData<Q>);
pub(super) struct Fp4;
pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

/// Quad `i` of a plane of `bits` bits, moved to start at bit `to` of each byte.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Quants' contract, handed on")]
unsafe fn plane<V: Vector>(w: *const u8, bits: usize, i: usize, to: usize) -> V::I {
    let per_word = 8 / bits;
    let word = V::load_i(w.add(i / per_word * 64));
    let mask = i32::from_ne_bytes([(((1u32 << bits) - 1) << to) as u8; 4]);
    let at = bits * (i % per_word);
    if to == 0 && at > 0 && at + bits == 8 {
        return V::shr_u8(word, at as u32);
    }
    let moved = if at > to {
        V::shr(word, (at - to) as u32)
    } else if at < to {
        V::shl(word, (to - at) as u32)
    } else {
        word
    };
    if bits == 8 { moved } else { V::and(moved, V::splat_i(mask)) }
}

impl<const BITS: u32> Quants for Bits<BITS> {
    const BITS: u32 = BITS;

    #[inline(always)]
    unsafe fn dots<V: Vector, const N: usize, const T: usize>(quads: &[V::I; N], x: *const u8) -> [V::I; T] {
        // SAFETY: the same contract.
        unsafe { V::dots::<BITS, N, T>(quads, x) }
    }

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Quants' contract")]
    unsafe fn quad<V: Vector>(w: *const u8, i: usize) -> V::I {
        match BITS {
            3 => V::or(plane::<V>(w, 2, i, 0), plane::<V>(w.add(128), 1, i, 2)),
            5 => V::or(plane::<V>(w, 4, i, 0), plane::<V>(w.add(256), 1, i, 4)),
            6 => V::or(plane::<V>(w, 4, i, 0), plane::<V>(w.add(256), 2, i, 4)),
            bits => plane::<V>(w, bits as usize, i, 0),
        }
    }
}

impl<const BITS: u32> Elements for Bits<BITS> {
    const BYTES: usize = Codes::Bits(BITS).unit_bytes();

    #[inline(always)]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        // SAFETY: the same contract.
        unsafe { widen::<V>(Self::quad::<V>(w, i)) }
    }
}

impl Quants for Fp4 {
    const BITS: u32 = 5;

    #[inline(always)]
    unsafe fn dots<V: Vector, const N: usize, const T: usize>(quads: &[V::I; N], x: *const u8) -> [V::I; T] {
        // SAFETY: the same contract; the table's values are less than 32.
        unsafe { V::dots::<5, N, T>(quads, x) }
    }

    #[inline(always)]
    unsafe fn quad<V: Vector>(w: *const u8, i: usize) -> V::I {
        // SAFETY: the same contract; the plane gives codes below 16.
        unsafe { V::lookup(&E2M1_TABLE, plane::<V>(w, 4, i, 0)) }
    }
}

impl Elements for Fp4 {
    const BYTES: usize = Codes::E2M1.unit_bytes();

    #[inline(always)]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        // SAFETY: the same contract.
        unsafe { widen::<V>(Self::quad::<V>(w, i)) }
    }
}

impl<Q: Quants, const HALVES: bool, const SUPER: bool> Quants for Scaled<Q, HALVES, SUPER> {
    const BITS: u32 = Q::BITS;

    #[inline(always)]
    unsafe fn dots<V: Vector, const N: usize, const T: usize>(quads: &[V::I; N], x: *const u8) -> [V::I; T] {
        // SAFETY: the same contract.
        unsafe { Q::dots::<V, N, T>(quads, x) }
    }

    #[inline(always)]
    unsafe fn quad<V: Vector>(w: *const u8, i: usize) -> V::I {
        // SAFETY: the same contract.
        unsafe { Q::quad::<V>(w, i) }
    }
}

impl<Q: Quants, const HALVES: bool, const SUPER: bool> Elements for Scaled<Q, HALVES, SUPER> {
    const BYTES: usize = Q::BYTES;
    const HALVES: bool = HALVES;
    const SUPER: bool = SUPER;

    #[inline(always)]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        // SAFETY: the same contract.
        unsafe { Q::values::<V>(w, i) }
    }
}

/// The four bytes of each lane as floats.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn widen<V: Vector>(quad: V::I) -> [V::F; 4] {
    let mask = V::splat_i(0xff);
    [
        V::from_i32(V::and(quad, mask)),
        V::from_i32(V::and(V::shr(quad, 8), mask)),
        V::from_i32(V::and(V::shr(quad, 16), mask)),
        V::from_i32(V::shr(quad, 24)),
    ]
}

impl Elements for F32 {
    const BYTES: usize = UNIT * LANES * 4;
    const SCALED: bool = false;

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Elements' contract")]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        let p = w.cast::<f32>().add(i * 4 * LANES);
        [V::load(p), V::load(p.add(LANES)), V::load(p.add(2 * LANES)), V::load(p.add(3 * LANES))]
    }
}

impl Elements for F16 {
    const BYTES: usize = UNIT * LANES * 2;
    const SCALED: bool = false;

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Elements' contract")]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        let p = w.cast::<u16>().add(i * 4 * LANES);
        let [a, b, c, d] = [p, p.add(LANES), p.add(2 * LANES), p.add(3 * LANES)];
        [V::load_f16(a), V::load_f16(b), V::load_f16(c), V::load_f16(d)]
    }
}

impl Elements for Bf16 {
    const BYTES: usize = UNIT * LANES * 2;
    const SCALED: bool = false;

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Elements' contract")]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        let [a, b] = [V::load_i(w.add(i * 128)), V::load_i(w.add(i * 128 + 64))];
        let high = V::splat_i(0xffff_0000_u32 as i32);
        [
            V::from_bits(V::shl(a, 16)),
            V::from_bits(V::and(a, high)),
            V::from_bits(V::shl(b, 16)),
            V::from_bits(V::and(b, high)),
        ]
    }
}

/// Floats as scales are stored.
pub(super) trait Float {
    const BYTES: usize;

    /// 16 of them.
    ///
    /// # Safety
    /// Of [`Vector`].
    unsafe fn load<V: Vector>(w: *const u8) -> V::F;
}

impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Vector>(w: *const u8) -> V::F {
        // SAFETY: the same contract.
        unsafe { V::load(w.cast()) }
    }
}

impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(w: *const u8) -> V::F {
        // SAFETY: the same contract.
        unsafe { V::load_f16(w.cast()) }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(w: *const u8) -> V::F {
        // SAFETY: the same contract.
        unsafe { V::load_bf16(w.cast()) }
    }
}

/// 16 floats of type `t`.
#[inline(always)]
unsafe fn stored<V: Vector>(t: FloatType, w: *const u8) -> V::F {
    // SAFETY: the contract of `Float`.
    unsafe {
        match t {
            FloatType::F32 => F32::load::<V>(w),
            FloatType::F16 => F16::load::<V>(w),
            FloatType::BF16 => Bf16::load::<V>(w),
        }
    }
}

/// What is stored for a group that is no smaller than a unit: what [`scales`] finds out of the layout each time.
pub(super) trait Group {
    const BYTES: usize;

    /// Scale and bias.
    ///
    /// # Safety
    /// Of [`Vector`]; at `w` is what is stored for a group.
    unsafe fn load<V: Vector>(w: *const u8, layout: &Layout) -> [V::F; 2];
}

/// A scale and a bias.
pub(super) struct Affine<T>(PhantomData<T>);
/// A scale; a code means zero.
pub(super) struct Symmetric<T>(PhantomData<T>);

impl<T: Float> Group for Affine<T> {
    const BYTES: usize = 2 * LANES * T::BYTES;

    #[inline(always)]
    unsafe fn load<V: Vector>(w: *const u8, _: &Layout) -> [V::F; 2] {
        // SAFETY: the same contract.
        unsafe { [T::load::<V>(w), T::load::<V>(w.add(LANES * T::BYTES))] }
    }
}

impl<T: Float> Group for Symmetric<T> {
    const BYTES: usize = LANES * T::BYTES;

    #[inline(always)]
    unsafe fn load<V: Vector>(w: *const u8, layout: &Layout) -> [V::F; 2] {
        // SAFETY: the same contract.
        unsafe {
            let scale = T::load::<V>(w);
            [scale, V::mul(scale, V::splat(-layout.zero.unwrap_or(0.0)))]
        }
    }
}

/// Something for any groups.
pub(super) trait WithGroup {
    /// For these.
    fn with<G: Group>(self);
    /// For any others: smaller ones, those with factors, and what no format stores.
    fn without(self);
}

/// Calls `f` with the groups of `layout`.
pub(super) fn of_groups(layout: &Layout, f: impl WithGroup) {
    use FloatType::{BF16, F16 as HALF, F32 as SINGLE};
    if layout.group < UNIT || layout.factor != 1.0 {
        return f.without();
    }
    match (layout.meta, layout.zero) {
        (Meta::Float(SINGLE), None) => f.with::<Affine<F32>>(),
        (Meta::Float(HALF), None) => f.with::<Affine<F16>>(),
        (Meta::Float(BF16), None) => f.with::<Affine<Bf16>>(),
        (Meta::Float(HALF), Some(_)) => f.with::<Symmetric<F16>>(),
        (Meta::Float(BF16), Some(_)) => f.with::<Symmetric<Bf16>>(),
        (Meta::Super, _) | (Meta::Float(SINGLE), Some(_)) => f.without(),
    }
}

/// Scales of a unit, for each half of it.
#[derive(Clone, Copy)]
pub(super) struct Scales<V: Vector> {
    pub scale: [V::F; 2],
    pub bias: [V::F; 2],
}

/// The scales of unit `unit` of the group whose scales are at `w`, if the elements have some. The bias of a constant
/// zero point is `-zero * scale`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract; `w` has the scales that the layout says")]
pub(super) unsafe fn scales<V: Vector, E: Elements>(w: *const u8, layout: &Layout, unit: usize) -> Scales<V> {
    let mut out = Scales { scale: [V::splat(1.0); 2], bias: [V::splat(0.0); 2] };
    let t = match layout.meta {
        Meta::Super if E::SUPER => return sub_scales::<V, E>(w, layout, unit),
        Meta::Float(t) if E::SCALED => t,
        _ => return out,
    };
    let width = LANES * t.bytes();
    let factor = V::splat(layout.factor);
    let mut w = w;
    for half in 0..if E::HALVES { 2 } else { 1 } {
        out.scale[half] = V::mul(stored::<V>(t, w), factor);
        w = w.add(width);
        out.bias[half] = match layout.zero {
            Some(zero) => V::mul(out.scale[half], V::splat(-zero)),
            None => {
                let stored = V::mul(stored::<V>(t, w), factor);
                w = w.add(width);
                stored
            }
        };
    }
    if !E::HALVES {
        out = Scales { scale: [out.scale[0]; 2], bias: [out.bias[0]; 2] };
    }
    out
}

/// [`scales`] under super-scales. Half floats times integers of 8 bits are exact in `f32`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract; `w` has the scales that the layout says")]
unsafe fn sub_scales<V: Vector, E: Elements>(w: *const u8, layout: &Layout, unit: usize) -> Scales<V> {
    let groups = if E::HALVES { 2 } else { 1 };
    let d = V::load_f16(w.cast());
    let mut words = w.add(LANES * if layout.zero.is_some() { 2 } else { 4 });
    let mut out = Scales { scale: [d; 2], bias: [d; 2] };
    for half in 0..2 {
        let s = V::from_i32(sub_scale::<V>(words, unit * groups + half % groups));
        out.scale[half] = V::mul(d, V::sub(s, V::splat(SUB_SCALE_OFFSET)));
    }
    match layout.zero {
        Some(zero) => {
            for (bias, scale) in out.bias.iter_mut().zip(out.scale) {
                *bias = V::mul(scale, V::splat(-zero));
            }
        }
        None => {
            words = words.add(SUPER_UNITS * groups * LANES);
            let min = V::load_f16(w.cast::<u16>().add(LANES));
            for half in 0..2 {
                let m = V::from_i32(sub_scale::<V>(words, unit * groups + half % groups));
                out.bias[half] = V::neg(V::mul(min, m));
            }
        }
    }
    out
}

/// Byte `i` of each row's.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn sub_scale<V: Vector>(words: *const u8, i: usize) -> V::I {
    let word = V::load_i(words.add(i / 4 * 4 * LANES));
    V::and(V::shr(word, (i % 4 * 8) as u32), V::splat_i(0xff))
}

/// The quads of the unit at `w`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Int8's contract, handed on")]
pub(super) unsafe fn quads<V: Vector, Q: Quants>(w: *const u8) -> [V::I; QUADS] {
    let mut quads = [V::splat_i(0); QUADS];
    for (i, quad) in quads.iter_mut().enumerate() {
        *quad = Q::quad::<V>(w, i);
    }
    quads
}

/// Something for any integers.
pub(super) trait WithQuants {
    /// For these.
    fn with<Q: Quants>(self);
}

/// Calls `f` with the integers of `layout`, which has some.
pub(super) fn of_quants(layout: &Layout, f: impl WithQuants) {
    let halves = layout.group < UNIT;
    match layout.codes {
        Codes::Float(_) => unreachable!("floats are no integers"),
        Codes::E2M1 if halves => f.with::<Scaled<Fp4, true, false>>(),
        Codes::E2M1 => f.with::<Fp4>(),
        Codes::Bits(4) if layout.meta == Meta::Super => f.with::<Scaled<Bits<4>, false, true>>(),
        Codes::Bits(5) if layout.meta == Meta::Super => f.with::<Scaled<Bits<5>, false, true>>(),
        Codes::Bits(6) if layout.meta == Meta::Super => f.with::<Scaled<Bits<6>, true, true>>(),
        Codes::Bits(2) => f.with::<Bits<2>>(),
        Codes::Bits(3) => f.with::<Bits<3>>(),
        Codes::Bits(4) => f.with::<Bits<4>>(),
        Codes::Bits(5) => f.with::<Bits<5>>(),
        Codes::Bits(6) => f.with::<Bits<6>>(),
        Codes::Bits(_) => f.with::<Bits<8>>(),
    }
}
