//! A tile row by row: lanes are the dimensions of a head, or keys.

use super::{BLOCK, CachedHead, Scoring, Seen, Tile, first, padded, score};
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

/// [`load`]: as many rows as `dst` has.
pub(super) struct Load<'a> {
    pub(super) src: CachedHead<'a>,
    pub(super) dst: &'a mut [f32],
}

impl Kernel for Load<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let CachedHead { data, at, stride, head_dim } = self.src;
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

/// Scores of keys `lo..hi`, and of some more, row by row.
pub(super) struct ScoreRows<'t, 'a> {
    pub(super) tile: &'t mut Tile<'a>,
    pub(super) lo: usize,
    pub(super) hi: usize,
}

impl Kernel for ScoreRows<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        let width = tile.width;
        for row in 0..tile.rows() {
            for key in (self.lo..self.hi).step_by(KEYS) {
                // The last keys may lie before `lo` or past `hi`: nobody looks at their scores.
                let key = key.min(BLOCK - KEYS);
                // SAFETY: rows of `q`, `k` and `s` have `width`, `width` and `BLOCK` values, and `KEYS` keys follow.
                unsafe {
                    let q = tile.q.as_ptr().add(row * width);
                    let s = tile.s.as_mut_ptr().add(row * BLOCK + key);
                    dot_row::<V>(q, tile.k.as_ptr().add(key * width), width, s);
                }
            }
        }
    }
}

/// Keys whose sums are in registers.
const KEYS: usize = 4;

/// Products of one query and some keys: sums by lane over the vectors of a head, then
/// [`reduce_sum`](Vector::reduce_sum).
///
/// # Safety
/// That of [`Vector`]'s functions, for `width` values of the query and each key and as many scores as keys.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "offsets within the lengths that the contract names")]
unsafe fn dot_row<V: Vector>(q: *const f32, k: *const f32, width: usize, s: *mut f32) {
    let mut sums = [V::splat(0.0); KEYS];
    for d in (0..width).step_by(LANES) {
        let x = V::load(q.add(d));
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = V::fma(x, V::load(k.add(i * width + d)), *sum);
        }
    }
    V::store_sums(s, sums);
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
