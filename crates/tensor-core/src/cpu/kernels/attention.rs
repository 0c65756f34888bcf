//! Attention of a tile of queries to one block of keys: scores, softmax, weighted values. Which positions a query
//! sees and where they lie is the driver's business.
//!
//! A tile has few rows (decoding) or many (prefill). Few are taken row by row, lanes being dimensions or keys; of
//! many, 16 rows are the lanes. Each row's arithmetic is the same in both, operation for operation, so that a
//! result does not depend on what is computed beside it.

use super::elementwise::softcap;
use super::vector::{Kernel, LANES, Vector};
use crate::cpu::tensor::KvData;

/// Positions of a block of keys.
pub(crate) const BLOCK: usize = 64;
/// The most rows of a tile, unless one query has more heads to a group.
pub(crate) const TILE_ROWS: usize = 64;
/// Tiles of at least so many rows have rows as lanes.
const COLUMNS_FROM: usize = 8;

/// The attention kernels of one instruction set.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Copies one head of consecutive cached rows into rows of a tile's keys or values, widened and padded.
    pub load: fn(src: CachedHead<'_>, dst: &mut [f32]),
    /// Takes the keys and values that were loaded into the tile into its running softmax; query `i` sees those
    /// at `seen[i]`.
    pub block: fn(tile: &mut Tile<'_>, seen: &[Seen], scoring: Scoring),
    /// Takes the softmax over other keys into that of `total`.
    pub merge: fn(total: State<'_>, part: &[f32], m: f32, l: f32),
    /// `out = o / l`: the result, zeros if nothing was seen.
    pub finish: fn(o: &[f32], l: f32, out: &mut [f32]),
}

/// One head of cached rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedHead<'a> {
    /// The buffer.
    pub data: KvData<'a>,
    /// Where the head begins in the first row.
    pub at: usize,
    /// Values of a row.
    pub stride: usize,
    /// Values of a head.
    pub head_dim: usize,
}

/// Keys of the block that a query sees: those from `lo` to before `hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub lo: usize,
    pub hi: usize,
}

/// What becomes of a product of query and key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scoring {
    /// The factor on it.
    pub scale: f32,
    /// The cap of `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Running softmax of one row: with `m` the greatest score, `l = Σ e^(s - m)` and `o = Σ e^(s - m) v`.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub o: &'a mut [f32],
    pub m: &'a mut f32,
    pub l: &'a mut f32,
}

/// The rows of some queries, each for all heads of a group, and the block of keys they meet.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    /// Queries of the tile.
    queries: usize,
    /// Heads that share a key head; row `i * group + h` is head `h` of query `i`.
    group: usize,
    /// Values of a head, padded to whole vectors.
    width: usize,
    /// `[rows, width]`; or `[width, lanes]`, in the order in which [`dot_columns`] reads it.
    q: &'a mut [f32],
    /// `[BLOCK, width]`.
    pub k: &'a mut [f32],
    /// `[BLOCK, width]`.
    pub v: &'a mut [f32],
    /// Scores, then weights: `[rows, BLOCK]`, or `[BLOCK, lanes]`.
    s: &'a mut [f32],
    /// `[rows, width]`.
    pub o: &'a mut [f32],
    /// One a row.
    pub m: &'a mut [f32],
    /// One a row.
    pub l: &'a mut [f32],
    /// By how much the last block shrank what was summed before it, one a row.
    shrink: &'a mut [f32],
}

/// `n` padded to whole vectors.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

impl<'a> Tile<'a> {
    /// Floats that a tile takes.
    pub(crate) fn floats(rows: usize, head_dim: usize) -> usize {
        let (lanes, width) = (padded(rows), padded(head_dim));
        lanes * (2 * width + BLOCK + 3) + 2 * BLOCK * width
    }

    /// A tile of `queries * group` rows of `head_dim` values in `memory`, without queries yet.
    pub(crate) fn new(memory: &'a mut [f32], queries: usize, group: usize, head_dim: usize) -> Self {
        let (lanes, width) = (padded(queries * group), padded(head_dim));
        let (q, memory) = memory.split_at_mut(lanes * width);
        let (k, memory) = memory.split_at_mut(BLOCK * width);
        let (v, memory) = memory.split_at_mut(BLOCK * width);
        let (s, memory) = memory.split_at_mut(BLOCK * lanes);
        let (o, memory) = memory.split_at_mut(lanes * width);
        let (m, memory) = memory.split_at_mut(lanes);
        let (l, memory) = memory.split_at_mut(lanes);
        let shrink = &mut memory[..lanes];
        q.fill(0.0);
        // Columns of scores are computed in groups, past the keys that were loaded.
        k.fill(0.0);
        Self { queries, group, width, q, k, v, s, o, m, l, shrink }
    }

    /// Rows of the tile.
    pub(crate) fn rows(&self) -> usize {
        self.queries * self.group
    }

    /// Values of a padded head.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn lanes(&self) -> usize {
        self.m.len()
    }

    fn by_columns(&self) -> bool {
        self.rows() >= COLUMNS_FROM
    }

    /// Sets the query of row `row`.
    pub(crate) fn set_query(&mut self, row: usize, query: &[f32]) {
        if !self.by_columns() {
            self.q[row * self.width..][..query.len()].copy_from_slice(query);
            return;
        }
        let (lanes, chunks) = (self.lanes(), self.width / LANES);
        for (d, &x) in query.iter().enumerate() {
            self.q[(d % LANES * chunks + d / LANES) * lanes + row] = x;
        }
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) {
        self.o.fill(0.0);
        // Finite, so that differences are never NaN.
        self.m.fill(f32::MIN);
        self.l.fill(0.0);
    }
}

impl Attention {
    /// The kernels of `V`. Only for a table that is handed out after detection.
    pub(super) const fn of<V: Vector>() -> Self {
        Self { load: load::<V>, block: block::<V>, merge: merge::<V>, finish: finish::<V> }
    }
}

fn load<V: Vector>(src: CachedHead<'_>, dst: &mut [f32]) {
    let rows = dst.len() / padded(src.head_dim);
    let len = match src.data {
        KvData::F32(x) => x.len(),
        KvData::F16(x) => x.len(),
    };
    assert!(rows == 0 || src.at + (rows - 1) * src.stride + src.head_dim <= len);
    // SAFETY: the table of `V` was handed out after detection; the values of each row are inside the buffer.
    unsafe { V::call(Load { src, dst }) }
}

fn block<V: Vector>(tile: &mut Tile<'_>, seen: &[Seen], scoring: Scoring) {
    assert_eq!(seen.len(), tile.queries);
    let lo = seen.iter().filter(|s| s.lo < s.hi).map(|s| s.lo).min().unwrap_or(0);
    let hi = seen.iter().filter(|s| s.lo < s.hi).map(|s| s.hi).max().unwrap_or(0);
    assert!(hi <= BLOCK);
    if lo == hi {
        return;
    }
    // SAFETY: the table of `V` was handed out after detection; a tile's slices have the sizes that `new` gave
    // them, and no query sees keys past the block.
    unsafe {
        if tile.by_columns() {
            V::call(ScoreColumns { tile: &mut *tile, lo, hi });
            V::call(SoftmaxColumns { tile: &mut *tile, seen, scoring });
        } else {
            V::call(ScoreRows { tile: &mut *tile, lo, hi });
            V::call(SoftmaxRows { tile: &mut *tile, seen, scoring });
        }
        V::call(Weigh { tile, seen });
    }
}

fn merge<V: Vector>(total: State<'_>, part: &[f32], m: f32, l: f32) {
    assert!(total.o.len() == part.len() && part.len().is_multiple_of(LANES));
    if l == 0.0 {
        return;
    }
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Merge { total, part, m, l }) }
}

fn finish<V: Vector>(o: &[f32], l: f32, out: &mut [f32]) {
    assert_eq!(o.len(), padded(out.len()));
    if l == 0.0 {
        out.fill(0.0);
        return;
    }
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Finish { o, l, out }) }
}

/// [`load`]: as many rows as `dst` has.
struct Load<'a> {
    src: CachedHead<'a>,
    dst: &'a mut [f32],
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
                        for d in (0..whole).step_by(LANES) {
                            V::store(dst.add(d), V::load(x.add(d)));
                        }
                        if rest > 0 {
                            V::store(dst.add(whole), V::load_partial(x.add(whole), rest));
                        }
                    }
                    KvData::F16(x) => {
                        let x = x.as_ptr().add(from).cast::<u16>();
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

/// Scores of keys `lo..hi`, row by row.
struct ScoreRows<'t, 'a> {
    tile: &'t mut Tile<'a>,
    lo: usize,
    hi: usize,
}

impl Kernel for ScoreRows<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        const KEYS: usize = 4;
        let tile = self.tile;
        let width = tile.width;
        for row in 0..tile.rows() {
            let mut key = self.lo;
            // SAFETY: rows of `q`, `k` and `s` have `width`, `width` and `BLOCK` values; keys end at `hi`.
            unsafe {
                let q = tile.q.as_ptr().add(row * width);
                let s = tile.s.as_mut_ptr().add(row * BLOCK);
                while key + KEYS <= self.hi {
                    dot_row::<V, KEYS>(q, tile.k.as_ptr().add(key * width), width, s.add(key));
                    key += KEYS;
                }
                while key < self.hi {
                    dot_row::<V, 1>(q, tile.k.as_ptr().add(key * width), width, s.add(key));
                    key += 1;
                }
            }
        }
    }
}

/// Products of one query and `K` keys: sums by lane over the vectors of a head, then
/// [`reduce_sum`](Vector::reduce_sum).
///
/// # Safety
/// That of [`Vector`]'s functions, for `width` values of the query and each key and `K` scores.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "offsets within the lengths that the contract names")]
unsafe fn dot_row<V: Vector, const K: usize>(q: *const f32, k: *const f32, width: usize, s: *mut f32) {
    let mut sums = [V::splat(0.0); K];
    for d in (0..width).step_by(LANES) {
        let x = V::load(q.add(d));
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = V::fma(x, V::load(k.add(i * width + d)), *sum);
        }
    }
    for (i, &sum) in sums.iter().enumerate() {
        *s.add(i) = V::reduce_sum(sum);
    }
}

/// Scores of keys `lo..hi`, and of some more, for 16 rows at a time.
struct ScoreColumns<'t, 'a> {
    tile: &'t mut Tile<'a>,
    lo: usize,
    hi: usize,
}

/// Whether there are 32 registers of a whole vector each, as with AVX-512: room for more sums.
const fn is_wide<V: Vector>() -> bool {
    align_of::<V::F>() == 4 * LANES
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

/// The order of [`dot_row`], turned: what is a lane there is here a term of a sum, and the terms are added in
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

/// A product as a score.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers")]
unsafe fn score<V: Vector>(s: V::F, scoring: Scoring) -> V::F {
    let s = V::mul(s, V::splat(scoring.scale));
    match scoring.softcap {
        Some(cap) => softcap::<V>(s, cap),
        None => s,
    }
}

/// Scores to weights, row by row; `m`, `l`, `o` follow.
struct SoftmaxRows<'t, 'a> {
    tile: &'t mut Tile<'a>,
    seen: &'t [Seen],
    scoring: Scoring,
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

/// Lane 0.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
unsafe fn first<V: Vector>(x: V::F) -> f32 {
    let mut lane = 0.0;
    // SAFETY: one lane is stored.
    unsafe { V::store_partial(&raw mut lane, x, 1) };
    lane
}

/// [`SoftmaxRows`] for 16 rows at a time.
struct SoftmaxColumns<'t, 'a> {
    tile: &'t mut Tile<'a>,
    seen: &'t [Seen],
    scoring: Scoring,
}

impl Kernel for SoftmaxColumns<'_, '_> {
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
                    let e = V::exp(V::sub(V::load(s.add(key * lanes)), m));
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

/// Weighted values into `o`.
struct Weigh<'t, 'a> {
    tile: &'t mut Tile<'a>,
    seen: &'t [Seen],
}

impl Kernel for Weigh<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile = self.tile;
        let width = tile.width;
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
        // Keys that all queries see are weighed for all rows at once. Those at the edges of the mask are weighed
        // for the queries that see them: a weight of 0 would not do, it does not hide an infinite value.
        let lo = self.seen.iter().map(|s| s.lo).max().unwrap_or(0);
        let hi = self.seen.iter().map(|s| s.hi).min().unwrap_or(0);
        let (lo, hi) = if lo < hi { (lo, hi) } else { (BLOCK, BLOCK) };
        // SAFETY: the contract of `run`; rows and keys are within the tile.
        unsafe {
            for (i, s) in self.seen.iter().enumerate() {
                weigh::<V>(tile, [i * tile.group, (i + 1) * tile.group], [s.lo, s.hi.min(lo)]);
            }
            weigh::<V>(tile, [0, tile.rows()], [lo, hi]);
            for (i, s) in self.seen.iter().enumerate() {
                weigh::<V>(tile, [i * tile.group, (i + 1) * tile.group], [s.lo.max(hi), s.hi]);
            }
        }
    }
}

/// Adds the values of keys `keys[0]..keys[1]` to rows `rows[0]..rows[1]`.
///
/// # Safety
/// That of [`Vector`]'s functions; rows and keys are within the tile.
#[inline(always)]
unsafe fn weigh<V: Vector>(tile: &mut Tile<'_>, rows: [usize; 2], keys: [usize; 2]) {
    if keys[0] >= keys[1] {
        return;
    }
    let (key_stride, row_stride) = if tile.by_columns() { (tile.lanes(), 1) } else { (1, BLOCK) };
    let mut row = rows[0];
    while row < rows[1] {
        // SAFETY: the offsets are those of row `row` and key `keys[0]`.
        let sums = unsafe {
            Sums {
                weights: tile.s.as_ptr().add(keys[0] * key_stride + row * row_stride),
                key_stride,
                row_stride,
                v: tile.v.as_ptr().add(keys[0] * tile.width),
                keys: keys[1] - keys[0],
                width: tile.width,
                o: tile.o.as_mut_ptr().add(row * tile.width),
            }
        };
        let count = (rows[1] - row).min(4);
        // SAFETY: `count` rows follow.
        unsafe {
            match count {
                4 => V::call(SumRows::<4>(sums)),
                3 => V::call(SumRows::<3>(sums)),
                2 => V::call(SumRows::<2>(sums)),
                _ => V::call(SumRows::<1>(sums)),
            }
        }
        row += count;
    }
}

/// A few rows of `o`, their weights, and the values of some keys.
#[derive(Clone, Copy)]
struct Sums {
    weights: *const f32,
    key_stride: usize,
    row_stride: usize,
    v: *const f32,
    keys: usize,
    width: usize,
    o: *mut f32,
}

/// `R` rows of [`Sums`].
struct SumRows<const R: usize>(Sums);

impl<const R: usize> Kernel for SumRows<R> {
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
            while d < self.0.width {
                self.vectors::<V, 1>(d);
                d += LANES;
            }
        }
    }
}

impl<const R: usize> SumRows<R> {
    /// `D` vectors from value `d` on.
    ///
    /// # Safety
    /// That of [`Vector`]'s functions; the vectors are within the rows.
    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "offsets of R rows, `keys` keys and D vectors")]
    unsafe fn vectors<V: Vector, const D: usize>(&self, d: usize) {
        let Sums { weights, key_stride, row_stride, v, keys, width, o } = self.0;
        let mut sums = [[V::splat(0.0); D]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(o.add(r * width + d + i * LANES));
            }
        }
        for key in 0..keys {
            let mut values = [V::splat(0.0); D];
            for (i, value) in values.iter_mut().enumerate() {
                *value = V::load(v.add(key * width + d + i * LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(*weights.add(key * key_stride + r * row_stride));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = V::fma(weight, value, *sum);
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
struct Merge<'a> {
    total: State<'a>,
    part: &'a [f32],
    m: f32,
    l: f32,
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
struct Finish<'a> {
    o: &'a [f32],
    l: f32,
    out: &'a mut [f32],
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
