//! Blocks of 16 rows of a packed matrix times the tokens of panels. Which blocks, tokens and threads is
//! `cpu/matmul.rs`; what packed means is `cpu/packed.rs`.
//!
//! Every output is the sum over columns in an order that depends on the columns alone: tokens of a panel do not meet.

use std::marker::PhantomData;

use rillm_quant::FloatType;

use super::panel::{INT8_BYTES, Panel};
use super::unit::{
    Bf16, Elements, F16, F32, Group, QUADS, Quants, Scales, WithGroup, WithQuants, of_groups, of_quants,
    quads, scales,
};
use super::vector::{Kernel, LANES, Vector, is_wide};
use crate::cpu::packed::{Codes, Layout, UNIT};

/// Tokens of the largest panel.
pub(crate) const MAX_TOKENS: usize = 8;
/// Tokens of the largest slab, two panels.
pub(crate) const SLAB_TOKENS: usize = 2 * MAX_TOKENS;

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
                    let scales =
                        if Q::SUPER { super::unit::scales::<V, Q>(start, layout, u) } else { scales };
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

/// [`Int8`] of one token, for all blocks of a tile: scales are loaded when they are needed, by instructions that are known
/// beforehand.
struct Alone<'a, Q, G> {
    tile: Tile<'a>,
    kinds: PhantomData<(Q, G)>,
}

impl<Q: Quants, G: Group> Kernel for Alone<'_, Q, G> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "`multiply` has checked the tile for these elements")]
    unsafe fn run<V: Vector>(self) {
        let Tile { blocks, layout, x: token, out, .. } = self.tile;
        let group_units = layout.group_units();
        for (block, out) in blocks.chunks_exact(layout.block_bytes()).zip(out) {
            let (mut w, mut x) = (block.as_ptr(), token.as_ptr());
            let mut acc = [V::splat(0.0)];
            for _ in 0..layout.units / group_units {
                let group = w;
                w = w.add(G::BYTES);
                if group_units == 1 || !is_wide::<V>() {
                    for _ in 0..group_units {
                        ask_ahead::<V, Q>(w);
                        let [dot] = Q::dots::<V, _, 1>(&quads::<V, Q>(w), x);
                        let [scale, bias] = G::load::<V>(group, layout);
                        let [factor, sum] = x.add(UNIT).cast::<[f32; 2]>().read_unaligned();
                        acc[0] = V::fma(V::mul(scale, V::splat(factor)), V::from_i32(dot), acc[0]);
                        acc[0] = V::fma(bias, V::splat(sum), acc[0]);
                        w = w.add(Q::BYTES);
                        x = x.add(INT8_BYTES);
                    }
                } else {
                    let [scale, bias] = G::load::<V>(group, layout);
                    let mut part = [V::splat(0.0)];
                    for _ in 0..group_units {
                        shared_unit::<V, Q, 1>([w, x], bias, &mut acc, &mut part);
                        w = w.add(Q::BYTES);
                        x = x.add(INT8_BYTES);
                    }
                    acc[0] = V::fma(scale, part[0], acc[0]);
                }
            }
            V::store(out.as_mut_ptr(), acc[0]);
        }
    }
}

/// Chooses [`Alone`] for the groups of a tile, or [`Int8`] block by block.
struct OfToken<'a, V, Q>(Tile<'a>, PhantomData<(V, Q)>);

impl<V: Vector, Q: Quants> WithGroup for OfToken<'_, V, Q> {
    fn with<G: Group>(self) {
        // SAFETY: the table was handed out after detection; `multiply` has checked sizes for these elements.
        unsafe { V::call(Alone::<Q, G> { tile: self.0, kinds: PhantomData }) }
    }

    fn without(self) {
        // SAFETY: as above.
        unsafe { each::<V, Int8<Q>, 1>(self.0) }
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
                scales = super::unit::scales::<V, E>(start, layout, u);
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
    if tile.slots == 1 {
        if Q::HALVES || Q::SUPER {
            return OfToken::<V, Q>(tile, PhantomData).without();
        }
        let layout = tile.layout;
        return of_groups(layout, OfToken::<V, Q>(tile, PhantomData));
    }
    // SAFETY: the table was handed out after detection; `multiply` has checked sizes for these elements.
    unsafe {
        match tile.slots {
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
