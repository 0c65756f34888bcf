//! Blocks of 16 rows of a packed matrix times the tokens of panels. Which blocks, tokens and threads is
//! `cpu/matmul.rs`; what packed means is `cpu/packed.rs`.
//!
//! Every output is the sum over columns in an order that depends on the columns alone: tokens of a panel do not meet.

use std::marker::PhantomData;

use rillm_quant::FloatType;

use super::panel::{INT8_BYTES, Panel};
use super::vector::{Kernel, LANES, Vector, is_wide};
use crate::cpu::packed::{Codes, E2M1_TABLE, Layout, Meta, SUB_SCALE_OFFSET, SUPER_UNITS, UNIT};

/// Tokens of the largest panel.
pub(crate) const MAX_TOKENS: usize = 8;
/// Tokens of the largest slab, two panels.
pub(crate) const SLAB_TOKENS: usize = 2 * MAX_TOKENS;

/// Quads of a unit.
pub(super) const QUADS: usize = UNIT / 4;
/// How far ahead of the codes in use memory is asked for.
const AHEAD: usize = 4096;

/// Some blocks and some panels, each end to end.
pub(crate) struct Tile<'a> {
    /// The blocks' bytes.
    pub blocks: &'a [u8],
    /// How they lie.
    pub layout: &'a Layout,
    /// Form of `x`.
    pub panel: Panel,
    /// Tokens of a panel: 1, 2, 4 or, for int8, 8. For slabs those of all panels, 8 or 16.
    pub slots: usize,
    /// The panels.
    pub x: &'a [u8],
    /// Results: block by block, 16 for each token.
    pub out: &'a mut [[f32; LANES]],
}

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
/// [`Bits`] with scales for each half of a unit.
pub(super) struct Halves<Q>(PhantomData<Q>);
/// [`Bits`] or [`Halves`] under super-scales.
pub(super) struct Super<Q>(PhantomData<Q>);
pub(super) struct Fp4;
struct F32;
struct F16;
struct Bf16;

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

impl<Q: Quants> Quants for Halves<Q> {
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

impl<Q: Quants> Elements for Halves<Q> {
    const BYTES: usize = Q::BYTES;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn values<V: Vector>(w: *const u8, i: usize) -> [V::F; 4] {
        // SAFETY: the same contract.
        unsafe { Q::values::<V>(w, i) }
    }
}

impl<Q: Quants> Quants for Super<Q> {
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

impl<Q: Quants> Elements for Super<Q> {
    const BYTES: usize = Q::BYTES;
    const HALVES: bool = Q::HALVES;
    const SUPER: bool = true;

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
        out.scale[half] = V::mul(meta::<V>(t, w), factor);
        w = w.add(width);
        out.bias[half] = match layout.zero {
            Some(zero) => V::mul(out.scale[half], V::splat(-zero)),
            None => {
                let stored = V::mul(meta::<V>(t, w), factor);
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

/// 16 scales of type `t`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn meta<V: Vector>(t: FloatType, w: *const u8) -> V::F {
    match t {
        FloatType::F32 => V::load(w.cast()),
        FloatType::F16 => V::load_f16(w.cast()),
        FloatType::BF16 => V::load_bf16(w.cast()),
    }
}

/// How a block and a panel of `T` tokens are multiplied.
trait Product {
    /// The 16 results of each token.
    ///
    /// # Safety
    /// Of [`Vector`]; at `block` is one of `layout`, at `x` a panel.
    unsafe fn of<V: Vector, const T: usize>(block: *const u8, layout: &Layout, x: *const u8) -> [V::F; T];
}

/// One block and one panel, as [`Product::of`] wants them.
struct One<'a, P, const T: usize> {
    block: *const u8,
    layout: &'a Layout,
    x: *const u8,
    out: &'a mut [[f32; LANES]; T],
    product: PhantomData<P>,
}

impl<P: Product, const T: usize> Kernel for One<'_, P, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: this kernel's own contract.
        unsafe {
            let sums = P::of::<V, T>(self.block, self.layout, self.x);
            for (out, sum) in self.out.iter_mut().zip(sums) {
                V::store(out.as_mut_ptr(), sum);
            }
        }
    }
}

/// Every block with every panel of `T` tokens, one at a time: a loop around them inside of the kernel would take
/// registers from it.
///
/// # Safety
/// Of [`Vector::call`]; [`multiply`] has checked the tile for these elements.
unsafe fn each<V: Vector, P: Product, const T: usize>(tile: Tile<'_>) {
    let Tile { blocks, layout, panel, x, out, .. } = tile;
    let panel_bytes = layout.units * T * panel.unit_bytes();
    let mut results = out.as_chunks_mut::<T>().0.iter_mut();
    for block in blocks.chunks_exact(layout.block_bytes()) {
        for (x, out) in x.chunks_exact(panel_bytes).zip(&mut results) {
            // SAFETY: this function's contract.
            unsafe {
                V::call(One::<P, T> {
                    block: block.as_ptr(),
                    layout,
                    x: x.as_ptr(),
                    out,
                    product: PhantomData,
                });
            }
        }
    }
}

/// Integer dot products: `scale_w scale_x (codes . q) + bias_w sum_x` for each group.
struct Int8<Q>(PhantomData<Q>);

impl<Q: Quants> Product for Int8<Q> {
    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Product's contract: sizes are those of the layout")]
    unsafe fn of<V: Vector, const T: usize>(block: *const u8, layout: &Layout, x: *const u8) -> [V::F; T] {
        let (meta_bytes, group_units) = (layout.meta_bytes(), layout.group_units());
        let mut acc = [V::splat(0.0); T];
        let (mut w, mut x) = (block, x);
        for _ in 0..layout.units / group_units {
            let start = w;
            let scales = scales::<V, Q>(start, layout, 0);
            w = w.add(meta_bytes);
            // Where registers are few, sums that wait for the group's scale would go through memory like all others of a
            // token.
            if Q::SUPER || group_units == 1 || !is_wide::<V>() {
                for u in 0..group_units {
                    let scales = if Q::SUPER { self::scales::<V, Q>(start, layout, u) } else { scales };
                    scaled_unit::<V, Q, T>([w, x], &scales, &mut acc);
                    w = w.add(Q::BYTES);
                    x = x.add(T * INT8_BYTES);
                }
            } else {
                // What waits for the scale of the group.
                let mut part = [V::splat(0.0); T];
                for _ in 0..group_units {
                    shared_unit::<V, Q, T>([w, x], scales.bias[0], &mut acc, &mut part);
                    w = w.add(Q::BYTES);
                    x = x.add(T * INT8_BYTES);
                }
                for (acc, part) in acc.iter_mut().zip(part) {
                    *acc = V::fma(scales.scale[0], part, *acc);
                }
            }
        }
        acc
    }
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

/// Asks for the unit that is read some units later.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract; a prefetch may ask for any address")]
unsafe fn ask_ahead<V: Vector, Q: Quants>(w: *const u8) {
    for line in (0..Q::BYTES).step_by(64) {
        V::prefetch(w.wrapping_add(AHEAD + line));
    }
}

/// Adds a unit at `w`, which has scales of its own, times the unit of `T` tokens at `x` to `acc`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Int8's contract, handed on")]
unsafe fn scaled_unit<V: Vector, Q: Quants, const T: usize>(
    [w, x]: [*const u8; 2],
    scales: &Scales<V>,
    acc: &mut [V::F; T],
) {
    ask_ahead::<V, Q>(w);
    let quads = quads::<V, Q>(w);
    let floats = x.add(T * UNIT).cast::<f32>();
    if Q::HALVES {
        for (half, quads) in quads.as_chunks::<{ QUADS / 2 }>().0.iter().enumerate() {
            let dots: [V::I; T] = Q::dots::<V, _, T>(quads, x.add(half * UNIT / 2));
            for (t, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
                let scale = V::splat(floats.add(t).read_unaligned());
                let sum = V::splat(floats.add((2 + half) * T + t).read_unaligned());
                *acc = V::fma(V::mul(scales.scale[half], scale), V::from_i32(dot), *acc);
                *acc = V::fma(scales.bias[half], sum, *acc);
            }
        }
    } else {
        let dots: [V::I; T] = Q::dots::<V, _, T>(&quads, x);
        for (t, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
            let scale = V::splat(floats.add(t).read_unaligned());
            let sum = V::splat(floats.add(T + t).read_unaligned());
            *acc = V::fma(V::mul(scales.scale[0], scale), V::from_i32(dot), *acc);
            *acc = V::fma(scales.bias[0], sum, *acc);
        }
    }
}

/// Adds a unit at `w` times the unit of `T` tokens at `x`: what awaits the group's scale to `part`, the rest to `acc`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Int8's contract, handed on")]
unsafe fn shared_unit<V: Vector, Q: Quants, const T: usize>(
    [w, x]: [*const u8; 2],
    bias: V::F,
    acc: &mut [V::F; T],
    part: &mut [V::F; T],
) {
    ask_ahead::<V, Q>(w);
    let quads = quads::<V, Q>(w);
    let floats = x.add(T * UNIT).cast::<f32>();
    let dots: [V::I; T] = Q::dots::<V, _, T>(&quads, x);
    for (t, dot) in dots.into_iter().enumerate() {
        let scale = V::splat(floats.add(t).read_unaligned());
        let sum = V::splat(floats.add(T + t).read_unaligned());
        part[t] = V::fma(V::from_i32(dot), scale, part[t]);
        acc[t] = V::fma(bias, sum, acc[t]);
    }
}

/// Products of `f32` activations and the weights' exact values.
struct Exact<E>(PhantomData<E>);

impl<E: Elements> Product for Exact<E> {
    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Product's contract: sizes are those of the layout")]
    unsafe fn of<V: Vector, const T: usize>(block: *const u8, layout: &Layout, x: *const u8) -> [V::F; T] {
        let x = x.cast::<f32>();
        if is_wide::<V>() || E::SCALED {
            return exact_sums::<V, E, T>(block, layout, x, T);
        }
        // The sums of all tokens would go through memory; plain values are widened again in less time.
        let mut sums = [V::splat(0.0); T];
        for (t, sum) in sums.iter_mut().enumerate() {
            [*sum] = exact_sums::<V, E, 1>(block, layout, x.add(t), T);
        }
        sums
    }
}

/// The results of `N` of the `slots` tokens of a panel, the first of them at `x`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Product's contract, handed on")]
unsafe fn exact_sums<V: Vector, E: Elements, const N: usize>(
    block: *const u8,
    layout: &Layout,
    x: *const f32,
    slots: usize,
) -> [V::F; N] {
    let (meta_bytes, group_units) = (layout.meta_bytes(), layout.group_units());
    let zero = V::splat(layout.zero.unwrap_or(0.0));
    let mut acc = [[V::splat(0.0); 4]; N];
    let (mut w, mut x) = (block, x);
    for _ in 0..layout.units / group_units {
        let start = w;
        let mut scales = scales::<V, E>(start, layout, 0);
        w = w.add(meta_bytes);
        for u in 0..group_units {
            if E::SUPER {
                scales = self::scales::<V, E>(start, layout, u);
            }
            if layout.zero.is_some() {
                // Subtracted from the codes instead, which rounds once.
                scales.bias = [V::splat(0.0); 2];
            }
            for i in 0..QUADS {
                let [scale, bias] = [scales.scale[i / (QUADS / 2)], scales.bias[i / (QUADS / 2)]];
                let values = E::values::<V>(w, i);
                for j in 0..4 {
                    let value = if E::SCALED {
                        V::add(V::mul(scale, V::sub(values[j], zero)), bias)
                    } else {
                        values[j]
                    };
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let x = V::splat(x.add((i * 4 + j) * slots + t).read_unaligned());
                        acc[j] = V::fma(value, x, acc[j]);
                    }
                }
            }
            for line in 0..E::BYTES / 64 {
                V::prefetch(w.wrapping_add(AHEAD + line * 64));
            }
            w = w.add(E::BYTES);
            x = x.add(slots * UNIT);
        }
    }
    sums_of_four::<V, N>(acc)
}

#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract, handed on")]
unsafe fn sums_of_four<V: Vector, const T: usize>(parts: [[V::F; 4]; T]) -> [V::F; T] {
    let mut sums = [V::splat(0.0); T];
    for (sum, parts) in sums.iter_mut().zip(parts) {
        *sum = V::add(V::add(parts[0], parts[1]), V::add(parts[2], parts[3]));
    }
    sums
}

/// Products of bfloat16 pairs.
struct Pairs;

impl Product for Pairs {
    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "Product's contract: sizes are those of a bf16 layout")]
    unsafe fn of<V: Vector, const T: usize>(block: *const u8, layout: &Layout, x: *const u8) -> [V::F; T] {
        let mut acc = [[V::splat(0.0); 4]; T];
        let (mut w, mut x) = (block, x.cast::<i32>());
        for _ in 0..layout.units * UNIT / 8 {
            for j in 0..4 {
                let pair = V::load_i(w.add(j * 64));
                V::prefetch(w.wrapping_add(AHEAD + j * 64));
                for (t, acc) in acc.iter_mut().enumerate() {
                    acc[j] = V::dot_bf16(acc[j], pair, V::splat_i(x.add(j * T + t).read_unaligned()));
                }
            }
            w = w.add(4 * 64);
            x = x.add(4 * T);
        }
        sums_of_four::<V, T>(acc)
    }
}

/// Multiplies a tile.
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn multiply<V: Vector>(tile: Tile<'_>) {
    let Layout { codes, units, .. } = *tile.layout;
    let [block_bytes, panel_bytes] =
        [tile.layout.block_bytes(), units * tile.slots * tile.panel.unit_bytes()];
    if block_bytes == 0 {
        return tile.out.fill([0.0; LANES]);
    }
    let results = (tile.blocks.len() / block_bytes) * (tile.x.len() / panel_bytes) * tile.slots;
    assert_eq!(tile.out.len(), results, "a tile has whole blocks and panels");
    match (tile.panel, codes) {
        (Panel::Bf16, Codes::Float(FloatType::BF16)) => few::<V, Pairs>(tile),
        (Panel::Tiles, _) => unreachable!("tiles have their own kernel"),
        (_, Codes::Float(FloatType::F32)) => exact::<V, F32>(tile),
        (_, Codes::Float(FloatType::F16)) => exact::<V, F16>(tile),
        (_, Codes::Float(FloatType::BF16)) => exact::<V, Bf16>(tile),
        _ => {
            let layout = tile.layout;
            of_quants(layout, Multiply::<V>(tile, PhantomData));
        }
    }
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
        Codes::E2M1 if halves => f.with::<Halves<Fp4>>(),
        Codes::E2M1 => f.with::<Fp4>(),
        Codes::Bits(4) if layout.meta == Meta::Super => f.with::<Super<Bits<4>>>(),
        Codes::Bits(5) if layout.meta == Meta::Super => f.with::<Super<Bits<5>>>(),
        Codes::Bits(6) if layout.meta == Meta::Super => f.with::<Super<Halves<Bits<6>>>>(),
        Codes::Bits(2) => f.with::<Bits<2>>(),
        Codes::Bits(3) => f.with::<Bits<3>>(),
        Codes::Bits(4) => f.with::<Bits<4>>(),
        Codes::Bits(5) => f.with::<Bits<5>>(),
        Codes::Bits(6) => f.with::<Bits<6>>(),
        Codes::Bits(_) => f.with::<Bits<8>>(),
    }
}

struct Multiply<'a, V>(Tile<'a>, PhantomData<V>);

impl<V: Vector> WithQuants for Multiply<'_, V> {
    fn with<Q: Quants>(self) {
        quants::<V, Q>(self.0);
    }
}

/// [`multiply`] for integers.
fn quants<V: Vector, Q: Quants>(tile: Tile<'_>) {
    if tile.panel == Panel::F32 {
        return exact::<V, Q>(tile);
    }
    assert_eq!(tile.panel, Panel::Int8, "integers meet integers");
    // SAFETY: the table was handed out after detection; `multiply` has checked sizes for these elements.
    unsafe {
        match tile.slots {
            1 => each::<V, Int8<Q>, 1>(tile),
            2 => each::<V, Int8<Q>, 2>(tile),
            4 => each::<V, Int8<Q>, 4>(tile),
            8 => each::<V, Int8<Q>, 8>(tile),
            n => unreachable!("no tile of {n} tokens"),
        }
    }
}

/// [`multiply`] with exact values.
fn exact<V: Vector, E: Elements>(tile: Tile<'_>) {
    assert_eq!(tile.panel, Panel::F32, "floats meet floats");
    few::<V, Exact<E>>(tile);
}

/// [`multiply`] for panels of up to 4 tokens.
fn few<V: Vector, P: Product>(tile: Tile<'_>) {
    // SAFETY: the table was handed out after detection; `multiply` has checked sizes for these elements.
    unsafe {
        match tile.slots {
            1 => each::<V, P, 1>(tile),
            2 => each::<V, P, 2>(tile),
            4 => each::<V, P, 4>(tile),
            n => unreachable!("no tile of {n} tokens"),
        }
    }
}
