//! Sums of weighted values: of a block into a tile, of parts into a whole.

use super::rows::Stored;
use super::{Ahead, BLOCK, Keys, Seen, State, Tile, first};
use crate::cpu::kernels::vector::{Kernel, LANES, Vector, is_wide};

/// What was summed before the block, by its weights after it.
pub(super) struct Shrink<'t, 'a> {
    pub(super) tile: &'t mut Tile<'a>,
}

impl Kernel for Shrink<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (width, tile) = (self.tile.v_width, self.tile);
        for row in 0..tile.rows() {
            let shrink = tile.shrink[row];
            if shrink != 1.0 {
                for i in (row * width..(row + 1) * width).step_by(LANES) {
                    // SAFETY: whole vectors of row `row` of `o`.
                    unsafe {
                        let o = tile.o.as_mut_ptr().add(i);
                        V::store(o, V::mul(V::load(o), V::splat(shrink)));
                    }
                }
            }
        }
    }
}

/// Weighted values of keys `keys[0]..keys[1]` into `o`.
pub(super) struct Weigh<'t, 'a, T> {
    pub(super) tile: &'t mut Tile<'a>,
    pub(super) seen: &'t [Seen],
    pub(super) v: Keys<T>,
    pub(super) keys: [usize; 2],
}

impl<T: Stored> Kernel for Weigh<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { tile, seen, v, keys: [from, to] } = self;
        // Keys that all queries see are weighed for all rows at once. Those at the edges of the mask are weighed
        // for the queries that see them: a weight of 0 would not do, it does not hide an infinite value.
        let lo = seen.iter().map(|s| s.lo).max().unwrap_or(0).max(from);
        let hi = seen.iter().map(|s| s.hi).min().unwrap_or(0).min(to);
        let (lo, hi) = if lo < hi { (lo, hi) } else { (to, to) };
        // SAFETY: the contract of `run`; rows and keys are within the tile.
        unsafe {
            for (i, s) in seen.iter().enumerate() {
                let rows = [i * tile.group, (i + 1) * tile.group];
                weigh::<V, T>(tile, v, rows, [s.lo.max(from), s.hi.min(lo)]);
            }
            weigh::<V, T>(tile, v, [0, tile.rows()], [lo, hi]);
            for (i, s) in seen.iter().enumerate() {
                let rows = [i * tile.group, (i + 1) * tile.group];
                weigh::<V, T>(tile, v, rows, [s.lo.max(hi), s.hi.min(to)]);
            }
        }
    }
}

/// Adds the values of keys `keys[0]..keys[1]` to rows `rows[0]..rows[1]`.
///
/// # Safety
/// That of [`Vector`]'s functions; rows and keys are within the tile.
#[inline(always)]
unsafe fn weigh<V: Vector, T: Stored>(tile: &mut Tile<'_>, v: Keys<T>, rows: [usize; 2], keys: [usize; 2]) {
    if keys[0] >= keys[1] {
        return;
    }
    let (key_stride, row_stride) = if tile.by_columns() { (tile.lanes(), 1) } else { (1, BLOCK) };
    let mut row = rows[0];
    let v = v.from(keys[0]);
    while row < rows[1] {
        // SAFETY: the offsets are those of row `row` and key `keys[0]`.
        let sums = unsafe {
            Sums {
                weights: tile.s.as_ptr().add(keys[0] * key_stride + row * row_stride),
                key_stride,
                row_stride,
                v: Keys { ahead: if row == 0 { v.ahead } else { Ahead::NOTHING }, ..v },
                keys: keys[1] - keys[0],
                width: tile.v_width,
                o: tile.o.as_mut_ptr().add(row * tile.v_width),
            }
        };
        let count = (rows[1] - row).min(4);
        // SAFETY: `count` rows follow.
        unsafe {
            match count {
                4 => V::call(SumRows::<T, 4>(sums)),
                3 => V::call(SumRows::<T, 3>(sums)),
                2 => V::call(SumRows::<T, 2>(sums)),
                _ => V::call(SumRows::<T, 1>(sums)),
            }
        }
        row += count;
    }
}

/// A few rows of `o`, their weights, and the values of some keys.
#[derive(Clone, Copy)]
struct Sums<T> {
    weights: *const f32,
    key_stride: usize,
    row_stride: usize,
    v: Keys<T>,
    keys: usize,
    width: usize,
    o: *mut f32,
}

/// `R` rows of [`Sums`].
struct SumRows<T, const R: usize>(Sums<T>);

impl<T: Stored, const R: usize> Kernel for SumRows<T, R> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let mut d = 0;
        // SAFETY: the contract of `run`, for the vectors of a row of `width`.
        unsafe {
            while is_wide::<V>() && d + 4 * LANES <= self.0.width {
                self.vectors::<V, 4>(d);
                d += 4 * LANES;
            }
            while R < 3 && d + 2 * LANES <= self.0.width {
                self.vectors::<V, 2>(d);
                d += 2 * LANES;
            }
            while d < self.0.width {
                self.vectors::<V, 1>(d);
                d += LANES;
            }
        }
    }
}

impl<T: Stored, const R: usize> SumRows<T, R> {
    /// `D` vectors from value `d` on.
    ///
    /// # Safety
    /// That of [`Vector`]'s functions; the vectors are within the rows.
    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "offsets of R rows, `keys` keys and D vectors")]
    unsafe fn vectors<V: Vector, const D: usize>(&self, d: usize) {
        let Sums { weights, key_stride, row_stride, v, keys, width, o } = self.0;
        let Keys { stride, ahead, .. } = v;
        let mut sums = [[V::splat(0.0); D]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(o.add(r * width + d + i * LANES));
            }
        }
        for key in 0..keys {
            let v = v.first.wrapping_add(key * stride);
            if d == 0 {
                ahead.ask::<V>(key);
            }
            let mut row_weights = [V::splat(0.0); R];
            for (r, weight) in row_weights.iter_mut().enumerate() {
                *weight = V::splat(*weights.add(key * key_stride + r * row_stride));
            }
            for i in 0..D {
                let value = T::load::<V>(v.add(d + i * LANES));
                for (sums, &weight) in sums.iter_mut().zip(&row_weights) {
                    sums[i] = V::fma(weight, value, sums[i]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (i, &sum) in sums.iter().enumerate() {
                V::store(o.add(r * width + d + i * LANES), sum);
            }
        }
    }
}

/// [`merge`] of a part that saw something.
pub(super) struct Merge<'a> {
    pub(super) total: State<'a>,
    pub(super) part: &'a [f32],
    pub(super) m: f32,
    pub(super) l: f32,
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let State { o, m, l } = self.total;
        if *l == 0.0 {
            o.copy_from_slice(self.part);
            (*m, *l) = (self.m, self.l);
            return;
        }
        let most = if self.m > *m { self.m } else { *m };
        // SAFETY: both slices are whole vectors, equally many.
        unsafe {
            let ours = V::exp(V::splat(*m - most));
            let theirs = V::exp(V::splat(self.m - most));
            *l = l.mul_add(first::<V>(ours), self.l * first::<V>(theirs));
            *m = most;
            for i in (0..o.len()).step_by(LANES) {
                let (o, part) = (o.as_mut_ptr().add(i), V::load(self.part.as_ptr().add(i)));
                V::store(o, V::fma(V::load(o), ours, V::mul(part, theirs)));
            }
        }
    }
}

/// [`finish`] of a row that saw something.
pub(super) struct Finish<'a> {
    pub(super) o: &'a [f32],
    pub(super) l: f32,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let n = self.out.len();
        for i in (0..n).step_by(LANES) {
            // SAFETY: `o` is `out` padded to whole vectors.
            unsafe {
                let x = V::div(V::load(self.o.as_ptr().add(i)), V::splat(self.l));
                V::store_partial(self.out.as_mut_ptr().add(i), x, (n - i).min(LANES));
            }
        }
    }
}
