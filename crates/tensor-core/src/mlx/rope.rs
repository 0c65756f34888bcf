//! Rotary embeddings: MLX's fused one, or tables of cosines and sines where results have to be exact.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mlx_rs::{Array, fast, ops};

use super::raw::slice;
use super::{dim, exception};
use crate::{Batch, Pairing, Result, Rope, Span};

/// Arrays kept: families have at most two sets of frequencies, and all layers of a pass share them.
const KEPT: usize = 4;

/// Numbers of a rope on the device, made from its `inv_freq`.
#[derive(Debug)]
struct Uploaded {
    inv_freq: Vec<f32>,
    array: Array,
    /// Which upload it was.
    number: usize,
}

/// What is computed on the host for a rope, kept from one layer to the next.
#[derive(Debug, Default)]
pub(super) struct Ropes {
    /// `1 / inv_freq`, which is what MLX takes.
    freqs: Mutex<Vec<Uploaded>>,
    /// `inv_freq` itself, which is what our kernels take.
    rates: Mutex<Vec<Uploaded>>,
    tables: Mutex<Vec<Table>>,
    uploads: AtomicUsize,
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
    fn freqs(&self, rope: &Rope) -> Result<Array> {
        Ok(self.uploaded(&self.freqs, rope, |f| f.recip())?.0)
    }

    /// `inv_freq` on the device, and a number that is the same for the same frequencies.
    pub(super) fn inv_freq(&self, rope: &Rope) -> Result<(Array, usize)> {
        self.uploaded(&self.rates, rope, |f| f)
    }

    /// `f(inv_freq)` on the device, from `known` where it is there.
    fn uploaded(
        &self,
        known: &Mutex<Vec<Uploaded>>,
        rope: &Rope,
        f: fn(f32) -> f32,
    ) -> Result<(Array, usize)> {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known.iter().find(|u| u.inv_freq == rope.inv_freq) {
            return Ok((there.array.clone(), there.number));
        }
        let values: Vec<f32> = rope.inv_freq.iter().map(|x| f(*x)).collect();
        let array = Array::from_slice(&values, &[dim(values.len())?]);
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        keep(&mut known, Uploaded { inv_freq: rope.inv_freq.clone(), array: array.clone(), number });
        Ok((array, number))
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
    pub(super) fn exact(&self, x: &Array, rope: &Rope, batch: &Batch) -> Result<Array> {
        let [t, d] = [x.dim(0), x.dim(1)];
        let (head, pairs) = (dim(rope.head_dim)?, dim(rope.inv_freq.len())?);
        let heads = d / head;
        let table = self.table(rope, batch.positions())?;
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

    /// The same through MLX's fused operation, a call for each span, or one for all if each has one row.
    pub(super) fn fast(&self, x: &Array, rope: &Rope, batch: &Batch) -> Result<Array> {
        let freqs = self.freqs(rope)?;
        let [t, d] = [x.dim(0), x.dim(1)];
        let spans = batch.spans();
        let turned = if let [span] = spans {
            turn(x, rope, &freqs, span)?
        } else if spans.iter().all(|s| s.rows.len() == 1) {
            let head = dim(rope.head_dim)?;
            let offsets: Vec<i32> = batch.positions().iter().map(|p| *p as i32).collect();
            let offsets = Array::from_slice(&offsets, &[t]);
            let heads = x.reshape(&[t, d / head, 1, head]).map_err(exception)?;
            let (dims, traditional) = geometry(rope)?;
            let y = fast::rope_dynamic(&heads, dims, traditional, None, 1.0, &offsets, &freqs);
            y.and_then(|y| y.reshape(&[t, d])).map_err(exception)?
        } else {
            let parts = spans.iter().map(|span| {
                let (from, to) = (dim(span.rows.start)?, dim(span.rows.end)?);
                turn(&slice(x, [from, 0], [to, d])?, rope, &freqs, span)
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

/// The rows `x` of one span.
fn turn(x: &Array, rope: &Rope, freqs: &Array, span: &Span) -> Result<Array> {
    let [t, d] = [x.dim(0), x.dim(1)];
    let head = dim(rope.head_dim)?;
    let (dims, traditional) = geometry(rope)?;
    let start = dim(span.start)?;
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
