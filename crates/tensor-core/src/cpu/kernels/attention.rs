//! Attention of a tile of queries to one block of keys: scores, softmax, weighted values. Which positions a query
//! sees and where they lie is the driver's business.
//!
//! A tile has few rows (decoding) or many (prefill). Few are taken row by row, lanes being dimensions or keys; of
//! many, 16 rows are the lanes. Each row's arithmetic is the same in both, operation for operation, so that a
//! result does not depend on what is computed beside it.

mod columns;
mod rows;
mod sums;
mod tiled;

use self::columns::{ScoreColumns, SoftmaxColumns};
use self::rows::{Ask, Load, ScoreRows, SoftmaxRows, Stored};
use self::sums::{Finish, Merge, Shrink, Weigh};
use self::tiled::{Bf16, Gather, PackQueries};
use super::elementwise::softcap;
use super::tiles::Strips;
use super::vector::{LANES, Vector};
use crate::cpu::tensor::KvData;

/// Positions of a block of keys.
pub(crate) const BLOCK: usize = 64;
/// The most rows of a tile, unless one query has more heads to a group.
pub(crate) const TILE_ROWS: usize = 64;
/// [`TILE_ROWS`] of tile registers: loading a block takes longer beside them.
pub(crate) const MAX_ROWS: usize = 128;
/// Tiles of at least so many rows have rows as lanes.
const COLUMNS_FROM: usize = 8;

/// How a tile is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Row by row.
    Rows,
    /// With 16 rows as lanes.
    Columns,
    /// With tile registers, in bfloat16.
    Tiled,
}

impl Form {
    /// That of a tile of `rows` rows; `tiled` if there are tile registers and rounding to bfloat16 is allowed.
    pub(crate) fn of(rows: usize, tiled: bool) -> Self {
        match rows {
            _ if tiled && rows >= LANES => Self::Tiled,
            _ if rows >= COLUMNS_FROM => Self::Columns,
            _ => Self::Rows,
        }
    }
}

/// The attention kernels of one instruction set.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Copies one head of consecutive cached rows into rows of a tile's keys or values, widened and padded.
    pub load: fn(src: CachedHead<'_>, dst: &mut [f32]),
    /// Asks for consecutive cached rows of some heads in a row, of which `first` is the first.
    pub ask: fn(first: CachedHead<'_>, heads: usize, rows: usize),
    /// Takes the queries that were set, before the first block.
    pub start: fn(tile: &mut Tile<'_>),
    /// Takes the keys and values that were loaded into the tile into its running softmax; query `i` sees those
    /// at `seen[i]`.
    pub block: fn(tile: &mut Tile<'_>, seen: &[Seen], scoring: Scoring, multiply: Option<Multiply>),
    /// The same of keys and values where they are cached, for [`Form::Rows`] and heads of whole vectors: a tile for each
    /// of some heads in a row, of which `cached` is the first. Those seen begin with the first row of both.
    pub cached_block:
        fn(tiles: &mut [Tile<'_>], seen: &[Seen], scoring: Scoring, cached: [CachedHead<'_>; 2]),
    /// Leaves the sums over all blocks since [`Tile::clear`] in `o`.
    pub end: fn(tile: &mut Tile<'_>),
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

/// What multiplies for [`Form::Tiled`].
pub(crate) type Multiply = fn(Strips<'_>);

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
    form: Form,
    /// Queries of the tile.
    queries: usize,
    /// Heads that share a key head; row `i * group + h` is head `h` of query `i`.
    group: usize,
    /// Values of a key, padded to whole vectors.
    width: usize,
    /// Those of a value.
    v_width: usize,
    /// `[rows, width]`; or `[width, lanes]`, in the order in which `columns` reads it.
    q: &'a mut [f32],
    /// `[BLOCK, width]`.
    pub k: &'a mut [f32],
    /// `[BLOCK, v_width]`.
    pub v: &'a mut [f32],
    /// Scores, then weights: `[rows, BLOCK]`, or `[BLOCK, lanes]`.
    s: &'a mut [f32],
    /// `[rows, v_width]`.
    pub o: &'a mut [f32],
    /// One a row.
    pub m: &'a mut [f32],
    /// One a row.
    pub l: &'a mut [f32],
    /// By how much the last block shrank what was summed before it, one a row.
    shrink: &'a mut [f32],
    /// For [`Form::Tiled`].
    bf16: Bf16<'a>,
}

/// `n` padded to whole vectors.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

impl<'a> Tile<'a> {
    /// Floats that a tile takes for keys and values of `dims` values.
    pub(crate) fn floats(form: Form, rows: usize, dims: [usize; 2]) -> usize {
        let (lanes, [width, v_width]) = (padded(rows), dims.map(padded));
        let bf16 = if form == Form::Tiled { tiled::floats(lanes, [width, v_width]) } else { 0 };
        lanes * (width + v_width + BLOCK + 3) + BLOCK * (width + v_width) + bf16
    }

    /// A tile of `queries * group` rows for keys and values of `dims` values in `memory`, without queries yet.
    pub(crate) fn new(
        memory: &'a mut [f32],
        form: Form,
        [queries, group]: [usize; 2],
        dims: [usize; 2],
    ) -> Self {
        let (lanes, [width, v_width]) = (padded(queries * group), dims.map(padded));
        let (q, memory) = memory.split_at_mut(lanes * width);
        let (k, memory) = memory.split_at_mut(BLOCK * width);
        let (v, memory) = memory.split_at_mut(BLOCK * v_width);
        let (s, memory) = memory.split_at_mut(BLOCK * lanes);
        let (o, memory) = memory.split_at_mut(lanes * v_width);
        let (m, memory) = memory.split_at_mut(lanes);
        let (l, memory) = memory.split_at_mut(lanes);
        let (shrink, memory) = memory.split_at_mut(lanes);
        let bf16 =
            if form == Form::Tiled { Bf16::new(memory, lanes, [width, v_width]) } else { Bf16::default() };
        // Rows and columns without a query are zeros. Keys that were not loaded may be anything: nobody looks at their
        // scores.
        if form != Form::Rows || width > dims[0] {
            q.fill(0.0);
        }
        Self { form, queries, group, width, v_width, q, k, v, s, o, m, l, shrink, bf16 }
    }

    /// Rows of the tile.
    pub(crate) fn rows(&self) -> usize {
        self.queries * self.group
    }

    /// Whether the tile can take blocks where they are cached, in heads of `dims` values of keys and of values.
    pub(crate) fn reads_cached(&self, dims: [usize; 2]) -> bool {
        self.form == Form::Rows && dims == [self.width, self.v_width]
    }

    fn lanes(&self) -> usize {
        self.m.len()
    }

    fn by_columns(&self) -> bool {
        self.form == Form::Columns
    }

    /// Sets the query of row `row`.
    pub(crate) fn set_query(&mut self, row: usize, query: &[f32]) {
        if !self.by_columns() {
            self.q[row * self.width..][..query.len()].copy_from_slice(query);
            return;
        }
        let (lanes, chunks) = (self.lanes(), self.width / LANES);
        for (chunk, values) in query.chunks(LANES).enumerate() {
            let column = self.q[chunk * lanes..].iter_mut().skip(row).step_by(chunks * lanes);
            column.zip(values).for_each(|(q, &x)| *q = x);
        }
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) {
        let rows = if self.form == Form::Rows { self.rows() } else { self.lanes() };
        self.o[..rows * self.v_width].fill(0.0);
        self.bf16.o.fill(0.0);
        // Finite, so that differences are never NaN.
        self.m.fill(f32::MIN);
        self.l.fill(0.0);
    }
}

impl Attention {
    /// The kernels of `V`. Only for a table that is handed out after detection.
    pub(super) const fn of<V: Vector>() -> Self {
        Self {
            load: load::<V>,
            ask: ask::<V>,
            start: start::<V>,
            block: block::<V>,
            cached_block: cached_block::<V>,
            end: end::<V>,
            merge: merge::<V>,
            finish: finish::<V>,
        }
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

fn ask<V: Vector>(first: CachedHead<'_>, heads: usize, rows: usize) {
    let CachedHead { data, at, stride, head_dim } = first;
    match data {
        KvData::F32(x) => ask_for::<V, _>(x.as_ptr().wrapping_add(at), stride, [rows, heads * head_dim]),
        KvData::F16(x) => ask_for::<V, _>(x.as_ptr().wrapping_add(at), stride, [rows, heads * head_dim]),
    }
}

fn ask_for<V: Vector, T>(first: *const T, stride: usize, [rows, width]: [usize; 2]) {
    let ahead = Ahead::of(first, stride, width);
    // SAFETY: the table of `V` was handed out after detection; no address is wrong.
    unsafe { V::call(Ask { ahead, rows }) }
}

/// Keys that any of a tile's queries sees.
fn seen_by_any(tile: &Tile<'_>, seen: &[Seen]) -> [usize; 2] {
    assert_eq!(seen.len(), tile.queries);
    let lo = seen.iter().filter(|s| s.lo < s.hi).map(|s| s.lo).min().unwrap_or(0);
    let hi = seen.iter().filter(|s| s.lo < s.hi).map(|s| s.hi).max().unwrap_or(0);
    assert!(hi <= BLOCK);
    [lo, hi]
}

fn block<V: Vector>(tile: &mut Tile<'_>, seen: &[Seen], scoring: Scoring, multiply: Option<Multiply>) {
    let [lo, hi] = seen_by_any(tile, seen);
    if lo == hi {
        return;
    }
    if let (Form::Tiled, Some(multiply)) = (tile.form, multiply) {
        return tiled::block::<V>(tile, seen, scoring, [lo, hi], multiply);
    }
    // SAFETY: the table of `V` was handed out after detection; a tile's slices have the sizes that `new` gave
    // them, and no query sees keys past the block.
    unsafe {
        let k = Keys { first: tile.k.as_ptr(), stride: tile.width, ahead: Ahead::NOTHING };
        let v = Keys { first: tile.v.as_ptr(), stride: tile.v_width, ahead: Ahead::NOTHING };
        if tile.by_columns() {
            V::call(ScoreColumns { tile: &mut *tile, lo, hi });
            V::call(SoftmaxColumns::<false> { tile: &mut *tile, seen, scoring });
            V::call(Shrink { tile: &mut *tile });
            V::call(Weigh { tile, seen, v, keys: [lo, hi] });
        } else {
            by_rows::<V, _>(std::slice::from_mut(tile), seen, scoring, [lo, hi], [k, v]);
        }
    }
}

/// Where a head of the key, or value, of each position of a block lies.
#[derive(Debug)]
struct Keys<T> {
    /// That of the block's first position; only what is seen need be there.
    first: *const T,
    /// Values from one to the next.
    stride: usize,
    /// What is asked for while they are in use, position by position.
    ahead: Ahead,
}

impl<T> Clone for Keys<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Keys<T> {}

impl<T> Keys<T> {
    /// Those of head `i` after these, of heads of `width` values.
    fn head(self, i: usize, width: usize) -> Self {
        let Ahead { first, len, .. } = self.ahead;
        let ahead = Ahead { first: first.wrapping_add(i * len), ..self.ahead };
        Self { first: self.first.wrapping_add(i * width), ahead, ..self }
    }

    /// Those from position `i` on.
    fn from(self, i: usize) -> Self {
        let Ahead { first, stride, .. } = self.ahead;
        let ahead = Ahead { first: first.wrapping_add(i * stride), ..self.ahead };
        Self { first: self.first.wrapping_add(i * self.stride), ahead, ..self }
    }
}

/// Memory that will be read soon. The processor does not see by itself where the next position's part is: a head is too
/// short.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    first: *const u8,
    /// Bytes from one position's to the next.
    stride: usize,
    /// Bytes of a position.
    len: usize,
}

impl Ahead {
    const NOTHING: Self = Self { first: std::ptr::null(), stride: 0, len: 0 };

    /// `width` values of each position, `stride` values apart.
    fn of<T>(first: *const T, stride: usize, width: usize) -> Self {
        Self { first: first.cast(), stride: stride * size_of::<T>(), len: width * size_of::<T>() }
    }
}

fn cached_block<V: Vector>(
    tiles: &mut [Tile<'_>],
    seen: &[Seen],
    scoring: Scoring,
    cached: [CachedHead<'_>; 2],
) {
    let Some(first) = tiles.first() else { return };
    let [lo, hi] = seen_by_any(first, seen);
    if lo == hi {
        return;
    }
    assert!(tiles.iter().all(|t| t.reads_cached(cached.map(|c| c.head_dim)) && t.queries == seen.len()));
    let heads = tiles.len();
    match cached.map(|c| c.data) {
        [KvData::F32(k), KvData::F32(v)] => {
            let keys = cached_keys([k, v], cached, heads, [lo, hi]);
            // SAFETY: the table of `V` was handed out after detection; `cached_keys` has checked the keys.
            unsafe { by_rows::<V, _>(tiles, seen, scoring, [lo, hi], keys) }
        }
        [KvData::F16(k), KvData::F16(v)] => {
            let keys = cached_keys([k, v], cached, heads, [lo, hi]);
            // SAFETY: as above.
            unsafe { by_rows::<V, _>(tiles, seen, scoring, [lo, hi], keys) }
        }
        _ => unreachable!("keys and values are cached alike"),
    }
}

/// Keys and values of a block of `heads` heads; the first seen one of the first head is the first of `cached`. Values are
/// asked for while keys are in use, and the next block's keys while values are.
fn cached_keys<T>(
    data: [&[T]; 2],
    cached: [CachedHead<'_>; 2],
    heads: usize,
    [lo, hi]: [usize; 2],
) -> [Keys<T>; 2] {
    let [k, v] = [0, 1].map(|i| {
        let CachedHead { at, stride, head_dim, .. } = cached[i];
        assert!(at + (hi - lo - 1) * stride + heads * head_dim <= data[i].len());
        (data[i].as_ptr().wrapping_add(at).wrapping_sub(lo * stride), stride, head_dim)
    });
    let next = (k.0.wrapping_add(BLOCK * k.1), k.1, k.2);
    [(k, v), (v, next)].map(|((first, stride, _), ahead)| Keys {
        first,
        stride,
        ahead: Ahead::of(ahead.0, ahead.1, ahead.2),
    })
}

/// Keys that are taken for all heads before those after them.
const STRETCH: usize = 16;

/// Takes a block into tiles row by row: of heads that lie beside each other in `k` and `v`, a stretch of keys at a time, so
/// that memory is read in its order.
///
/// # Safety
/// Of [`Vector::call`]; a tile's slices have the sizes that `new` gave them, no query sees keys past `hi`, and keys
/// from `lo` to `hi` have the widths of all tiles.
unsafe fn by_rows<V: Vector, T: Stored>(
    tiles: &mut [Tile<'_>],
    seen: &[Seen],
    scoring: Scoring,
    [lo, hi]: [usize; 2],
    [k, v]: [Keys<T>; 2],
) {
    // SAFETY: this function's contract.
    unsafe {
        for lo in (lo..hi).step_by(STRETCH) {
            for (i, tile) in tiles.iter_mut().enumerate() {
                let k = k.head(i, tile.width);
                V::call(ScoreRows { tile, k, lo, hi: hi.min(lo + STRETCH) });
            }
        }
        for tile in &mut *tiles {
            V::call(SoftmaxRows { tile: &mut *tile, seen, scoring });
            V::call(Shrink { tile });
        }
        for lo in (lo..hi).step_by(STRETCH) {
            for (i, tile) in tiles.iter_mut().enumerate() {
                let v = v.head(i, tile.v_width);
                V::call(Weigh { tile, seen, v, keys: [lo, hi.min(lo + STRETCH)] });
            }
        }
    }
}

fn start<V: Vector>(tile: &mut Tile<'_>) {
    if tile.form == Form::Tiled {
        // SAFETY: the table of `V` was handed out after detection; the slices have the sizes of `new`.
        unsafe { V::call(PackQueries { tile }) }
    }
}

fn end<V: Vector>(tile: &mut Tile<'_>) {
    if tile.form == Form::Tiled {
        // SAFETY: as in `start`.
        unsafe { V::call(Gather { tile }) }
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
