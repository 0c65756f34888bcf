//! A tile row by row: lanes are the dimensions of a head, or keys.

use half::f16;

use super::{Ahead, BLOCK, CachedHead, Keys, Scoring, Seen, Tile, first, padded, score};
use crate::cpu::kernels::vector::{Kernel, LANES, Vector};
use crate::cpu::tensor::KvData;

/// Cached rows between the one that is read and the one that is asked for: a head's part of a row is too short for
/// the processor to see where the next one is.
const AHEAD: usize = 16;

/// Asks for `len` bytes from `p` on, which need not be valid.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
unsafe fn prefetch<V: Vector>(p: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        // SAFETY: a prefetch may ask for any address.
        unsafe { V::prefetch(p.wrapping_add(line)) };
    }
}

/// Asks for all of `ahead`, of `rows` positions.
pub(super) struct Ask {
    pub(super) ahead: Ahead,
    pub(super) rows: usize,
}

impl Kernel for Ask {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for row in 0..self.rows {
            // SAFETY: the same contract.
            unsafe { self.ahead.ask::<V>(row) };
        }
    }
}

impl Ahead {
    /// Asks for what is there of position `i`.
    ///
    /// # Safety
    /// That of [`Vector`]'s functions.
    #[inline(always)]
    pub(super) unsafe fn ask<V: Vector>(&self, i: usize) {
        // SAFETY: the same contract.
        unsafe { prefetch::<V>(self.first.wrapping_add(i * self.stride), self.len) };
    }
}

/// [`load`]: as many rows as `dst` has.
pub(super) struct Load<'a> {
    pub(super) src: CachedHead<'a>,
    pub(super) dst: &'a mut [f32],
}

impl Kernel for Load<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let CachedHead { data, at, stride, head_dim, .. } = self.src;
        let (width, whole) = (padded(head_dim), head_dim - head_dim % LANES);
        let rest = head_dim - whole;
        for (row, dst) in self.dst.chunks_exact_mut(width).enumerate() {
            let (from, dst) = (at + row * stride, dst.as_mut_ptr());
            // SAFETY: `load` has checked that the row's `head_dim` values lie in the buffer; `dst` has `width`. A
            // half float is the 16 bits that the vector reads.
            unsafe {
                match data {
                    KvData::F32(x) => {
                        let x = x.as_ptr().add(from);
                        prefetch::<V>(x.wrapping_add(AHEAD * stride).cast(), 4 * head_dim);
                        for d in (0..whole).step_by(LANES) {
                            V::store(dst.add(d), V::load(x.add(d)));
                        }
                        if rest > 0 {
                            V::store(dst.add(whole), V::load_partial(x.add(whole), rest));
                        }
                    }
                    KvData::F16(x) => {
                        let x = x.as_ptr().add(from).cast::<u16>();
                        prefetch::<V>(x.wrapping_add(AHEAD * stride).cast(), 2 * head_dim);
                        for d in (0..whole).step_by(LANES) {
                            V::store(dst.add(d), V::load_f16(x.add(d)));
                        }
                        if rest > 0 {
                            V::store(dst.add(whole), V::load_partial_f16(x.add(whole), rest));
                        }
                    }
                }
            }
        }
    }
}

/// Cached values, widened.
pub(super) trait Stored: Copy {
    /// 16 values.
    ///
    /// # Safety
    /// That of [`Vector`]'s functions.
    unsafe fn load<V: Vector>(p: *const Self) -> V::F;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V::F {
        // SAFETY: the same contract.
        unsafe { V::load(p) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V::F {
        // SAFETY: the same contract; a half float is the 16 bits that the vector reads.
        unsafe { V::load_f16(p.cast()) }
    }
}

/// Scores of keys `lo..hi` row by row.
pub(super) struct ScoreRows<'t, 'a, T> {
    pub(super) tile: &'t mut Tile<'a>,
    pub(super) k: Keys<T>,
    pub(super) lo: usize,
    pub(super) hi: usize,
}

impl<T: Stored> Kernel for ScoreRows<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { tile, k, lo, hi } = self;
        let mut row = 0;
        while row < tile.rows() {
            let count = (tile.rows() - row).min(3);
            // SAFETY: the rows exist, and `lo..hi` are keys of the block.
            unsafe {
                let dots = Dots {
                    q: tile.q.as_ptr().add(row * tile.width),
                    k: Keys { ahead: if row == 0 { k.ahead } else { Ahead::NOTHING }, ..k },
                    width: tile.width,
                    s: tile.s.as_mut_ptr().add(row * BLOCK),
                };
                match count {
                    3 => dots.keys::<V, 3, 2>(lo, hi),
                    2 => dots.keys::<V, 2, 2>(lo, hi),
                    _ => dots.keys::<V, 1, 4>(lo, hi),
                }
            }
            row += count;
        }
    }
}

/// Products of some rows and the keys of a block.
struct Dots<T> {
    q: *const f32,
    k: Keys<T>,
    width: usize,
    s: *mut f32,
}

#[expect(unsafe_op_in_unsafe_fn, reason = "offsets within the tile and the keys, as ScoreRows says")]
impl<T: Stored> Dots<T> {
    /// Scores of `R` rows and keys `lo..hi`, `K` at a time.
    #[inline(always)]
    unsafe fn keys<V: Vector, const R: usize, const K: usize>(&self, lo: usize, hi: usize) {
        let mut key = lo;
        while key + K <= hi {
            self.some::<V, R, K>(key);
            key += K;
        }
        while key < hi {
            self.some::<V, R, 1>(key);
            key += 1;
        }
    }

    /// Scores of `R` rows and `K` keys: sums by lane over the vectors of a head, then
    /// [`reduce_sum`](Vector::reduce_sum).
    #[inline(always)]
    unsafe fn some<V: Vector, const R: usize, const K: usize>(&self, key: usize) {
        let Keys { first, stride, ahead } = self.k;
        let k = first.wrapping_add(key * stride);
        let mut sums = [[V::splat(0.0); K]; R];
        for d in (0..self.width).step_by(LANES) {
            for i in 0..K {
                let k = T::load::<V>(k.add(i * stride + d));
                for (r, sums) in sums.iter_mut().enumerate() {
                    sums[i] = V::fma(V::load(self.q.add(r * self.width + d)), k, sums[i]);
                }
            }
        }
        for i in 0..K {
            ahead.ask::<V>(key + i);
        }
        let sums = sums.as_flattened();
        let mut at = 0;
        while at < R * K {
            let mut four = [V::splat(0.0); 4];
            let count = (R * K - at).min(4);
            four[..count].copy_from_slice(&sums[at..at + count]);
            let mut scores = [0.0; 4];
            V::store_sums(scores.as_mut_ptr(), four);
            for (i, score) in scores[..count].iter().enumerate() {
                *self.s.add((at + i) / K * BLOCK + key + (at + i) % K) = *score;
            }
            at += count;
        }
    }
}

/// Scores to weights, row by row; `m`, `l`, `o` follow.
pub(super) struct SoftmaxRows<'t, 'a> {
    pub(super) tile: &'t mut Tile<'a>,
    pub(super) seen: &'t [Seen],
    pub(super) scoring: Scoring,
}

impl Kernel for SoftmaxRows<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        for row in 0..tile.rows() {
            let Seen { lo, hi } = self.seen[row / tile.group];
            if lo >= hi {
                tile.shrink[row] = 1.0;
                continue;
            }
            let scores = &mut tile.s[row * BLOCK..][..BLOCK];
            let s = scores.as_mut_ptr();
            // SAFETY: the offsets are those of the row's four vectors.
            unsafe {
                for i in (lo / LANES * LANES..hi).step_by(LANES) {
                    V::store(s.add(i), score::<V>(V::load(s.add(i)), self.scoring));
                }
                scores[..lo].fill(f32::NEG_INFINITY);
                scores[hi..].fill(f32::NEG_INFINITY);
                let mut m = V::splat(tile.m[row]);
                for i in (0..BLOCK).step_by(LANES) {
                    m = V::max(V::load(s.add(i)), m);
                }
                let m = V::reduce_max(m);
                let mut sum = V::splat(0.0);
                for i in (0..BLOCK).step_by(LANES) {
                    let e = V::exp(V::sub(V::load(s.add(i)), V::splat(m)));
                    V::store(s.add(i), e);
                    sum = V::add(sum, e);
                }
                let shrink = first::<V>(V::exp(V::splat(tile.m[row] - m)));
                tile.l[row] = tile.l[row].mul_add(shrink, V::reduce_sum(sum));
                tile.m[row] = m;
                tile.shrink[row] = shrink;
            }
        }
    }
}
