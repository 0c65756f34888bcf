//! `linear`: activations times packed matrices, cut into panels of tokens and runs of row blocks, over the threads.
//! The arithmetic is in `kernels/matmul.rs`; for many tokens in `kernels/slabs.rs` or `kernels/tiles.rs`, where a table has
//! them.

mod gated;
mod many;
mod panels;
mod slabs;
mod tiled;

use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rillm_quant::FloatType;

use self::gated::Gate;
pub(crate) use self::many::{Along, Job, many};
use self::panels::build;
use super::arena::{Arena, Piece};
use super::kernels::Kernels;
use super::kernels::matmul::{MAX_TOKENS, Tile};
use super::kernels::panel::{PANELS, Panel};
use super::kernels::vector::LANES;
use super::packed::{Codes, Packed};
use super::rows::RowsMut;
use super::source::Source;
use super::threads::{Padded, Threads};
use crate::{Activation, Error, Result};

/// Bytes of panels that are multiplied before the next ones: about half of a second-level cache.
const PANELS_IN_CACHE: usize = 1 << 20;
/// Bytes of weights of one task, at most, so that threads finish together. A thread that changes places more often
/// than this reads slower: what the processor fetches ahead is lost.
const TASK_BYTES: usize = 512 << 10;
/// Results of a run of a kernel, for 16 rows each.
const SUMS: usize = 8 * MAX_TOKENS;
/// The same where there is one token.
const TOKEN_SUMS: usize = 16;
/// Threads that keep buffers apart from each other's.
const SHELVES: usize = 16;
/// Buffers for which a thread has room without asking for memory.
const SHELF: usize = 16;
/// Tasks for each thread, if the matrices are small.
const TASKS: usize = 4;

/// How activations enter a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As 8-bit integers with a scale for each 32, or bf16 where the weights are; the accumulation is in f32.
    #[default]
    Fast,
    /// As `f32`; weights take their exact values. The same bits for any batch, chunk, instruction set and number of
    /// threads.
    Exact,
}

impl Precision {
    /// The form of `t` tokens' activations for weights of `codes`.
    fn panel(self, codes: Codes, kernels: &Kernels, t: usize) -> Panel {
        let tiled = kernels.tiles.is_some() && t >= tiled::FROM;
        match (self, codes) {
            (Self::Fast, Codes::Bits(_) | Codes::E2M1 | Codes::Float(FloatType::BF16)) if tiled => {
                Panel::Tiles
            }
            (Self::Fast, Codes::Bits(_) | Codes::E2M1) => Panel::Int8,
            (Self::Fast, Codes::Float(FloatType::BF16)) if kernels.bf16 => Panel::Bf16,
            _ => Panel::F32,
        }
    }
}

/// Buffers for panels and what tasks need for themselves, kept from one product to the next.
#[derive(Debug)]
pub(crate) struct Scratch {
    memory: Arena,
    /// A thread looks first where it gave back: nobody waits for a lock, or fetches lines that another core has written.
    free: [Padded<Mutex<Vec<Piece>>>; SHELVES],
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new(Arena::default())
    }
}

impl Scratch {
    /// None yet, in `memory`.
    pub(crate) fn new(memory: Arena) -> Self {
        Self { memory, free: std::array::from_fn(|_| Padded(Mutex::new(Vec::with_capacity(SHELF)))) }
    }

    /// The buffers given back, the calling thread's first.
    fn shelves(&self) -> impl Iterator<Item = MutexGuard<'_, Vec<Piece>>> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: usize = THREADS.fetch_add(1, Relaxed);
        }
        let own = OWN.with(|own| *own);
        let shelf = move |i: usize| &self.free[(own + i) % SHELVES].0;
        (0..SHELVES).map(move |i| shelf(i).lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A buffer of at least `len` bytes, with anything in it.
    pub(crate) fn take(&self, len: usize) -> Result<Piece> {
        for mut free in self.shelves() {
            let fits = free.iter().enumerate().filter(|(_, b)| b.bytes().len() >= len);
            if let Some((i, _)) = fits.min_by_key(|(_, b)| b.bytes().len()) {
                return Ok(free.swap_remove(i));
            }
        }
        // In powers of two, so that growing prompts don't leave a trail.
        drop(self.shelves().next().and_then(|mut free| free.pop()));
        self.memory.take(len.next_power_of_two(), "activations")
    }

    pub(crate) fn give(&self, buffer: Piece) {
        if let Some(mut free) = self.shelves().next() {
            free.push(buffer);
        }
    }
}

/// With what to compute.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// Of which instruction set.
    pub kernels: &'static Kernels,
    /// On which threads.
    pub threads: &'a Threads,
    /// How activations enter.
    pub precision: Precision,
    /// Where panels are kept.
    pub scratch: &'a Scratch,
}

/// Values that a matrix of `rows` rows spans.
fn span(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// What is done to results on their way out.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// What there is besides.
    pub residual: Residual,
}

/// What the memory of a result holds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residual {
    /// Nothing.
    None,
    /// What the result is added to.
    InPlace,
}

/// `out = source @ stacked(parts)ᵀ + bias`, for `source: [t, in]`, parts `[out_i, in]`, `bias: [sum of out_i]`,
/// `out: [t, sum of out_i]`; or the residual in `out` plus that.
///
/// # Errors
/// [`Error::Shape`] if these do not fit, [`Error::OutOfMemory`].
pub(crate) fn linear(
    ctx: &Context<'_>,
    source: &Source<'_>,
    parts: &[Packed],
    epilogue: Epilogue<'_>,
    out: RowsMut<'_>,
) -> Result<()> {
    product(ctx, source, (parts, None), epilogue, out)
}

/// Whether [`gated`] takes `parts` for `t` tokens: they are such a pair, and the tokens are not so few that reading weights
/// is what takes time, which goes best in the order of memory, the one part's after the other's.
pub(crate) fn gates(parts: &[Packed], t: usize) -> bool {
    t > MAX_TOKENS && matches!(parts, [a, b] if a.rows() == b.rows() && a.layout() == b.layout())
}

/// `out = act(source @ parts[0]ᵀ + bias[..n]) * (source @ parts[1]ᵀ + bias[n..])`, for `source: [t, in]`, two parts
/// `[n, in]`, `bias: [2 n]`, `out: [t, n]`, where [`gates`] says so.
///
/// # Errors
/// Those of [`linear`].
pub(crate) fn gated(
    ctx: &Context<'_>,
    source: &Source<'_>,
    (parts, act): (&[Packed], Activation),
    bias: Option<&[f32]>,
    out: RowsMut<'_>,
) -> Result<()> {
    assert!(gates(parts, source.shape()[0]), "a pair, and tokens enough");
    let epilogue = Epilogue { bias, residual: Residual::None };
    product(ctx, source, (parts, Some(Gate(act))), epilogue, out)
}

fn product(
    ctx: &Context<'_>,
    source: &Source<'_>,
    (parts, gate): (&[Packed], Option<Gate>),
    epilogue: Epilogue<'_>,
    out: RowsMut<'_>,
) -> Result<()> {
    let all: usize = parts.iter().map(Packed::rows).sum();
    let width = if gate.is_some() { all / 2 } else { all };
    let [t, cols] = source.shape();
    if let Some(part) = parts.iter().find(|p| p.cols() != cols) {
        return Err(shape([t, cols], [t, part.cols()]));
    }
    if let Some(bias) = epilogue.bias.filter(|b| b.len() != all) {
        return Err(shape([1, bias.len()], [1, all]));
    }
    let fits = out.stride >= out.cols && out.data.len() >= span(out.rows, out.cols, out.stride);
    if !fits || [out.rows, out.cols] != [t, width] {
        return Err(shape([out.rows, out.cols], [t, width]));
    }
    if let Some(x) = source.reads().into_iter().find(|x| x.data.len() < span(x.rows, x.cols, x.stride)) {
        return Err(shape([x.data.len() / x.cols.max(1), x.cols], [x.rows, x.cols]));
    }
    if t == 0 || width == 0 {
        return Ok(());
    }
    let mut panels = [const { None }; PANELS];
    for panel in parts.iter().map(|p| ctx.precision.panel(p.layout().codes, ctx.kernels, t)) {
        if panels[panel as usize].is_none() {
            panels[panel as usize] = Some(build(ctx, panel, source)?);
        }
    }
    let done = multiply(ctx, &Product { parts, gate, epilogue, panels: &panels, t }, out);
    panels.into_iter().flatten().for_each(|b| ctx.scratch.give(b));
    done
}

fn shape(got: [usize; 2], want: [usize; 2]) -> Error {
    Error::Shape { op: "linear", got, want }
}

/// What is multiplied.
struct Product<'a> {
    parts: &'a [Packed],
    /// Whether the first part is the second's gate.
    gate: Option<Gate>,
    epilogue: Epilogue<'a>,
    /// One of each kind that a part calls for.
    panels: &'a [Option<Piece>; PANELS],
    t: usize,
}

/// Row blocks of one part, or of a gate and what it opens, and some tokens, for one thread.
#[derive(Clone)]
struct Task {
    part: usize,
    /// Column of the result where the part starts.
    column: usize,
    blocks: Range<usize>,
    tokens: Range<usize>,
}

impl Product<'_> {
    /// What multiplies all tokens and `part` in slabs, if something does.
    fn slabs(&self, ctx: &Context<'_>, part: &Packed) -> Option<slabs::Multiply> {
        let panel = ctx.precision.panel(part.layout().codes, ctx.kernels, self.t);
        ctx.kernels.slabs.filter(|_| panel == Panel::Int8 && self.t > MAX_TOKENS)
    }

    /// Blocks and tokens of a task of `part`.
    fn size_of_task(&self, ctx: &Context<'_>, part: &Packed) -> [usize; 2] {
        let threads = ctx.threads.count();
        let blocks = || self.leading().iter().map(Packed::blocks).sum::<usize>();
        // A block of a gate brings another.
        let bring = if self.gate.is_some() { 2 } else { 1 };
        if ctx.precision.panel(part.layout().codes, ctx.kernels, self.t) == Panel::Tiles {
            return [tiled::blocks_of_task(blocks() / (TASKS * threads), bring), self.t];
        }
        if self.slabs(ctx, part).is_some() {
            return slabs::task([blocks(), self.t], threads);
        }
        let total: usize = self.parts.iter().map(Packed::bytes).sum();
        let bytes = (total / (TASKS * threads)).min(TASK_BYTES);
        [(bytes / (bring * part.layout().block_bytes()).max(1)).max(1), self.t]
    }

    /// The parts that tasks are of: a gate leads what it opens.
    fn leading(&self) -> &[Packed] {
        if self.gate.is_some() { &self.parts[..1] } else { self.parts }
    }

    fn tasks(&self, ctx: &Context<'_>) -> usize {
        let tasks = |part: &Packed| {
            let [blocks, tokens] = self.size_of_task(ctx, part);
            part.blocks().div_ceil(blocks) * self.t.div_ceil(tokens)
        };
        self.leading().iter().map(tasks).sum()
    }

    /// Task number `index`.
    fn task(&self, ctx: &Context<'_>, mut index: usize) -> Option<Task> {
        let mut column = 0;
        for (part, packed) in self.leading().iter().enumerate() {
            let (all, [blocks, tokens]) = (packed.blocks(), self.size_of_task(ctx, packed));
            let ranges = self.t.div_ceil(tokens);
            let tasks = all.div_ceil(blocks) * ranges;
            if index < tasks {
                let [first, token] = [index / ranges * blocks, index % ranges * tokens];
                let (blocks, tokens) = (first..all.min(first + blocks), token..self.t.min(token + tokens));
                return Some(Task { part, column, blocks, tokens });
            }
            index -= tasks;
            column += packed.rows();
        }
        None
    }

    /// Multiplies the blocks of `task` and writes the results to `out`.
    fn run(&self, ctx: &Context<'_>, task: &Task, out: &Out<'_>) -> Result<()> {
        let part = &self.parts[task.part];
        let layout = part.layout();
        let panel = ctx.precision.panel(layout.codes, ctx.kernels, self.t);
        let Some(x) = &self.panels[panel as usize] else { return Ok(()) };
        if let (Panel::Tiles, Some(tiles)) = (panel, &ctx.kernels.tiles) {
            return self.run_tiles(ctx, tiles, task, x.bytes(), out);
        }
        if let Some(slabs) = self.slabs(ctx, part) {
            self.run_slabs([slabs, ctx.kernels.multiply], task, x.bytes(), out);
        } else if self.t == 1 {
            self.run_token(ctx, task, (panel, x.bytes()), out);
        } else {
            self.run_panels(ctx, task, (panel, x.bytes()), out);
        }
        Ok(())
    }

    /// [`run`](Self::run) of the only token: its results lie one after the other.
    fn run_token(&self, ctx: &Context<'_>, task: &Task, (panel, x): (Panel, &[u8]), out: &Out<'_>) {
        let part = &self.parts[task.part];
        let layout = part.layout();
        let x = &x[..layout.units * panel.unit_bytes()];
        let multiply = |blocks: Range<usize>, out: &mut [[f32; LANES]]| {
            (ctx.kernels.multiply)(Tile { blocks: part.run(blocks), layout, panel, slots: 1, x, out });
        };
        let rows = task.blocks.start * LANES..part.rows().min(task.blocks.end * LANES);
        // SAFETY: see `multiply`.
        let results = unsafe { out.row([0, task.column + rows.start], rows.len()) };
        if out.is_plain()
            && let (whole, []) = results.as_chunks_mut()
        {
            return multiply(task.blocks.clone(), whole);
        }
        let mut sums = [[0.0; LANES]; TOKEN_SUMS];
        let starts = task.blocks.clone().step_by(TOKEN_SUMS);
        for (from, results) in starts.zip(results.chunks_mut(TOKEN_SUMS * LANES)) {
            let blocks = from..task.blocks.end.min(from + TOKEN_SUMS);
            let sums = &mut sums[..blocks.len()];
            multiply(blocks, sums);
            let sums = &mut sums.as_flattened_mut()[..results.len()];
            out.take(task.column + from * LANES, sums, results);
        }
    }

    /// [`run`](Self::run) panel by panel of `x`.
    fn run_panels(&self, ctx: &Context<'_>, task: &Task, (panel, x): (Panel, &[u8]), out: &Out<'_>) {
        let part = &self.parts[task.part];
        let layout = part.layout();
        let token_bytes = layout.units * panel.unit_bytes();
        let in_cache = (PANELS_IN_CACHE / token_bytes.max(1)).max(MAX_TOKENS) / MAX_TOKENS * MAX_TOKENS;
        let mut sums = [[0.0; LANES]; SUMS];
        // Blocks that meet one panel at a time, or panels that meet one block.
        let step = if self.t <= MAX_TOKENS { SUMS / panel.all_slots(self.t) } else { 1 };
        for first in (0..self.t).step_by(in_cache) {
            let last = self.t.min(first + in_cache);
            for from in task.blocks.clone().step_by(step) {
                let blocks = from..task.blocks.end.min(from + step);
                let mut start = first;
                while start < last {
                    let slots = panel.slots(self.t - start);
                    let tokens = ((last - start) / slots).clamp(1, SUMS / slots / blocks.len()) * slots;
                    let x = &x[start * token_bytes..][..tokens * token_bytes];
                    let sums = &mut sums[..blocks.len() * tokens];
                    let tile = Tile { blocks: part.run(blocks.clone()), layout, panel, slots, x, out: sums };
                    (ctx.kernels.multiply)(tile);
                    for (block, sums) in blocks.clone().zip(sums.chunks_exact(tokens)) {
                        let rows = LANES.min(part.rows() - block * LANES);
                        for (i, sums) in sums.iter().enumerate().take(self.t - start) {
                            // SAFETY: see `multiply`.
                            unsafe { out.put([start + i, task.column + block * LANES], sums, rows) };
                        }
                    }
                    start += tokens;
                }
            }
        }
    }
}

/// Results that tasks write to different columns, or rows, of at the same time.
struct Out<'a> {
    /// Where those of token 0 and column 0 are, or would be.
    data: *mut f32,
    stride: usize,
    epilogue: Epilogue<'a>,
}

// SAFETY: what is written through the pointer is disjoint: see `multiply`.
unsafe impl Sync for Out<'_> {}

impl Out<'_> {
    /// The `n` results of token `t` from column `column` on.
    ///
    /// # Safety
    /// They lie in the result, and nobody else reads or writes them.
    #[expect(clippy::mut_from_ref, reason = "tasks have different columns or rows")]
    unsafe fn row(&self, [t, column]: [usize; 2], n: usize) -> &mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(t * self.stride + column), n) }
    }

    /// Whether results are the sums alone.
    fn is_plain(&self) -> bool {
        self.epilogue.bias.is_none() && self.epilogue.residual == Residual::None
    }

    /// Takes `sums` as `results`, as many, from column `column` on of a token.
    #[inline(always)]
    fn take(&self, column: usize, sums: &mut [f32], results: &mut [f32]) {
        if let Some(bias) = self.epilogue.bias {
            sums.iter_mut().zip(&bias[column..]).for_each(|(y, b)| *y += b);
        }
        match self.epilogue.residual {
            Residual::None => results.copy_from_slice(sums),
            Residual::InPlace => results.iter_mut().zip(sums).for_each(|(to, y)| *to += *y),
        }
    }

    /// Takes the first `n` of `sums` as results of token `t` from column `column` on.
    ///
    /// # Safety
    /// They lie in the result, and nobody else reads or writes them.
    #[inline(always)]
    unsafe fn put(&self, [t, column]: [usize; 2], sums: &[f32; LANES], n: usize) {
        let mut sums = *sums;
        // SAFETY: the caller's contract.
        let results = unsafe { self.row([t, column], n) };
        // A whole block is an array.
        match results.as_mut_array::<LANES>() {
            Some(results) => self.take(column, &mut sums, results),
            None => self.take(column, &mut sums[..n], results),
        }
    }
}

fn multiply(ctx: &Context<'_>, product: &Product<'_>, out: RowsMut<'_>) -> Result<()> {
    // `product` has checked that `out` has `t` rows of the parts' columns, or of the gate's, apart by the stride; tasks have
    // different blocks, so different columns, or the same blocks and different tokens, so different rows; each task runs once.
    let out = Out { data: out.data.as_mut_ptr(), stride: out.stride, epilogue: product.epilogue };
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    ctx.threads.run(product.tasks(ctx), &|index| {
        let Some(task) = product.task(ctx, index) else { return };
        let done = match product.gate {
            Some(gate) => product.run_gated(ctx, gate, &task, &out),
            None => product.run(ctx, &task, &out),
        };
        if let Err(error) = done {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
