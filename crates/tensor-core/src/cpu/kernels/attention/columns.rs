//! A tile with 16 rows as lanes. The order of every sum is that of `rows`.

use super::{BLOCK, Scoring, Seen, Tile, score};
use crate::cpu::kernels::vector::{Kernel, LANES, Vector, is_wide};

/// Scores of keys `lo..hi`, and of some more, for 16 rows at a time.
pub(super) struct ScoreColumns<'t, 'a> {
    pub(super) tile: &'t mut Tile<'a>,
    pub(super) lo: usize,
    pub(super) hi: usize,
}

impl Kernel for ScoreColumns<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the contract of `run`.
        unsafe { if is_wide::<V>() { self.by::<V, 8>() } else { self.by::<V, 4>() } }
    }
}

impl ScoreColumns<'_, '_> {
    /// # Safety
    /// That of [`Vector`]'s functions.
    #[inline(always)]
    unsafe fn by<V: Vector, const K: usize>(self) {
        let (lanes, width) = (self.tile.lanes(), self.tile.width);
        for key in (self.lo..self.hi).step_by(K) {
            // The last group may take in keys before `lo` or past `hi`: nobody looks at their scores.
            let key = key.min(BLOCK - K);
            for row in (0..lanes).step_by(LANES) {
                // SAFETY: `row` and the 15 after it are columns of `q` and `s`, `key` and the `K - 1` after it
                // rows of `k` and `s`.
                unsafe {
                    let columns = Columns {
                        q: self.tile.q.as_ptr().add(row),
                        lanes,
                        k: self.tile.k.as_ptr().add(key * width),
                        width,
                    };
                    let sums = columns.dot::<V, K>();
                    for (i, &sum) in sums.iter().enumerate() {
                        V::store(self.tile.s.as_mut_ptr().add((key + i) * lanes + row), sum);
                    }
                }
            }
        }
    }
}

/// 16 queries as columns, and some keys.
#[derive(Clone, Copy)]
struct Columns {
    q: *const f32,
    lanes: usize,
    k: *const f32,
    width: usize,
}

/// The order of `rows::dot_row`, turned: what is a lane there is here a term of a sum, and the terms are added in
/// the tree of [`Vector::reduce_sum`], depth first.
#[expect(unsafe_op_in_unsafe_fn, reason = "offsets within the tile, as ScoreColumns says")]
impl Columns {
    #[inline(always)]
    unsafe fn dot<V: Vector, const K: usize>(self) -> [V::F; K] {
        add::<V, K>(self.eight::<V, K>(0), self.eight::<V, K>(1))
    }
    #[inline(always)]
    unsafe fn eight<V: Vector, const K: usize>(self, lane: usize) -> [V::F; K] {
        add::<V, K>(self.four::<V, K>(lane), self.four::<V, K>(lane + 2))
    }
    #[inline(always)]
    unsafe fn four<V: Vector, const K: usize>(self, lane: usize) -> [V::F; K] {
        add::<V, K>(self.two::<V, K>(lane), self.two::<V, K>(lane + 4))
    }
    #[inline(always)]
    unsafe fn two<V: Vector, const K: usize>(self, lane: usize) -> [V::F; K] {
        add::<V, K>(self.one::<V, K>(lane), self.one::<V, K>(lane + 8))
    }
    /// The sum over the dimensions `lane + 16 c`.
    #[inline(always)]
    unsafe fn one<V: Vector, const K: usize>(self, lane: usize) -> [V::F; K] {
        let chunks = self.width / LANES;
        let mut sums = [V::splat(0.0); K];
        for c in 0..chunks {
            let x = V::load(self.q.add((lane * chunks + c) * self.lanes));
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = V::fma(x, V::splat(*self.k.add(i * self.width + c * LANES + lane)), *sum);
            }
        }
        sums
    }
}

/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers")]
unsafe fn add<V: Vector, const K: usize>(mut a: [V::F; K], b: [V::F; K]) -> [V::F; K] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = V::add(*a, b);
    }
    a
}

/// `rows::SoftmaxRows` for 16 rows at a time. With `BF16` weights are rounded to bfloat16 before they are summed, so that
/// what weighs is what is divided by.
pub(super) struct SoftmaxColumns<'t, 'a, const BF16: bool> {
    pub(super) tile: &'t mut Tile<'a>,
    pub(super) seen: &'t [Seen],
    pub(super) scoring: Scoring,
}

impl<const BF16: bool> Kernel for SoftmaxColumns<'_, '_, BF16> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        let lanes = tile.lanes();
        let s = tile.s.as_mut_ptr();
        for i in (0..BLOCK * lanes).step_by(LANES) {
            // SAFETY: whole vectors of `s`.
            unsafe { V::store(s.add(i), score::<V>(V::load(s.add(i)), self.scoring)) };
        }
        for (i, &Seen { lo, hi }) in self.seen.iter().enumerate() {
            // `lo > hi` hides everything, once.
            for key in (0..lo.min(BLOCK)).chain(hi.max(lo.min(BLOCK))..BLOCK) {
                tile.s[key * lanes..][i * tile.group..][..tile.group].fill(f32::NEG_INFINITY);
            }
        }
        for row in (0..lanes).step_by(LANES) {
            // SAFETY: `row` and the 15 after it are columns of `s` and rows of `m`, `l` and `shrink`.
            unsafe {
                let s = tile.s.as_mut_ptr().add(row);
                let before = V::load(tile.m.as_ptr().add(row));
                let mut m = before;
                for key in 0..BLOCK {
                    m = V::max(V::load(s.add(key * lanes)), m);
                }
                // The order of `SoftmaxRows`: sums of every 16th key, then their tree.
                let mut sums = [V::splat(0.0); LANES];
                for key in 0..BLOCK {
                    let mut e = V::exp(V::sub(V::load(s.add(key * lanes)), m));
                    if BF16 {
                        e = round_bf16::<V>(e);
                    }
                    V::store(s.add(key * lanes), e);
                    sums[key % LANES] = V::add(sums[key % LANES], e);
                }
                for half in [8, 4, 2, 1] {
                    for i in 0..half {
                        sums[i] = V::add(sums[i], sums[i + half]);
                    }
                }
                let shrink = V::exp(V::sub(before, m));
                let l = tile.l.as_mut_ptr().add(row);
                V::store(l, V::fma(V::load(l), shrink, sums[0]));
                V::store(tile.m.as_mut_ptr().add(row), m);
                V::store(tile.shrink.as_mut_ptr().add(row), shrink);
            }
        }
    }
}

/// To the nearest bfloat16, ties away from zero.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers")]
unsafe fn round_bf16<V: Vector>(x: V::F) -> V::F {
    let half_up = V::add_i(V::to_bits(x), V::splat_i(0x8000));
    V::from_bits(V::and(half_up, V::splat_i(0xffff_0000_u32 as i32)))
}
