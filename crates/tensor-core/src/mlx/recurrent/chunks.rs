//! Linear attention of many tokens: within chunks all of them at once, as products of matrices, and from chunk to chunk
//! the state.
//!
//! With a state `S` at the start of a chunk, all that it does is linear in `S`: what its tokens read is
//! `reads + through S`, and the state after it `decay S + news - erased S`. For rules without a lookup that is the
//! state space duality of Dao and Gu (2024); with one, what is found depends on what earlier tokens of the chunk wrote, and
//! the inverse of a triangular matrix solves for all of them (the WY form of Yang et al. 2024).

use mlx_rs::{Array, ops};

use super::operands::{Erase, Operands};
use super::triangle::{Decays, Diagonal, Triangle};
use super::{Made, below, number, rows};
use crate::Result;
use crate::mlx::exception;
use crate::mlx::raw::slice_axis;

/// Tokens of a chunk.
const CHUNK: i32 = 64;

/// Values of the states of all chunks that are made at a time, at most.
const CELLS: i32 = 1 << 24;

/// The tokens `x` of one sequence, which go on from `state: [1, key heads, heads for each, key_dim, value_dim]`: what
/// they read, `[tokens, width]`, and the state after them.
pub(super) fn prefill(x: &Operands, state: &Array) -> Result<(Array, Array)> {
    let [groups, shared, n, width] = x.state_shape();
    let t = x.q.dim(0);
    let chunk = CHUNK.min(t.unsigned_abs().next_power_of_two() as i32);
    let cells = groups.saturating_mul(shared).saturating_mul(n).saturating_mul(n.max(width));
    let most = chunk * (CELLS / cells.max(1)).max(1);
    let triangle = Triangle::new(chunk);
    let mut state = state.reshape(&[groups, shared, 1, n, width]).map_err(exception)?;
    let mut parts = Vec::new();
    for from in (0..t).step_by(most as usize) {
        let to = t.min(from.saturating_add(most));
        let chunks = Chunks::new(&triangle, &x.part(from..to)?, chunk)?;
        let (states, after) = chunks.states(state).map_err(exception)?;
        state = after;
        let y = chunks
            .read(&states)
            .and_then(|y| y.transpose_axes(&[2, 3, 0, 1, 4])?.reshape(&[-1, groups * shared * width]));
        parts.push(rows(&y.map_err(exception)?, 0, to - from)?);
    }
    Ok((below(parts).map_err(exception)?, state))
}

/// `[tokens, key heads, heads for each, width]` as `[key heads, heads for each, chunks, chunk, width]`. The last chunk may
/// need tokens more, of value `more`.
fn chunked(x: &Array, chunk: i32, more: f32) -> Made {
    let padded = match (-x.dim(0)).rem_euclid(chunk) {
        0 => x.clone(),
        missing => ops::pad(x, &[(0, missing), (0, 0), (0, 0), (0, 0)], number(more), None)?,
    };
    let chunks = padded.reshape(&[-1, chunk, x.dim(1), x.dim(2), x.dim(3)])?;
    chunks.transpose_axes(&[2, 3, 0, 1, 4])
}

/// What chunks do with the states that they begin with, `[key heads, heads for each, chunks, ..]`.
struct Chunks {
    /// What is read that tokens of the chunk brought, `[.., chunk, value_dim]`.
    reads: Array,
    /// What reads the state, `[.., chunk, key_dim]`.
    through: Array,
    /// `[.., key_dim or 1, 1]`.
    decay: Array,
    /// What tokens of the chunk leave in the state, `[.., key_dim, value_dim]`.
    news: Array,
    /// What they take from it, `[.., key_dim, key_dim]`.
    erased: Option<Array>,
}

impl Chunks {
    fn new(triangle: &Triangle, x: &Operands, chunk: i32) -> Result<Self> {
        // Tokens that are there to fill a chunk change nothing.
        let decay = chunked(&x.decay, chunk, 1.0).map_err(exception)?;
        let decays = Decays::new(triangle, &decay).map_err(exception)?;
        let whole = slice_axis(&decays.since, 3, chunk - 1..chunk, 1)?;
        let make = || -> Made<Self> {
            let lay = |x: &Array| chunked(x, chunk, 0.0);
            let (q, k, v) = (lay(&x.q)?, lay(&x.k)?, lay(&x.v)?);
            let (since, until) = (&decays.since, &decays.until);
            // What is left at the end of the chunk of a key, for values to be multiplied with.
            let left = |keys: &Array| keys.multiply(until)?.swap_axes(-1, -2);
            let scores = decays.products(&q, &k, Diagonal::In)?;
            let (through, left_k) = (q.multiply(since)?, left(&k)?);
            let decay = whole.swap_axes(-1, -2)?;
            let Some(Erase { lookup, at }) = &x.erase else {
                let (reads, news) = (scores.matmul(&v)?, left_k.matmul(&v)?);
                return Ok(Self { reads, through, decay, news, erased: None });
            };
            let lookup = lay(lookup)?;
            let found_in_keys = decays.products(&lookup, &k, Diagonal::Out)?;
            let Some(at) = at else {
                let inverse = triangle.inverse(&found_in_keys)?;
                let values = inverse.matmul(&v)?;
                let lookups = inverse.matmul(lookup.multiply(since)?)?;
                return Ok(Self {
                    reads: scores.matmul(&values)?,
                    through: through.subtract(scores.matmul(&lookups)?)?,
                    decay,
                    news: left_k.matmul(&values)?,
                    erased: Some(left_k.matmul(lookups)?),
                });
            };
            let at = lay(at)?;
            let inverse = triangle.inverse(&decays.products(&lookup, &at, Diagonal::Out)?)?;
            let found = inverse.matmul(found_in_keys.matmul(&v)?)?;
            let lookups = inverse.matmul(lookup.multiply(since)?)?;
            let (scores_at, left_at) = (decays.products(&q, &at, Diagonal::In)?, left(&at)?);
            Ok(Self {
                reads: scores.matmul(&v)?.subtract(scores_at.matmul(&found)?)?,
                through: through.subtract(scores_at.matmul(&lookups)?)?,
                decay,
                news: left_k.matmul(&v)?.subtract(left_at.matmul(found)?)?,
                erased: Some(left_at.matmul(lookups)?),
            })
        };
        make().map_err(exception)
    }

    /// The states that chunks begin with, and that after the last.
    fn states(&self, start: Array) -> Made<(Array, Array)> {
        let count = self.news.dim(2);
        let each = |x: &Array| x.split_equal(count, 2);
        let (decay, news) = (each(&self.decay)?, each(&self.news)?);
        let erased = self.erased.as_ref().map(each).transpose()?.unwrap_or_default();
        let (mut state, mut all) = (start, Vec::new());
        for (i, (decay, news)) in decay.iter().zip(&news).enumerate() {
            let mut next = state.multiply(decay)?.add(news)?;
            if let Some(erased) = erased.get(i) {
                next = next.subtract(erased.matmul(&state)?)?;
            }
            all.push(std::mem::replace(&mut state, next));
        }
        Ok((ops::concatenate(&all, 2)?, state))
    }

    /// What tokens read, `[.., chunk, value_dim]`.
    fn read(&self, states: &Array) -> Made {
        self.through.matmul(states)?.add(&self.reads)
    }
}
