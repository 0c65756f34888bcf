//! A tile whose products go through tile registers, with sums in f32. Weights are rounded to bfloat16; queries, keys and
//! values are the sum of two bfloat16 each, which keeps a half float's bits: tile registers are so much faster than the
//! exponentials beside them that this costs little. Rows are lanes, as in `columns`; sums of values are columns too
//! until a chunk ends.
//!
//! Scores `[key, row]` are keys `[key, dim]` times queries in pairs of dimensions; values `[dim, row]` are values
//! `[dim, key]` times weights in pairs of keys.

use super::{BLOCK, Scoring, Seen, Tile, columns::SoftmaxColumns};
use crate::cpu::kernels::tiles::{Strips, TILE};
use crate::cpu::kernels::vector::{Kernel, LANES, Vector};

/// Columns of one step of a product.
const STEP: usize = 32;

/// What a tile has besides, all in bfloat16 but `o`.
#[derive(Debug, Default)]
pub(super) struct Bf16<'a> {
    /// Queries rounded, and what rounding took: for each 16 rows and each 32 dimensions a tile of pairs of dimensions.
    pub(super) q: &'a mut [u16],
    /// `[2 * BLOCK, width of a key]`: keys rounded, and what rounding took.
    pub(super) k: &'a mut [u16],
    /// `[2 * v_width, BLOCK]`: values rounded, and what rounding took.
    pub(super) v: &'a mut [u16],
    /// Weights: for each 16 rows and each 32 keys a tile of pairs of keys.
    pub(super) p: &'a mut [u16],
    /// `[v_width, lanes]`, in f32.
    pub(super) o: &'a mut [f32],
}

/// Values of a key, padded to whole steps.
pub(super) const fn key_width(width: usize) -> usize {
    width.next_multiple_of(STEP)
}

/// Floats that `Bf16` takes for `lanes` rows and keys and values of so many values.
pub(super) const fn floats(lanes: usize, [width, v_width]: [usize; 2]) -> usize {
    (2 * lanes * key_width(width) + 2 * BLOCK * key_width(width) + 2 * v_width * BLOCK + lanes * BLOCK) / 2
        + v_width * lanes
}

impl<'a> Bf16<'a> {
    /// Zeros in `memory`, which has [`floats`].
    pub(super) fn new(memory: &'a mut [f32], lanes: usize, [width, v_width]: [usize; 2]) -> Self {
        let (o, memory) = memory.split_at_mut(v_width * lanes);
        memory.fill(0.0);
        // SAFETY: halves of floats, of which any bits are valid, aligned to more than two bytes.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u16>(), 2 * memory.len()) };
        let (q, memory) = memory.split_at_mut(2 * lanes * key_width(width));
        let (k, memory) = memory.split_at_mut(2 * BLOCK * key_width(width));
        let (v, p) = memory.split_at_mut(2 * v_width * BLOCK);
        Self { q, k, v, p, o }
    }
}

/// [`block`](super::Attention::block) of a tiled tile.
pub(super) fn block<V: Vector>(
    tile: &mut Tile<'_>,
    seen: &[Seen],
    scoring: Scoring,
    keys: [usize; 2],
    multiply: fn(Strips<'_>),
) {
    let (lanes, width) = (tile.lanes(), tile.v_width);
    let key_row = key_width(tile.width);
    // SAFETY: only called for a table that was handed out after detection; the slices have the sizes of `new`.
    unsafe { V::call(PackKeys { tile: &mut *tile, lo: keys[0], hi: keys[1] }) };
    let (keys, rest_of_keys) = tile.bf16.k.split_at(BLOCK * key_row);
    let (queries, rest_of_queries) = tile.bf16.q.split_at(lanes * key_row);
    // The product of both rests is below the rounding of the sum.
    for (a, b, resume) in
        [(keys, queries, false), (rest_of_keys, queries, true), (keys, rest_of_queries, true)]
    {
        multiply(Strips {
            a,
            a_row: key_row,
            tiles: BLOCK / LANES,
            b,
            steps: key_row / STEP,
            c: tile.s,
            c_row: lanes,
            columns: lanes / LANES,
            resume,
        });
    }
    // SAFETY: as above.
    unsafe {
        V::call(SoftmaxColumns::<true> { tile: &mut *tile, seen, scoring });
        V::call(PackWeights { tile: &mut *tile });
    }
    for values in tile.bf16.v.chunks_exact(width * BLOCK) {
        multiply(Strips {
            a: values,
            a_row: BLOCK,
            tiles: width / LANES,
            b: tile.bf16.p,
            steps: BLOCK / STEP,
            c: tile.bf16.o,
            c_row: lanes,
            columns: lanes / LANES,
            resume: true,
        });
    }
}

/// Queries from `tile.q`, `[rows, width]`, to pairs of dimensions.
pub(super) struct PackQueries<'t, 'a> {
    pub(super) tile: &'t mut Tile<'a>,
}

impl Kernel for PackQueries<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        let (width, steps) = (tile.width, key_width(tile.width) / STEP);
        for first in (0..tile.lanes()).step_by(LANES) {
            for step in 0..steps {
                let mut parts = [[[0u16; STEP]; LANES]; 2];
                let [all, rests] = &mut parts;
                for (row, (rounded, rest)) in all.iter_mut().zip(rests).enumerate() {
                    for half in (0..STEP).step_by(LANES) {
                        let d = step * STEP + half;
                        if d < width {
                            // SAFETY: a vector of row `first + row`, and halves of lines.
                            unsafe {
                                let q = V::load(tile.q.as_ptr().add((first + row) * width + d));
                                let rounded = rounded.as_mut_ptr().add(half);
                                V::store_bf16(rounded, q);
                                let taken = V::sub(q, V::load_bf16(rounded));
                                V::store_bf16(rest.as_mut_ptr().add(half), taken);
                            }
                        }
                    }
                }
                for (part, lines) in parts.iter().enumerate() {
                    let tiles = part * tile.lanes() / LANES + first / LANES;
                    // SAFETY: 16 lines, and a tile of `q`.
                    unsafe {
                        let out = tile.bf16.q.as_mut_ptr().cast::<u8>().add((tiles * steps + step) * TILE);
                        transpose::<V>(lines.as_ptr().cast(), 64, out, 64);
                    }
                }
            }
        }
    }
}

/// 16 lines of 16 words, turned.
///
/// # Safety
/// That of [`Vector`]'s functions: 16 lines of 64 bytes from `from` and `to`, so many bytes apart.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "offsets that the contract names")]
unsafe fn transpose<V: Vector>(from: *const u8, from_row: usize, to: *mut u8, to_row: usize) {
    let mut lines = [V::splat_i(0); LANES];
    for (i, line) in lines.iter_mut().enumerate() {
        *line = V::load_i(from.add(i * from_row));
    }
    for (i, line) in V::transpose(lines).into_iter().enumerate() {
        V::store(to.add(i * to_row).cast(), V::from_bits(line));
    }
}

/// Keys `lo..hi` and their values from `tile.k` and `tile.v`; other keys have zero values.
struct PackKeys<'t, 'a> {
    tile: &'t mut Tile<'a>,
    lo: usize,
    hi: usize,
}

impl Kernel for PackKeys<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { tile, lo, hi } = self;
        let (width, v_width, key_row) = (tile.width, tile.v_width, key_width(tile.width));
        // What was never loaded must not meet a weight, not even 0: it may be anything.
        tile.v[..lo * v_width].fill(0.0);
        tile.v[hi * v_width..].fill(0.0);
        for key in lo..hi {
            for d in (0..width).step_by(LANES) {
                // SAFETY: vectors of row `key` of both.
                unsafe {
                    let k = V::load(tile.k.as_ptr().add(key * width + d));
                    let rounded = tile.bf16.k.as_mut_ptr().add(key * key_row + d);
                    V::store_bf16(rounded, k);
                    V::store_bf16(rounded.add(BLOCK * key_row), V::sub(k, V::load_bf16(rounded)));
                }
            }
        }
        for d in (0..v_width).step_by(LANES) {
            for first in (0..BLOCK).step_by(STEP) {
                // SAFETY: vectors of rows `first` to `first + 31` of `v`; 16 lines of `bf16.v`.
                unsafe {
                    let [mut rounded, mut rest] = [[V::splat_i(0); LANES]; 2];
                    for i in 0..LANES {
                        let v = tile.v.as_ptr().add((first + 2 * i) * v_width + d);
                        let (a, b) = (V::load(v), V::load(v.add(v_width)));
                        rounded[i] = V::pairs_bf16(a, b);
                        let high = V::splat_i(0xffff_0000_u32 as i32);
                        let low = V::from_bits(V::shl(rounded[i], 16));
                        let high = V::from_bits(V::and(rounded[i], high));
                        rest[i] = V::pairs_bf16(V::sub(a, low), V::sub(b, high));
                    }
                    let out = tile.bf16.v.as_mut_ptr().add(d * BLOCK + first);
                    store::<V>(V::transpose(rounded), out);
                    store::<V>(V::transpose(rest), out.add(v_width * BLOCK));
                }
            }
        }
    }
}

/// Lines of 16 rows of values.
///
/// # Safety
/// That of [`Vector`]'s functions; 16 rows of `BLOCK` from `out`.
#[inline(always)]
unsafe fn store<V: Vector>(lines: [V::I; LANES], out: *mut u16) {
    for (i, line) in lines.into_iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe { V::store(out.add(i * BLOCK).cast(), V::from_bits(line)) };
    }
}

/// Weights to pairs of keys; what was summed shrinks.
struct PackWeights<'t, 'a> {
    tile: &'t mut Tile<'a>,
}

impl Kernel for PackWeights<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        let lanes = tile.lanes();
        for row in (0..lanes).step_by(LANES) {
            // SAFETY: vectors of `s`, `shrink` and `bf16.o`, and the two tiles of these rows in `p`.
            unsafe {
                let p = tile.bf16.p.as_mut_ptr().cast::<f32>().add(row * BLOCK / 2);
                for pair in 0..BLOCK / 2 {
                    let s = tile.s.as_ptr().add(2 * pair * lanes + row);
                    let weights = V::pairs_bf16(V::load(s), V::load(s.add(lanes)));
                    V::store(p.add(pair * LANES), V::from_bits(weights));
                }
                if tile.shrink[row..row + LANES].iter().all(|x| *x == 1.0) {
                    continue;
                }
                let shrink = V::load(tile.shrink.as_ptr().add(row));
                for d in 0..tile.v_width {
                    let o = tile.bf16.o.as_mut_ptr().add(d * lanes + row);
                    V::store(o, V::mul(V::load(o), shrink));
                }
            }
        }
    }
}

/// The sums, from columns to `tile.o`, `[rows, width]`.
pub(super) struct Gather<'t, 'a> {
    pub(super) tile: &'t mut Tile<'a>,
}

impl Kernel for Gather<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        let (lanes, width) = (tile.lanes(), tile.v_width);
        for row in (0..lanes).step_by(LANES) {
            for d in (0..width).step_by(LANES) {
                // SAFETY: 16 lines of `bf16.o`, and of `o`.
                unsafe {
                    let from = tile.bf16.o.as_ptr().add(d * lanes + row);
                    let to = tile.o.as_mut_ptr().add(row * width + d);
                    transpose::<V>(from.cast(), 4 * lanes, to.cast(), 4 * width);
                }
            }
        }
    }
}
