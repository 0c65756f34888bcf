//! Rotary embeddings: MLX's fused one, or tables of cosines and sines where results have to be exact.

use std::sync::{Arc, Mutex, PoisonError};

use mlx_rs::{Array, fast, ops};

use super::raw::slice;
use super::{dim, exception};
use crate::{Batch, Pairing, Result, Rope};

/// Ropes kept: families have at most two, and all layers of a pass share them.
const KEPT: usize = 4;

/// A rope that was used, and its numbers on the device.
#[derive(Debug)]
struct Known {
    rope: Arc<Rope>,
    /// `1 / inv_freq`, which is what MLX takes.
    periods: Array,
    /// `inv_freq` itself, which is what our kernels take.
    rates: Array,
}

/// What is computed on the host for a rope, kept from one layer to the next.
#[derive(Debug, Default)]
pub(super) struct Ropes {
    known: Mutex<Vec<Known>>,
    tables: Mutex<Vec<Table>>,
    /// Positions of a pass's rows, on the device.
    positions: Mutex<Option<(Vec<u32>, Array)>>,
}

/// Cosines and sines, `[rows, 1, pairs]`.
#[derive(Clone, Debug)]
struct Table {
    inv_freq: Vec<f32>,
    scale: f32,
    positions: Vec<u32>,
    cos: Array,
    sin: Array,
}

/// Appends to a list that keeps the latest.
fn keep<T>(list: &mut Vec<T>, item: T) {
    if list.len() >= KEPT {
        list.remove(0);
    }
    list.push(item);
}

impl Ropes {
    /// What `f` takes of `rope`, which is uploaded when it is new.
    fn known<T>(&self, rope: &Rope, f: impl FnOnce(&Known) -> T) -> Result<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known.iter().find(|k| std::ptr::eq(&*k.rope, rope) || *k.rope == *rope) {
            return Ok(f(there));
        }
        let upload =
            |values: Vec<f32>| -> Result<Array> { Ok(Array::from_slice(&values, &[dim(values.len())?])) };
        let new = Known {
            rope: Arc::new(rope.clone()),
            periods: upload(rope.inv_freq.iter().map(|x| x.recip()).collect())?,
            rates: upload(rope.inv_freq.clone())?,
        };
        let answer = f(&new);
        keep(&mut known, new);
        Ok(answer)
    }

    /// `positions` on the device: all layers of a pass ask for the same.
    fn uploaded(&self, positions: &[u32]) -> Result<Array> {
        let mut latest = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, array)) = latest.as_ref().filter(|(known, _)| known == positions) {
            return Ok(array.clone());
        }
        let values: Vec<i32> = positions.iter().map(|p| *p as i32).collect();
        let array = Array::from_slice(&values, &[dim(values.len())?]);
        *latest = Some((positions.to_vec(), array.clone()));
        Ok(array)
    }

    /// `rope`, the same for the same numbers.
    pub(super) fn shared(&self, rope: &Rope) -> Result<Arc<Rope>> {
        self.known(rope, |known| Arc::clone(&known.rope))
    }

    /// `inv_freq` on the device.
    pub(super) fn rates(&self, rope: &Rope) -> Result<Array> {
        self.known(rope, |known| known.rates.clone())
    }

    fn table(&self, rope: &Rope, positions: &[u32]) -> Result<Table> {
        let mut known = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |t: &&Table| t.positions == positions && t.scale == rope.scale && t.inv_freq == rope.inv_freq;
        if let Some(table) = known.iter().find(same) {
            return Ok(table.clone());
        }
        let angles = positions.iter().flat_map(|p| rope.inv_freq.iter().map(move |f| *p as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| f64::from(angle).sin_cos())
            .map(|(sin, cos)| (sin as f32 * rope.scale, cos as f32 * rope.scale))
            .unzip();
        let shape = [dim(positions.len())?, 1, dim(rope.inv_freq.len())?];
        let table = Table {
            inv_freq: rope.inv_freq.clone(),
            scale: rope.scale,
            positions: positions.to_vec(),
            cos: Array::from_slice(&cos, &shape),
            sin: Array::from_slice(&sin, &shape),
        };
        keep(&mut known, table.clone());
        Ok(table)
    }

    /// `x: [t, heads * head_dim]` turned by tables that are exact in `f32`.
    pub(super) fn exact(&self, x: &Array, rope: &Rope, positions: &[u32]) -> Result<Array> {
        let [t, d] = [x.dim(0), x.dim(1)];
        let (head, pairs) = (dim(rope.head_dim)?, dim(rope.inv_freq.len())?);
        let heads = d / head;
        let table = self.table(rope, positions)?;
        let x3 = x.reshape(&[t, heads, head]).map_err(exception)?;
        let cut = |from: i32, to: i32| slice(&x3, [0, 0, from], [t, heads, to]);
        let [a, b] = match rope.pairing {
            Pairing::Halves => [cut(0, pairs)?, cut(pairs, 2 * pairs)?],
            Pairing::Interleaved => {
                let pairwise = cut(0, 2 * pairs)?.reshape(&[t, heads, pairs, 2]).map_err(exception)?;
                let one = |i: i32| {
                    slice(&pairwise, [0, 0, 0, i], [t, heads, pairs, i + 1])?
                        .reshape(&[t, heads, pairs])
                        .map_err(exception)
                };
                [one(0)?, one(1)?]
            }
        };
        let turn = |x: &Array, y: &Array| -> Result<[Array; 2]> {
            let by = |x: &Array, f: &Array| x.multiply(f).map_err(exception);
            Ok([by(x, &table.cos)?, by(y, &table.sin)?])
        };
        let ([ac, bs], [bc, as_]) = (turn(&a, &b)?, turn(&b, &a)?);
        let (first, second) = (ac.subtract(bs).map_err(exception)?, bc.add(as_).map_err(exception)?);
        let turned = match rope.pairing {
            Pairing::Halves => ops::concatenate(&[first, second], -1).map_err(exception)?,
            Pairing::Interleaved => {
                let both = ops::stack(&[first, second], -1).map_err(exception)?;
                both.reshape(&[t, heads, 2 * pairs]).map_err(exception)?
            }
        };
        // Values of a head beyond the pairs pass.
        let turned = match 2 * pairs < head {
            true => ops::concatenate(&[turned, cut(2 * pairs, head)?], -1).map_err(exception)?,
            false => turned,
        };
        turned.reshape(&[t, d]).map_err(exception)
    }

    /// Rows at `positions` through MLX's fused operation.
    pub(super) fn fast_rows(&self, x: &Array, rope: &Rope, positions: &[u32]) -> Result<Array> {
        let freqs = self.known(rope, |known| known.periods.clone())?;
        let turned = match positions {
            [position] => turn(x, rope, &freqs, *position as usize)?,
            _ => self.turn_each(x, rope, &freqs, positions)?,
        };
        stretched(turned, rope)
    }

    /// Each row of `x` by its own position.
    fn turn_each(&self, x: &Array, rope: &Rope, freqs: &Array, positions: &[u32]) -> Result<Array> {
        let ([t, d], head) = ([x.dim(0), x.dim(1)], dim(rope.head_dim)?);
        let offsets = self.uploaded(positions)?;
        let heads = x.reshape(&[t, d / head, 1, head]).map_err(exception)?;
        let (dims, traditional) = geometry(rope)?;
        let y = fast::rope_dynamic(&heads, dims, traditional, None, 1.0, &offsets, freqs);
        y.and_then(|y| y.reshape(&[t, d])).map_err(exception)
    }

    /// Rows through MLX's fused operation, a call for each span, or one for all if each has one row.
    pub(super) fn fast(&self, x: &Array, rope: &Rope, batch: &Batch) -> Result<Array> {
        let freqs = self.known(rope, |known| known.periods.clone())?;
        let d = x.dim(1);
        let spans = batch.spans();
        let turned = if let [span] = spans {
            turn(x, rope, &freqs, span.start)?
        } else if spans.iter().all(|s| s.rows.len() == 1) {
            self.turn_each(x, rope, &freqs, batch.positions())?
        } else {
            let parts = spans.iter().map(|span| {
                let (from, to) = (dim(span.rows.start)?, dim(span.rows.end)?);
                turn(&slice(x, [from, 0], [to, d])?, rope, &freqs, span.start)
            });
            ops::concatenate(&parts.collect::<Result<Vec<_>>>()?, 0).map_err(exception)?
        };
        stretched(turned, rope)
    }
}

/// Rotated values of a head, and whether pairs lie next to each other.
fn geometry(rope: &Rope) -> Result<(i32, bool)> {
    Ok((dim(2 * rope.inv_freq.len())?, rope.pairing == Pairing::Interleaved))
}

/// The rows `x` of a span that starts at `start`.
fn turn(x: &Array, rope: &Rope, freqs: &Array, start: usize) -> Result<Array> {
    let [t, d] = [x.dim(0), x.dim(1)];
    let head = dim(rope.head_dim)?;
    let (dims, traditional) = geometry(rope)?;
    let start = dim(start)?;
    let apply = |x: &Array| fast::rope(x, dims, traditional, None, 1.0, start, freqs);
    if t == 1 {
        let y = x.reshape(&[1, d / head, 1, head]).and_then(|x| apply(&x));
        return y.and_then(|y| y.reshape(&[1, d])).map_err(exception);
    }
    let y = x.reshape(&[1, t, d / head, head]).and_then(|x| x.transpose_axes(&[0, 2, 1, 3]));
    let y = y.and_then(|x| apply(&x)).and_then(|y| y.transpose_axes(&[0, 2, 1, 3]));
    y.and_then(|y| y.reshape(&[t, d])).map_err(exception)
}

/// The rotated values times the rope's factor, usually 1.
fn stretched(x: Array, rope: &Rope) -> Result<Array> {
    if rope.scale == 1.0 {
        return Ok(x);
    }
    let head = rope.head_dim;
    let factors: Vec<f32> =
        (0..head).map(|i| if i < 2 * rope.inv_freq.len() { rope.scale } else { 1.0 }).collect();
    let [t, d] = [x.dim(0), x.dim(1)];
    let factors = Array::from_slice(&factors, &[dim(head)?]).as_dtype(x.dtype()).map_err(exception)?;
    let heads = x.reshape(&[t, d / dim(head)?, dim(head)?]).map_err(exception)?;
    heads.multiply(factors).and_then(|y| y.reshape(&[t, d])).map_err(exception)
}
