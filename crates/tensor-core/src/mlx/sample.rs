//! Draws on the device: what [`Sampling`] says, in MLX's operations. Only filters by rank sort.

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype, ops};

use crate::Sampling;

fn number(value: f32) -> Array {
    Array::from_f32(value)
}

/// The first `n` columns of `x`.
fn first(x: &Array, n: i32) -> Result<Array> {
    x.split_at_indices(&[n], -1).map(|mut parts| parts.swap_remove(0))
}

/// A token for each row of `logits: [t, vocab]`, `[t]`, by `points: [t, 1]` of `[0, 1)`.
pub(super) fn sample(logits: &Array, how: &Sampling, points: &Array) -> Result<Array> {
    let (vocab, temperature) = (logits.dim(1), number(how.temperature));
    let logits = logits.as_dtype(Dtype::Float32)?;
    // The best is 0, so that no exponential overflows and probabilities are seen from the best one's.
    let mut x = logits.subtract(logits.max_axis(-1, true)?)?;
    if how.tempered {
        x = x.divide(&temperature)?;
    }
    let top_k = i32::try_from(how.top_k).ok().filter(|k| (1..vocab).contains(k));
    let has_nucleus = how.top_p > 0.0 && how.top_p < 1.0;
    // By rank, the lowest ids of equals first: the sort is stable.
    let ranked = match (top_k, has_nucleus) {
        (None, false) => None,
        (Some(k), _) => Some(first(&ops::argsort_axis(x.negative()?, -1)?, k)?),
        (None, true) => Some(ops::argsort_axis(x.negative()?, -1)?),
    };
    let mut floor = (how.min_p > 0.0).then(|| number(how.min_p.ln()));
    if let (true, Some(ranked)) = (has_nucleus, &ranked) {
        let best = x.take_along_axis(ranked, -1)?;
        let seen = if how.tempered { &best } else { &x };
        let least = nucleus(&best, &seen.exp()?.sum_axis(-1, true)?, how.top_p)?;
        floor = Some(match floor {
            Some(floor) => ops::maximum(floor, least)?,
            None => least,
        });
    }
    // What is drawn from lies in the order of ids.
    let ids = match (top_k, ranked) {
        (Some(_), Some(ranked)) => Some(ops::sort_axis(ranked, -1)?),
        _ => None,
    };
    let list = ids.as_ref().map_or(Ok(x.clone()), |ids| x.take_along_axis(ids, -1))?;
    let tempered = if how.tempered { list.clone() } else { list.divide(&temperature)? };
    let mut weights = tempered.exp()?;
    if let Some(floor) = floor {
        weights = ops::select(list.ge(floor)?, weights, number(0.0))?;
    }
    let chosen = invert(&weights, points)?;
    match ids {
        Some(ids) => ids.take_along_axis(chosen, -1)?.reshape(&[-1]),
        None => chosen.reshape(&[-1]),
    }
}

/// The lowest of `best: [t, k]`, which fall from column to column, that has less than `p` of the mass `total: [t, 1]`
/// above it.
fn nucleus(best: &Array, total: &Array, p: f32) -> Result<Array> {
    let masses = best.exp()?;
    let above = masses.cumsum(-1, false, true)?.subtract(&masses)?;
    // Rounding must not lose the best itself, above which there is nothing.
    let inside = above.lt(total.multiply(number(p))?)?;
    ops::select(inside, best, number(f32::INFINITY))?.min_axis(-1, true)
}

/// Where the running sum of each row of `weights` exceeds that point of its total: `[t, 1]`.
fn invert(weights: &Array, points: &Array) -> Result<Array> {
    let sums = weights.cumsum(-1, false, true)?;
    let last = sums.split_at_indices(&[weights.dim(1) - 1], -1)?.swap_remove(1);
    let reached = sums.gt(last.multiply(points)?)?;
    // Sums of blocks round differently: a weight of 0 must never win, whatever its sum.
    let rank = ops::sign(weights)?.add(reached)?;
    ops::indexing::argmax_axis(rank, -1, true)
}
