//! Recurrences `h = a h + b` of single values: Mamba's selective state space and the gated linear recurrent unit. Tokens
//! are merged pairwise, so that a few operations on all of them take the place of one after the other (Blelloch 1990).
//! Products of decays are all that is formed, and no quotients: nothing overflows.

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{Done, Made, after, alone, before, below, is_step, number, rows, single, softplus};
use crate::mlx::raw::slice_axis;
use crate::mlx::{Mlx, MlxTensor, dim, exception};
use crate::{Result, RgLru, SelectiveScan, StateSpan, States};

/// Values of all states that are made at a time, at most: some arrays of this size live at once.
const CELLS: i32 = 1 << 23;

/// All `h` for `a` and `b` of `[t, ..]`, from `start: [1, ..]` on, where `t` is a power of two.
fn scan(a: &Array, b: &Array, start: &Array) -> Result<Array> {
    let t = b.dim(0);
    if t == 1 {
        return a.multiply(start).and_then(|x| x.add(b)).map_err(exception);
    }
    let every_second = |x: &Array, from: i32| slice_axis(x, 0, from..t, 2);
    let ([a0, b0], [a1, b1]) =
        ([every_second(a, 0)?, every_second(b, 0)?], [every_second(a, 1)?, every_second(b, 1)?]);
    let both = || -> Made<[Array; 2]> { Ok([a1.multiply(&a0)?, a1.multiply(&b0)?.add(&b1)?]) };
    let [a, b] = both().map_err(exception)?;
    let odd = scan(&a, &b, start)?;
    let previous = if t == 2 {
        start.clone()
    } else {
        ops::concatenate(&[start, &rows(&odd, 0, t / 2 - 1)?], 0).map_err(exception)?
    };
    let join = || -> Made {
        let even = a0.multiply(&previous)?.add(&b0)?;
        let mut shape = odd.shape().to_vec();
        shape[0] = t;
        ops::stack(&[even, odd], 1)?.reshape(&shape)
    };
    join().map_err(exception)
}

/// A recurrence, as functions of rows of the operands.
trait Recurrence {
    /// `a` and `b`.
    fn entering(&self, rows: Range<i32>) -> Result<[Array; 2]>;
    /// What comes out, given all `h`.
    fn read(&self, rows: Range<i32>, h: Array) -> Result<Array>;
}

/// All spans of `recurrence`, whose states have `shape`.
fn run(
    be: &Mlx,
    recurrence: &impl Recurrence,
    spans: &[StateSpan<'_, MlxTensor>],
    shape: [usize; 2],
) -> Result<(Array, States<MlxTensor>)> {
    let state = [dim(shape[0])?, dim(shape[1])?];
    if is_step(spans) {
        let all = 0..dim(spans.len())?;
        let ([a, b], start) = (recurrence.entering(all.clone())?, before(be, spans, &state)?);
        let h = a.multiply(start).and_then(|x| x.add(b)).map_err(exception)?;
        return Ok((recurrence.read(all, h.clone())?, after(&h, spans.len(), shape)?));
    }
    let most = (CELLS / (state[0].saturating_mul(state[1])).max(1)).max(1);
    let (mut y, mut states) = (Vec::new(), States::new());
    for span in spans {
        let mut h = before(be, std::slice::from_ref(span), &state)?;
        let (mut at, end) = (dim(span.rows.start)?, dim(span.rows.end)?);
        while at < end {
            // A power of two.
            let t = 1 << most.min(end - at).ilog2();
            let [a, b] = recurrence.entering(at..at + t)?;
            let all = scan(&a, &b, &h)?;
            h = rows(&all, t - 1, t)?;
            y.push(recurrence.read(at..at + t, all)?);
            at += t;
        }
        states.extend(after(&alone(&h)?, 1, shape)?);
    }
    Ok((below(y).map_err(exception)?, states))
}

/// Operands of a [`SelectiveScan`]; states are `[n, c]`.
struct Selective {
    x: Array,
    /// After softplus.
    dt: Array,
    b: Array,
    c: Array,
    a: Array,
}

impl Recurrence for Selective {
    fn entering(&self, range: Range<i32>) -> Result<[Array; 2]> {
        let part = |x: &Array| rows(x, range.start, range.end);
        let (x, dt, b) = (part(&self.x)?, part(&self.dt)?, part(&self.b)?);
        let made = || -> Made<[Array; 2]> {
            let [x, dt, b] = [x.expand_dims(1)?, dt.expand_dims(1)?, b.expand_dims(2)?];
            Ok([dt.multiply(&self.a)?.exp()?, dt.multiply(x)?.multiply(b)?])
        };
        made().map_err(exception)
    }

    fn read(&self, range: Range<i32>, h: Array) -> Result<Array> {
        let c = rows(&self.c, range.start, range.end)?;
        let y = c.expand_dims(1).and_then(|c| c.matmul(&h)).and_then(|y| y.squeeze_axes(&[1]));
        y.map_err(exception)
    }
}

/// [`Recurrent::selective_scan`](crate::Recurrent::selective_scan) of `c` channels with `n` values each.
pub(super) fn selective(
    be: &Mlx,
    x: &MlxTensor,
    p: &SelectiveScan<'_, MlxTensor>,
    spans: &[StateSpan<'_, MlxTensor>],
    [c, n]: [usize; 2],
) -> Done {
    let dtype = x.array(be)?.dtype();
    let dt = softplus(single(be, p.dt)?).map_err(exception)?;
    let (x, d) = (single(be, x)?, single(be, p.d)?);
    let operands =
        Selective { x: x.clone(), dt, b: single(be, p.b)?, c: single(be, p.c)?, a: single(be, p.a)? };
    let (y, states) = run(be, &operands, spans, [n, c])?;
    let y = d.multiply(x).and_then(|skip| y.add(skip)).and_then(|y| y.as_dtype(dtype));
    Ok((crate::mlx::tensor(y)?, states))
}

/// `a` and `b` of a [`RgLru`]; states are `[1, c]`.
struct Lru {
    a: Array,
    b: Array,
}

impl Recurrence for Lru {
    fn entering(&self, range: Range<i32>) -> Result<[Array; 2]> {
        let part = |x: &Array| -> Result<Array> {
            let x = rows(x, range.start, range.end)?;
            x.expand_dims(1).map_err(exception)
        };
        Ok([part(&self.a)?, part(&self.b)?])
    }

    fn read(&self, _: Range<i32>, h: Array) -> Result<Array> {
        h.squeeze_axes(&[1]).map_err(exception)
    }
}

/// [`Recurrent::rg_lru`](crate::Recurrent::rg_lru) of `t` rows of `c` channels.
pub(super) fn rg_lru(
    be: &Mlx,
    x: &MlxTensor,
    p: &RgLru<'_, MlxTensor>,
    spans: &[StateSpan<'_, MlxTensor>],
    [t, c]: [usize; 2],
) -> Done {
    let dtype = x.array(be)?.dtype();
    let mut is_first = vec![false; t];
    for span in spans.iter().filter(|span| span.state.is_none()) {
        is_first.iter_mut().skip(span.rows.start).take(1).for_each(|first| *first = true);
    }
    let is_first = is_first.contains(&true).then(|| dim(t).map(|t| Array::from_slice(&is_first, &[t, 1])));
    let is_first = is_first.transpose()?;
    let (x, input) = (single(be, x)?, single(be, p.input)?);
    let (recurrent, param) = (single(be, p.recurrent)?, single(be, p.param)?);
    let gates = || -> Made<Lru> {
        let rate = softplus(param)?.multiply(number(-8.0))?;
        let log = ops::sigmoid(recurrent)?.multiply(rate)?;
        let mut factor = ops::expm1(log.multiply(number(2.0))?)?.negative()?.sqrt()?;
        if let Some(is_first) = is_first {
            factor = ops::select(is_first, number(1.0), factor)?;
        }
        Ok(Lru { a: log.exp()?, b: ops::sigmoid(input)?.multiply(x)?.multiply(factor)? })
    };
    let (y, states) = run(be, &gates().map_err(exception)?, spans, [1, c])?;
    Ok((crate::mlx::tensor(y.as_dtype(dtype))?, states))
}
