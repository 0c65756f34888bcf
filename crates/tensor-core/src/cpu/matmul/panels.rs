//! The panels of a product: what a source makes, in the order in which the kernels read it, over the threads.

use std::sync::{Mutex, PoisonError};

use super::Context;
use crate::cpu::arena::Piece;
use crate::cpu::kernels::matmul::MAX_TOKENS;
use crate::cpu::kernels::panel::{Panel, Tokens};
use crate::cpu::kernels::vector::LANES;
use crate::cpu::packed::UNIT;
use crate::cpu::source::Source;
use crate::{Error, Result};

/// All panels of what `source` makes. That of the tokens from `start` is at `start * units * unit_bytes`.
pub(super) fn build(ctx: &Context<'_>, panel: Panel, source: &Source<'_>) -> Result<Piece> {
    let [t, cols] = source.shape();
    let token_bytes = cols.div_ceil(UNIT) * panel.unit_bytes();
    let slots = panel.all_slots(t);
    // Tokens of a run, which starts where a panel starts.
    let run_tokens = if panel == Panel::Tiles { LANES } else { MAX_TOKENS };
    let mut buffer = ctx.scratch.take(token_bytes * slots)?;
    let bytes = &mut buffer.bytes_mut()[..token_bytes * slots];
    if t < 2 * MAX_TOKENS || bytes.is_empty() {
        tiles(ctx, panel, source, 0, bytes)?;
        return Ok(buffer);
    }
    let runs = Mutex::new(bytes.chunks_mut(token_bytes * run_tokens).enumerate());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    ctx.threads.run(t.div_ceil(run_tokens), &|_| {
        let claimed = runs.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((run, bytes)) = claimed else { return };
        if let Err(error) = tiles(ctx, panel, source, run * run_tokens, bytes) {
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
        _ => Some(ctx.scratch.take(LANES.min(t - first) * cols * size_of::<f32>())?),
    };
    while !out.is_empty() {
        let slots = panel.slots(t - start);
        let tokens = slots.min(t - start);
        let (bytes, rest) = out.split_at_mut(slots * token_bytes);
        let rows = match (source, &mut scratch) {
            (Source::Rows(x), _) => {
                Tokens { data: &x.data[start * x.stride..], tokens, slots, cols, stride: x.stride }
            }
            (_, Some(made)) => {
                let made = &mut made.values_mut::<f32>()[..tokens * cols];
                for (i, row) in made.chunks_exact_mut(cols).enumerate() {
                    source.make(&ctx.kernels.elementwise, start + i, row);
                }
                Tokens { data: made, tokens, slots, cols, stride: cols }
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
