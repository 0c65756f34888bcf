//! `attention`: which cached keys each query sees, cut into tiles of queries and chunks of keys, over the threads.
//! The arithmetic is in `kernels/attention.rs`.
//!
//! A row's result is a fold over chunks of positions, each of which is a fold over blocks; both lie where they lie in
//! every sequence, so the result does not depend on the rows beside it, on how the prompt was chunked, or on the threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use super::SERIAL;
use super::kernels::attention::{
    BLOCK, CachedHead, Form, MAX_ROWS, Scoring, Seen, State, TILE_ROWS, Tile, padded,
};
use super::kernels::vector::LANES;
use super::matmul::{Context, Precision};
use super::rows::{Rows, RowsMut};
use super::tensor::KvData;
use crate::{AttnParams, Error, KvLayout, Result};

/// Blocks of a chunk: of positions that are summed up by themselves before they join those before them, which is what one
/// thread does of a sequence at a time. The first so many blocks are chunks each, so that threads share short sequences too;
/// those after them are longer, so that the sums of long ones are few.
const CHUNK: usize = 4;
/// Tasks for each thread below which long sequences are divided among threads.
const TASKS: usize = 4;
/// Floats that the sums of divided sequences may take.
const PARTIALS: usize = 1 << 24;

/// How positions are cut into chunks.
#[derive(Clone, Copy)]
struct Chunks {
    /// Those that are shorter, and make one of the others.
    short: usize,
}

impl Chunks {
    /// Where chunk `i` begins.
    const fn start(self, i: usize) -> usize {
        let Self { short } = self;
        if i < short { i * (CHUNK / short) * BLOCK } else { (i - short + 1) * CHUNK * BLOCK }
    }

    /// Chunks that end at or before `len`.
    const fn whole(self, len: usize) -> usize {
        let Self { short } = self;
        let blocks = len / BLOCK;
        if blocks < CHUNK { blocks / (CHUNK / short) } else { short - 1 + blocks / CHUNK }
    }

    /// Chunks of `len` positions, the last of which may lack some.
    const fn of(self, len: usize) -> usize {
        let whole = self.whole(len);
        if self.start(whole) < len { whole + 1 } else { whole }
    }
}

/// What the queries of one span meet.
#[derive(Clone, Debug)]
pub(crate) struct SpanView<'a> {
    /// Rows of the queries.
    pub rows: Range<usize>,
    /// Keys, `[slots, kv_heads * head_dim]`.
    pub k: KvData<'a>,
    /// Values, `[slots, kv_heads * v_head_dim]`.
    pub v: KvData<'a>,
    /// Which slot holds which position.
    pub layout: KvLayout,
    /// A query sees positions `< sink` besides its window.
    pub sink: usize,
    /// The cache's window; the narrower of this and the layer's counts.
    pub window: Option<usize>,
}

/// Attention of the rows of `q` that the spans name, `[t, heads * head_dim]`, into the same rows of `out`,
/// `[t, heads * v_head_dim]`. The caller has checked that heads, widths, rows and slots fit.
///
/// # Errors
/// [`Error::OutOfMemory`] for scratch memory.
pub(crate) fn attention(
    ctx: &Context<'_>,
    q: Rows<'_>,
    spans: &[SpanView<'_>],
    (p, sinks): (&AttnParams, Option<&[f32]>),
    out: RowsMut<'_>,
) -> Result<()> {
    assert!(q.cols == p.q_dim() && out.cols == p.out_dim() && p.heads.is_multiple_of(p.kv_heads));
    assert!(sinks.is_none_or(|s| s.len() == p.heads));
    assert!(spans.iter().all(|s| s.rows.end <= q.rows.min(out.rows) && s.rows.len() <= s.layout.len));
    let stride = out.stride;
    let target = Shared(out.data.as_mut_ptr());
    let work = Work { ctx, q, spans, p, sinks, parts: None, out: target, out_stride: stride };
    assert!(q.rows == 0 || (out.rows - 1) * stride + out.cols <= out.data.len());
    let whole = work.tasks();
    let divided = Work { parts: Some(Shared(std::ptr::null_mut())), ..work };
    let floats = divided.partials();
    let few = ctx.threads.count() > 1 && whole < TASKS * ctx.threads.count();
    // Keys that are read once are read in the order of memory.
    let once = spans.iter().all(|s| s.rows.len() <= work.tile_queries());
    let divides = spans.iter().any(|s| divided.parts_of(s) > 1);
    if !(few || once) || !divides || floats > PARTIALS {
        return work.run(whole);
    }
    let mut buffer = ctx.scratch.take(floats * size_of::<f32>())?;
    let divided = Work { parts: Some(Shared(buffer.values_mut::<f32>().as_mut_ptr())), ..divided };
    divided.run(divided.tasks())?;
    let results = spans.iter().map(|s| s.rows.len()).sum::<usize>() * p.heads;
    let merge = |i| divided.merge(i / p.heads, i % p.heads);
    if floats < SERIAL {
        (0..results).for_each(merge);
    } else {
        ctx.threads.run(results, &merge);
    }
    ctx.scratch.give(buffer);
    Ok(())
}

/// Memory that tasks write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: each task makes slices only of the rows and heads that are its own, while `attention` holds the memory
// exclusively.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// One call of [`attention`]; a task is one key head of one tile of queries. With `parts` it is one chunk of them, of one
/// key head or of all of them: see [`Work::whole_parts_of`].
#[derive(Clone, Copy)]
struct Work<'a> {
    ctx: &'a Context<'a>,
    q: Rows<'a>,
    spans: &'a [SpanView<'a>],
    p: &'a AttnParams,
    /// One score a head, without a value.
    sinks: Option<&'a [f32]>,
    /// Where the sums over chunks go until they are merged, if sequences are divided.
    parts: Option<Shared>,
    out: Shared,
    out_stride: usize,
}

/// What a task does.
struct Task<'a> {
    span: &'a SpanView<'a>,
    /// Its queries, counted in the span.
    queries: Range<usize>,
    kv_heads: Range<usize>,
    chunks: Range<usize>,
    /// The partial sums of the span's first row begin here.
    partials: usize,
}

impl<'a> Work<'a> {
    fn group(&self) -> usize {
        self.p.heads / self.p.kv_heads
    }

    /// Whether products may go through tile registers.
    fn tiled(&self) -> bool {
        self.ctx.precision == Precision::Fast && self.ctx.kernels.tiles.is_some()
    }

    /// Queries of a tile.
    fn tile_queries(&self) -> usize {
        (if self.tiled() { MAX_ROWS } else { TILE_ROWS } / self.group()).max(1)
    }

    /// How a span's positions are cut. Tile registers take the short chunks together: bringing sums out of them takes time,
    /// and prompts have tasks enough.
    fn chunks(&self, span: &SpanView<'_>) -> Chunks {
        let rows = span.rows.len().min(self.tile_queries()) * self.group();
        Chunks { short: if Form::of(rows, self.tiled()) == Form::Tiled { 1 } else { CHUNK } }
    }

    /// Chunks of a span that are tasks of their own.
    fn parts_of(&self, span: &SpanView<'_>) -> usize {
        if self.parts.is_some() { self.chunks(span).of(span.layout.len) } else { 1 }
    }

    /// Chunks of a span, from its first, that are tasks with all of their heads: as many as give every thread the same work,
    /// where that is reading the cache as it lies, and all of it.
    fn whole_parts_of(&self, span: &SpanView<'_>) -> usize {
        let rows = span.rows.len().min(self.tile_queries()) * self.group();
        let dims = [self.p.head_dim, self.p.v_head_dim];
        let in_order = Form::of(rows, self.tiled()) == Form::Rows && dims == dims.map(padded);
        let first = self.p.first_seen(span.layout.len.saturating_sub(1), self.p.narrower(span.window));
        if self.parts.is_none() || !in_order || first > 0 {
            return 0;
        }
        let (whole, threads) = (self.chunks(span).whole(span.layout.len), self.ctx.threads.count());
        if threads == 1 { self.parts_of(span) } else { whole - whole % threads }
    }

    fn tasks_of_tile(&self, span: &SpanView<'_>) -> usize {
        let whole = self.whole_parts_of(span);
        whole + (self.parts_of(span) - whole) * self.p.kv_heads
    }

    fn tasks_of(&self, span: &SpanView<'_>) -> usize {
        span.rows.len().div_ceil(self.tile_queries()) * self.tasks_of_tile(span)
    }

    fn tasks(&self) -> usize {
        self.spans.iter().map(|s| self.tasks_of(s)).sum()
    }

    /// Floats of a running softmax: the padded head, `m`, `l`.
    fn state(&self) -> usize {
        padded(self.p.v_head_dim) + LANES
    }

    /// Floats of the partial sums of a span.
    fn partials_of(&self, span: &SpanView<'_>) -> usize {
        span.rows.len() * self.p.heads * self.parts_of(span) * self.state()
    }

    fn partials(&self) -> usize {
        self.spans.iter().map(|s| self.partials_of(s)).sum()
    }

    fn run(&self, tasks: usize) -> Result<()> {
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        self.ctx.threads.run_in_order(tasks, &|i| {
            // The last tiles of a prompt see most: they go first. Chunks go in the order of memory.
            let i = if self.parts.is_some() { i } else { tasks - 1 - i };
            if let Some(task) = self.task(i)
                && let Err(error) = self.attend(&task)
            {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn task(&self, mut i: usize) -> Option<Task<'a>> {
        let mut partials = 0;
        for span in self.spans {
            let tasks = self.tasks_of(span);
            if i >= tasks {
                i -= tasks;
                partials += self.partials_of(span);
                continue;
            }
            let (tile, i) = (i / self.tasks_of_tile(span), i % self.tasks_of_tile(span));
            let (whole, kv_heads) = (self.whole_parts_of(span), self.p.kv_heads);
            let (part, heads) = if i < whole {
                (i, 0..kv_heads)
            } else {
                // Heads of a chunk follow each other: their keys share pages, and lines of cache at their edges.
                let head = (i - whole) % kv_heads;
                (whole + (i - whole) / kv_heads, head..head + 1)
            };
            let first = tile * self.tile_queries();
            return Some(Task {
                span,
                queries: first..span.rows.len().min(first + self.tile_queries()),
                kv_heads: heads,
                chunks: if self.parts.is_some() {
                    part..part + 1
                } else {
                    0..self.chunks(span).of(span.layout.len)
                },
                partials,
            });
        }
        None
    }

    /// Does a task.
    fn attend(&self, task: &Task<'_>) -> Result<()> {
        let (group, head_dim) = (self.group(), self.p.head_dim);
        let dims = [head_dim, self.p.v_head_dim];
        let (rows, width) = (task.queries.len() * group, padded(self.p.v_head_dim));
        let form = Form::of(rows, self.tiled());
        if form == Form::Rows {
            self.ask(task);
        }
        let (floats, states) = (Tile::floats(form, rows, dims), rows * self.state());
        let mut buffer = self.ctx.scratch.take(task.kv_heads.len() * (floats + states) * size_of::<f32>())?;
        let (memory, totals) = buffer.values_mut::<f32>().split_at_mut(task.kv_heads.len() * floats);
        let totals = &mut totals[..task.kv_heads.len() * states];
        totals.fill(0.0);
        let mut tiles: SmallVec<[Tile<'_>; 8]> = SmallVec::new();
        for (kv_head, memory) in task.kv_heads.clone().zip(memory.chunks_exact_mut(floats)) {
            let mut tile = Tile::new(memory, form, [task.queries.len(), group], dims);
            for row in 0..rows {
                let q = self.q.row(task.span.rows.start + task.queries.start + row / group);
                tile.set_query(row, &q[self.head(kv_head, row) * head_dim..][..head_dim]);
            }
            (self.ctx.kernels.attention.start)(&mut tile);
            tiles.push(tile);
        }
        let cut = self.chunks(task.span);
        for chunk in task.chunks.clone() {
            tiles.iter_mut().for_each(Tile::clear);
            self.chunk(task, &mut tiles, cut.start(chunk)..cut.start(chunk + 1));
            for (tile, totals) in tiles.iter_mut().zip(totals.chunks_exact_mut(states)) {
                (self.ctx.kernels.attention.end)(tile);
                for (row, total) in totals.chunks_exact_mut(self.state()).enumerate() {
                    self.merge_into(total, &tile.o[row * width..][..width], tile.m[row], tile.l[row]);
                }
            }
        }
        for (kv_head, totals) in task.kv_heads.clone().zip(totals.chunks_exact(states)) {
            for (row, total) in totals.chunks_exact(self.state()).enumerate() {
                self.leave(task, self.head(kv_head, row), row, total);
            }
        }
        drop(tiles);
        self.ctx.scratch.give(buffer);
        Ok(())
    }

    /// Asks for the first keys of a task, as far as they are a block's: the others are asked for meanwhile.
    fn ask(&self, task: &Task<'_>) {
        let Task { span, queries, kv_heads, chunks, .. } = task;
        let at = span.layout.len - span.rows.len() + queries.start;
        let first =
            self.p.first_seen(at, self.p.narrower(span.window)).max(self.chunks(span).start(chunks.start));
        let end = span.layout.len.min((first / BLOCK + 1) * BLOCK);
        let [k, _] = self.cached(span, kv_heads.start, first);
        (self.ctx.kernels.attention.ask)(k, kv_heads.len(), end.saturating_sub(first));
    }

    /// What a task found for row `row` of a tile, which is one of head `head`.
    fn leave(&self, task: &Task<'_>, head: usize, row: usize, total: &[f32]) {
        let query = task.queries.start + row / self.group();
        let Some(parts) = self.parts else {
            return self.finish(task.span.rows.start + query, head, total);
        };
        let at = (query * self.p.heads + head) * self.parts_of(task.span) + task.chunks.start;
        // SAFETY: `attention` made room for a state for each row, head and chunk of each span; this task alone has this
        // head and chunk of these rows.
        let part = unsafe {
            let first = parts.0.add(task.partials + at * self.state());
            std::slice::from_raw_parts_mut(first, self.state())
        };
        part.copy_from_slice(total);
    }

    /// The head of row `row` of a tile of key head `kv_head`.
    fn head(&self, kv_head: usize, row: usize) -> usize {
        kv_head * self.group() + row % self.group()
    }

    /// Takes what the queries see of `positions` into the tiles, one for each of the task's key heads.
    fn chunk(&self, task: &Task<'_>, tiles: &mut [Tile<'_>], positions: Range<usize>) {
        let Task { span, queries, .. } = task;
        let window = self.p.narrower(span.window);
        let at = |query: usize| span.layout.len - span.rows.len() + query;
        for region in regions(&span.layout, span.sink) {
            let of = |query| {
                let first = if region.for_ever { 0 } else { self.p.first_seen(at(query), window) };
                let seen = region.from.max(first)..region.to.min(at(query) + 1);
                seen.start.max(positions.start)..seen.end.min(positions.end)
            };
            let (lo, hi) = (of(queries.start).start, of(queries.end - 1).end);
            let mut block = lo / BLOCK * BLOCK;
            while block < hi {
                let mut seen = [Seen { lo: 0, hi: 0 }; MAX_ROWS];
                for (seen, query) in seen.iter_mut().zip(queries.clone()) {
                    let of = of(query);
                    let within = |x: usize| x.clamp(block, block + BLOCK) - block;
                    *seen = Seen { lo: within(of.start), hi: within(of.end) };
                }
                let positions = lo.max(block)..hi.min(block + BLOCK);
                self.block(task, tiles, &seen[..queries.len()], block, positions);
                block += BLOCK;
            }
        }
    }

    /// Takes `positions`, of the block that begins at `block`, into the tiles.
    fn block(
        &self,
        task: &Task<'_>,
        tiles: &mut [Tile<'_>],
        seen: &[Seen],
        block: usize,
        positions: Range<usize>,
    ) {
        let (kernels, dims) = (&self.ctx.kernels, [self.p.head_dim, self.p.v_head_dim]);
        let scoring = Scoring { scale: self.p.scale, softcap: self.p.softcap };
        // Consecutive slots.
        let in_a_row = Self::run_end(&task.span.layout, positions.start) >= positions.end;
        if in_a_row && tiles.iter().all(|tile| tile.reads_cached(dims)) {
            let cached = self.cached(task.span, task.kv_heads.start, positions.start);
            return (kernels.attention.cached_block)(tiles, seen, scoring, cached);
        }
        for (kv_head, tile) in task.kv_heads.clone().zip(tiles) {
            self.load((task.span, kv_head), tile, block, positions.clone());
            let strips = kernels.tiles.as_ref().map(|t| t.strips);
            (kernels.attention.block)(tile, seen, scoring, strips);
        }
    }

    /// Up to which position those from `from` on lie in consecutive slots: the end of the kept ones, or of the ring.
    fn run_end(layout: &KvLayout, from: usize) -> usize {
        if from < layout.keep { layout.keep } else { from + (layout.keep + layout.ring - layout.slot(from)) }
    }

    /// The keys and values of key head `kv_head` from `position` on.
    fn cached<'d>(&self, span: &SpanView<'d>, kv_head: usize, position: usize) -> [CachedHead<'d>; 2] {
        let slot = span.layout.slot(position);
        let of = |data, head_dim: usize| {
            let stride = self.p.kv_heads * head_dim;
            CachedHead { data, at: slot * stride + kv_head * head_dim, stride, head_dim }
        };
        [of(span.k, self.p.head_dim), of(span.v, self.p.v_head_dim)]
    }

    /// Loads the keys and values at `positions` into the block that begins at `block`.
    fn load(
        &self,
        (span, kv_head): (&SpanView<'_>, usize),
        tile: &mut Tile<'_>,
        block: usize,
        positions: Range<usize>,
    ) {
        let mut from = positions.start;
        while from < positions.end {
            let end = Self::run_end(&span.layout, from).min(positions.end);
            let rows = |dim: usize| (from - block) * padded(dim)..(end - block) * padded(dim);
            let [k, v] = self.cached(span, kv_head, from);
            (self.ctx.kernels.attention.load)(k, &mut tile.k[rows(self.p.head_dim)]);
            (self.ctx.kernels.attention.load)(v, &mut tile.v[rows(self.p.v_head_dim)]);
            from = end;
        }
    }

    /// Merges the partial sums of row `row` of all spans and head `head` into `out`.
    fn merge(&self, mut row: usize, head: usize) {
        let (Some(parts), mut partials) = (self.parts, 0) else { return };
        for span in self.spans {
            if row >= span.rows.len() {
                row -= span.rows.len();
                partials += self.partials_of(span);
                continue;
            }
            let count = self.parts_of(span);
            let at = partials + (row * self.p.heads + head) * count * self.state();
            // SAFETY: the tasks that wrote these states have ended, and this task alone has this row and head.
            let states = unsafe { std::slice::from_raw_parts_mut(parts.0.add(at), count * self.state()) };
            let (total, rest) = states.split_at_mut(self.state());
            for part in rest.chunks_exact(self.state()) {
                let (o, last) = part.split_at(padded(self.p.v_head_dim));
                self.merge_into(total, o, last[0], last[1]);
            }
            return self.finish(span.rows.start + row, head, total);
        }
    }

    /// Merges a running softmax into `total`, a state.
    fn merge_into(&self, total: &mut [f32], part: &[f32], m: f32, l: f32) {
        if let Some((o, [total_m, total_l, ..])) = total.split_at_mut_checked(part.len()) {
            (self.ctx.kernels.attention.merge)(State { o, m: total_m, l: total_l }, part, m, l);
        }
    }

    /// Writes the result of a row and head.
    fn finish(&self, row: usize, head: usize, total: &[f32]) {
        let (o, last) = total.split_at(padded(self.p.v_head_dim));
        let at = row * self.out_stride + head * self.p.v_head_dim;
        // SAFETY: `attention` has checked that the rows fit; this task alone has this row and head.
        let out = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), self.p.v_head_dim) };
        let l = match self.sinks {
            // What is nothing beside an infinite sink becomes 0.
            Some(sinks) if last[1] > 0.0 => last[1] + (sinks[head] - last[0]).exp(),
            _ => last[1],
        };
        (self.ctx.kernels.attention.finish)(o, l, out);
    }
}

/// Positions `from..to` of which a query sees one interval that ends with its own position.
struct Region {
    from: usize,
    to: usize,
    /// Whether windows and chunks do not hide them.
    for_ever: bool,
}

/// The stored positions in order: those that are seen as sinks, in whole or in part, then the others.
fn regions(layout: &KvLayout, sink: usize) -> [Region; 3] {
    let KvLayout { len, keep, .. } = *layout;
    let oldest = layout.oldest();
    let between = if sink < keep {
        // Kept, but seen only through the window.
        Region { from: sink, to: keep, for_ever: false }
    } else {
        // Seen for ever, as long as they are stored.
        Region { from: keep.max(oldest), to: sink, for_ever: true }
    };
    [
        Region { from: 0, to: sink.min(keep), for_ever: true },
        between,
        Region { from: sink.max(keep).max(oldest), to: len, for_ever: false },
    ]
}

#[cfg(test)]
mod tests;
