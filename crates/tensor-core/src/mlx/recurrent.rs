//! Layers with a state on MLX, recorded and not computed: formulas over whole chunks of tokens, or over the tokens of all
//! sequences where each has one. Nothing is read to the host, and what a state goes through is `f32`.

mod chunks;
mod conv;
mod operands;
mod scan;
mod step;
mod triangle;

use mlx_rs::{Array, Dtype, ops};

use self::operands::Operands;
use super::raw::slice_axis;
use super::{Mlx, MlxTensor, dim, exception, tensor};
use crate::recurrent::head_dims;
use crate::{LinearAttention, Recurrent, Result, RgLru, SelectiveScan, ShortConv, StateSpan, States};

type Done = Result<(MlxTensor, States<MlxTensor>)>;

/// What mlx-rs gives; [`exception`] makes an error of it ours.
type Made<T = Array> = mlx_rs::error::Result<T>;

/// `x` in `f32`.
fn single(be: &Mlx, x: &MlxTensor) -> Result<Array> {
    x.array(be)?.as_dtype(Dtype::Float32).map_err(exception)
}

fn number(value: f32) -> Array {
    Array::from_f32(value)
}

/// `ln(1 + e^x)`.
fn softplus(x: impl AsRef<Array>) -> Made {
    ops::logaddexp(x, number(0.0))
}

/// Rows `from..to`.
fn rows(x: &Array, from: i32, to: i32) -> Result<Array> {
    if from == 0 && to == x.dim(0) { Ok(x.clone()) } else { slice_axis(x, 0, from..to, 1) }
}

/// `parts` one below the other.
fn below(parts: Vec<Array>) -> Made {
    match <[Array; 1]>::try_from(parts) {
        Ok([part]) => Ok(part),
        Err(parts) => ops::concatenate(&parts, 0),
    }
}

/// Whether each span has one row: tokens of different sequences, which know nothing of each other.
fn is_step(spans: &[StateSpan<'_, MlxTensor>]) -> bool {
    spans.iter().all(|span| span.rows.len() == 1)
}

/// The states that `spans` begin with, `[spans, ..shape]`.
pub(super) fn before(be: &Mlx, spans: &[StateSpan<'_, MlxTensor>], shape: &[i32]) -> Result<Array> {
    let one = [&[1], shape].concat();
    let states = spans.iter().map(|span| match span.state {
        Some(state) => single(be, state)?.reshape(&one).map_err(exception),
        None => ops::zeros_dtype(&one, Dtype::Float32).map_err(exception),
    });
    below(states.collect::<Result<Vec<_>>>()?).map_err(exception)
}

/// The states of `spans` sequences that lie in `all`, one after the other.
pub(super) fn after(all: &Array, spans: usize, [rows, cols]: [usize; 2]) -> Result<States<MlxTensor>> {
    let (n, rows, cols) = (dim(spans)?, dim(rows)?, dim(cols)?);
    let all = all.reshape(&[n * rows, cols]).map_err(exception)?;
    (0..n).map(|i| self::rows(&all, i * rows, (i + 1) * rows).map(MlxTensor::from)).collect()
}

/// `x` in memory of its own: a state that is a few rows of many would keep all of them.
fn alone(x: &Array) -> Result<Array> {
    x.contiguous().map_err(exception)
}

/// A result without rows.
fn nothing(be: &Mlx, cols: usize) -> Done {
    Ok((tensor(ops::zeros_dtype(&[0, dim(cols)?], be.dtype()))?, States::new()))
}

impl Recurrent for Mlx {
    fn short_conv(
        &self,
        x: &MlxTensor,
        p: &ShortConv<'_, MlxTensor>,
        spans: &[StateSpan<'_, MlxTensor>],
    ) -> Done {
        let [_, c, k] = p.dims(self, x, spans)?;
        if spans.is_empty() {
            return nothing(self, c);
        }
        if is_step(spans)
            && let Some(done) = self.fused_convolution(x, p, spans, [c, k])?
        {
            return Ok(done);
        }
        conv::short_conv(self, x, p, spans, [c, k])
    }

    fn selective_scan(
        &self,
        x: &MlxTensor,
        p: &SelectiveScan<'_, MlxTensor>,
        spans: &[StateSpan<'_, MlxTensor>],
    ) -> Done {
        let [_, c, n] = p.dims(self, x, spans)?;
        if spans.is_empty() {
            return nothing(self, c);
        }
        scan::selective(self, x, p, spans, [c, n])
    }

    fn linear_attention(
        &self,
        p: &LinearAttention<'_, MlxTensor>,
        spans: &[StateSpan<'_, MlxTensor>],
    ) -> Done {
        let dims = p.dims(self, spans)?;
        let width = dims.heads * dims.value_dim;
        if spans.is_empty() {
            return nothing(self, width);
        }
        if is_step(spans)
            && let Some(done) = self.fused_recurrence(p, spans, dims)?
        {
            return Ok(done);
        }
        let operands = Operands::new(self, p, dims)?;
        let state = operands.state_shape();
        let (y, states) = if is_step(spans) {
            let [y, states] = step::step(&operands, &before(self, spans, &state)?).map_err(exception)?;
            (y, after(&states, spans.len(), dims.state())?)
        } else {
            let (mut parts, mut states) = (Vec::new(), States::new());
            for span in spans {
                let start = before(self, std::slice::from_ref(span), &state)?;
                let part = operands.part(dim(span.rows.start)?..dim(span.rows.end)?)?;
                let (y, state) = match span.rows.len() {
                    1 => step::step(&part, &start).map(|[y, state]| (y, state)).map_err(exception)?,
                    _ => chunks::prefill(&part, &start)?,
                };
                parts.push(y.reshape(&[dim(span.rows.len())?, dim(width)?]).map_err(exception)?);
                states.extend(after(&state, 1, dims.state())?);
            }
            (below(parts).map_err(exception)?, states)
        };
        let mut y = y.reshape(&[dim(dims.t)?, dim(width)?]).map_err(exception)?;
        if let Some(skip) = &operands.skip {
            y = skip.reshape(y.shape()).and_then(|skip| y.add(skip)).map_err(exception)?;
        }
        Ok((tensor(y.as_dtype(p.v.array(self)?.dtype()))?, states))
    }

    fn head_linear(&self, x: &MlxTensor, w: &MlxTensor, bias: &MlxTensor) -> Result<MlxTensor> {
        let [t, heads, n, m] = head_dims(self, x, w, bias)?;
        let [t, heads, n, m] = [dim(t)?, dim(heads)?, dim(n)?, dim(m)?];
        let dtype = x.array(self)?.dtype();
        let (x, w, bias) = (single(self, x)?, single(self, w)?, single(self, bias)?);
        let product = || -> Made {
            let x = x.reshape(&[t, heads, n])?.swap_axes(0, 1)?;
            let y = x.matmul(w.reshape(&[heads, n, m])?)?.swap_axes(0, 1)?;
            y.reshape(&[t, heads * m])?.add(&bias)?.as_dtype(dtype)
        };
        tensor(product())
    }

    fn rg_lru(&self, x: &MlxTensor, p: &RgLru<'_, MlxTensor>, spans: &[StateSpan<'_, MlxTensor>]) -> Done {
        let [t, c] = p.dims(self, x, spans)?;
        if spans.is_empty() {
            return nothing(self, c);
        }
        scan::rg_lru(self, x, p, spans, [t, c])
    }
}
