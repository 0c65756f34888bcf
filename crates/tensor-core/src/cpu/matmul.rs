//! `linear`: activations times packed matrices, cut into panels of tokens and runs of row blocks, over the threads.
//! The arithmetic is in `kernels/matmul.rs`.

use std::sync::{Mutex, PoisonError};

use rillm_quant::FloatType;

use super::attention::as_floats;
use super::buffer::Buffer;
use super::kernels::Kernels;
use super::kernels::matmul::{MAX_TOKENS, Tile};
use super::kernels::panel::{Panel, Tokens};
use super::kernels::vector::LANES;
use super::packed::{Codes, Packed, UNIT};
use super::rows::RowsMut;
use super::source::Source;
use super::threads::Threads;
use crate::{Error, Result};

/// Bytes of panels that are multiplied before the next ones: about half of a second-level cache.
const PANELS_IN_CACHE: usize = 1 << 20;
/// Bytes of weights of one task, at most, so that threads finish together.
const TASK_BYTES: usize = 128 << 10;
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
    /// The form of activations for weights of `codes`.
    fn panel(self, codes: Codes, kernels: &Kernels) -> Panel {
        match (self, codes) {
            (Self::Fast, Codes::Bits(_) | Codes::E2M1) => Panel::Int8,
            (Self::Fast, Codes::Float(FloatType::BF16)) if kernels.bf16 => Panel::Bf16,
            _ => Panel::F32,
        }
    }
}

/// Buffers for panels, kept from one product to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Mutex<Vec<Buffer>>);

impl Scratch {
    /// A buffer of at least `len` bytes, with anything in it.
    pub(crate) fn take(&self, len: usize) -> Result<Buffer> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = free.iter().enumerate().filter(|(_, b)| b.bytes().len() >= len);
        match fits.min_by_key(|(_, b)| b.bytes().len()).map(|(i, _)| i) {
            Some(i) => Ok(free.swap_remove(i)),
            // In powers of two, so that growing prompts don't leave a trail.
            None => {
                free.pop();
                Buffer::zeroed(len.next_power_of_two(), "activations")
            }
        }
    }

    pub(crate) fn give(&self, buffer: Buffer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
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
    let width: usize = parts.iter().map(Packed::rows).sum();
    let [t, cols] = source.shape();
    if let Some(part) = parts.iter().find(|p| p.cols() != cols) {
        return Err(shape([t, cols], [t, part.cols()]));
    }
    if let Some(bias) = epilogue.bias.filter(|b| b.len() != width) {
        return Err(shape([1, bias.len()], [1, width]));
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
    let mut panels: [Option<Buffer>; 3] = [None, None, None];
    for panel in parts.iter().map(|p| ctx.precision.panel(p.layout().codes, ctx.kernels)) {
        if panels[panel as usize].is_none() {
            panels[panel as usize] = Some(build(ctx, panel, source)?);
        }
    }
    multiply(ctx, &Product { parts, epilogue, panels: &panels, t }, out);
    panels.into_iter().flatten().for_each(|b| ctx.scratch.give(b));
    Ok(())
}

fn shape(got: [usize; 2], want: [usize; 2]) -> Error {
    Error::Shape { op: "linear", got, want }
}

/// Tokens of the panel that starts at token `start` of `t`.
fn tile_tokens(panel: Panel, start: usize, t: usize) -> usize {
    let most = if panel == Panel::Int8 { MAX_TOKENS } else { MAX_TOKENS / 2 };
    let left = (t - start).min(most);
    1 << left.ilog2()
}

/// All panels of what `source` makes. That of the tokens from `start` is at `start * units * unit_bytes`.
fn build(ctx: &Context<'_>, panel: Panel, source: &Source<'_>) -> Result<Buffer> {
    let [t, cols] = source.shape();
    let token_bytes = cols.div_ceil(UNIT) * panel.unit_bytes();
    let mut buffer = ctx.scratch.take(token_bytes * t)?;
    let bytes = &mut buffer.bytes_mut()[..token_bytes * t];
    if t < 2 * MAX_TOKENS || bytes.is_empty() {
        tiles(ctx, panel, source, 0, bytes)?;
        return Ok(buffer);
    }
    // Runs of `MAX_TOKENS` tokens start where panels start.
    let runs = Mutex::new(bytes.chunks_mut(token_bytes * MAX_TOKENS).enumerate());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    ctx.threads.run(t.div_ceil(MAX_TOKENS), &|_| {
        let claimed = runs.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((run, bytes)) = claimed else { return };
        if let Err(error) = tiles(ctx, panel, source, run * MAX_TOKENS, bytes) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(buffer),
    }
}

/// The panels of the tokens from `first` on that fill `out`. Rows that have to be made become a panel while they are
/// in cache.
fn tiles(
    ctx: &Context<'_>,
    panel: Panel,
    source: &Source<'_>,
    first: usize,
    mut out: &mut [u8],
) -> Result<()> {
    let [t, cols] = source.shape();
    let token_bytes = cols.div_ceil(UNIT) * panel.unit_bytes();
    let mut start = first;
    let mut scratch = match source {
        Source::Rows(_) => None,
        _ => Some(ctx.scratch.take(MAX_TOKENS.min(t - first) * cols * size_of::<f32>())?),
    };
    while !out.is_empty() {
        let tokens = tile_tokens(panel, start, t);
        let (bytes, rest) = out.split_at_mut(tokens * token_bytes);
        let rows = match (source, &mut scratch) {
            (Source::Rows(x), _) => {
                Tokens { data: &x.data[start * x.stride..], tokens, cols, stride: x.stride }
            }
            (_, Some(made)) => {
                let made = &mut as_floats(made)[..tokens * cols];
                for (i, row) in made.chunks_exact_mut(cols).enumerate() {
                    source.make(&ctx.kernels.elementwise, start + i, row);
                }
                Tokens { data: made, tokens, cols, stride: cols }
            }
            (_, None) => break,
        };
        (ctx.kernels.panel)(panel, rows, bytes);
        start += tokens;
        out = rest;
    }
    scratch.into_iter().for_each(|b| ctx.scratch.give(b));
    Ok(())
}

/// What is multiplied.
struct Product<'a> {
    parts: &'a [Packed],
    epilogue: Epilogue<'a>,
    panels: &'a [Option<Buffer>; 3],
    t: usize,
}

/// Row blocks of one part, for one thread.
struct Task {
    part: usize,
    /// Column of the result where the part starts.
    column: usize,
    blocks: std::ops::Range<usize>,
}

impl Product<'_> {
    /// Blocks of a task of `part`.
    fn blocks_of_task(&self, part: &Packed, threads: usize) -> usize {
        let total: usize = self.parts.iter().map(Packed::bytes).sum();
        let bytes = (total / (TASKS * threads)).min(TASK_BYTES);
        (bytes / part.layout().block_bytes().max(1)).max(1)
    }

    fn tasks(&self, threads: usize) -> usize {
        self.parts.iter().map(|p| p.blocks().div_ceil(self.blocks_of_task(p, threads))).sum()
    }

    /// Task number `index`.
    fn task(&self, mut index: usize, threads: usize) -> Option<Task> {
        let mut column = 0;
        for (part, packed) in self.parts.iter().enumerate() {
            let (blocks, step) = (packed.blocks(), self.blocks_of_task(packed, threads));
            let tasks = blocks.div_ceil(step);
            if index < tasks {
                let blocks = index * step..blocks.min((index + 1) * step);
                return Some(Task { part, column, blocks });
            }
            index -= tasks;
            column += packed.rows();
        }
        None
    }

    /// Multiplies the blocks of `task`, and hands each 16 results of a token to `emit` with their token and column.
    fn run(&self, ctx: &Context<'_>, task: &Task, emit: &mut dyn FnMut(usize, usize, &[f32])) {
        let part = &self.parts[task.part];
        let layout = part.layout();
        let panel = ctx.precision.panel(layout.codes, ctx.kernels);
        let Some(x) = &self.panels[panel as usize] else { return };
        let token_bytes = layout.units * panel.unit_bytes();
        let in_cache = (PANELS_IN_CACHE / token_bytes.max(1)).max(MAX_TOKENS) / MAX_TOKENS * MAX_TOKENS;
        let mut out = [[0.0; LANES]; MAX_TOKENS];
        for first in (0..self.t).step_by(in_cache) {
            let last = self.t.min(first + in_cache);
            for block in task.blocks.clone() {
                let rows = LANES.min(part.rows() - block * LANES);
                let column = task.column + block * LANES;
                let mut start = first;
                while start < last {
                    let tokens = tile_tokens(panel, start, self.t);
                    let x = &x.bytes()[start * token_bytes..];
                    let out = &mut out[..tokens];
                    (ctx.kernels.multiply)(Tile { block: part.block(block), layout, panel, x, out });
                    for (i, row) in out.iter_mut().enumerate() {
                        if let Some(bias) = self.epilogue.bias {
                            row.iter_mut().zip(&bias[column..][..rows]).for_each(|(y, b)| *y += b);
                        }
                        emit(start + i, column, &row[..rows]);
                    }
                    start += tokens;
                }
            }
        }
    }
}

/// Results that tasks write to different columns of at the same time.
struct Shared {
    data: *mut f32,
    stride: usize,
}

// SAFETY: what is written through the pointer is disjoint: see `multiply`.
unsafe impl Sync for Shared {}

impl Shared {
    /// Adds `values` to row `t` from column `column`, or writes them there.
    ///
    /// # Safety
    /// They lie in the result, and nobody else reads or writes them.
    unsafe fn write(&self, t: usize, column: usize, values: &[f32], residual: Residual) {
        // SAFETY: the caller's contract.
        unsafe {
            let to = self.data.add(t * self.stride + column);
            match residual {
                Residual::None => std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()),
                Residual::InPlace => values.iter().enumerate().for_each(|(i, y)| *to.add(i) += y),
            }
        }
    }
}

fn multiply(ctx: &Context<'_>, product: &Product<'_>, out: RowsMut<'_>) {
    let threads = ctx.threads.count();
    let shared = Shared { data: out.data.as_mut_ptr(), stride: out.stride };
    ctx.threads.run(product.tasks(threads), &|index| {
        let Some(task) = product.task(index, threads) else { return };
        product.run(ctx, &task, &mut |t, column, values| {
            // SAFETY: `linear` has checked that `out` has `t` rows of the parts' columns, apart by the stride; tasks
            // have different blocks, so different columns, and each task runs once.
            unsafe { shared.write(t, column, values, product.epilogue.residual) }
        });
    });
}

#[cfg(test)]
mod tests;
