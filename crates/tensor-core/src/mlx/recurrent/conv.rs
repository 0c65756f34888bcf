//! Short convolutions: a product for each tap, of rows that lie as far apart as the taps.

use mlx_rs::{Array, ops};

use super::{Done, Made, after, alone, before, below, is_step, rows, single};
use crate::mlx::raw::slice_axis;
use crate::mlx::{Mlx, MlxTensor, activated, dim, exception, tensor};
use crate::{Activation, Result, ShortConv, StateSpan, States};

/// [`Recurrent::short_conv`](crate::Recurrent::short_conv) of `c` channels and `k` taps.
pub(super) fn short_conv(
    be: &Mlx,
    x: &MlxTensor,
    p: &ShortConv<'_, MlxTensor>,
    spans: &[StateSpan<'_, MlxTensor>],
    [c, k]: [usize; 2],
) -> Done {
    let dtype = x.array(be)?.dtype();
    let (x, kernel) = (single(be, x)?, single(be, p.kernel)?);
    let bias = p.bias.map(|b| single(be, b)).transpose()?;
    let (width, kept) = (dim(c)?, dim(k - 1)?);
    let (mut y, mut states) = (Vec::new(), States::new());
    if is_step(spans) && k > 1 {
        let n = dim(spans.len())?;
        let seen = before(be, spans, &[kept, width])?;
        let row = x.reshape(&[n, 1, width]).map_err(exception)?;
        let seen = ops::concatenate(&[seen, row], 1).map_err(exception)?;
        y.push(seen.multiply(&kernel).and_then(|taps| taps.sum_axis(1, false)).map_err(exception)?);
        states = after(&slice_axis(&seen, 1, 1..kept + 1, 1)?, spans.len(), [k - 1, c])?;
    } else {
        let taps = (0..=kept).map(|tap| rows(&kernel, tap, tap + 1)).collect::<Result<Vec<_>>>()?;
        for span in spans {
            let mut seen = rows(&x, dim(span.rows.start)?, dim(span.rows.end)?)?;
            let t = seen.dim(0);
            if k > 1 {
                let state = before(be, std::slice::from_ref(span), &[kept, width])?;
                let state = state.reshape(&[kept, width]).map_err(exception)?;
                seen = ops::concatenate(&[state, seen], 0).map_err(exception)?;
            }
            y.push(convolved(&seen, &taps, t)?);
            states.push(match kept {
                0 => tensor(ops::zeros_dtype(&[0, width], seen.dtype()))?,
                _ => alone(&rows(&seen, t, t + kept)?)?.into(),
            });
        }
    }
    let finish = || -> Made {
        let mut y = below(y)?;
        if let Some(bias) = &bias {
            y = y.add(bias)?;
        }
        activated(p.act.unwrap_or(Activation::Identity), &y)?.as_dtype(dtype)
    };
    Ok((tensor(finish())?, states))
}

/// `Σ taps[i] seen[row + i]` of `t` rows.
fn convolved(seen: &Array, taps: &[Array], t: i32) -> Result<Array> {
    let mut sum: Option<Array> = None;
    for (i, tap) in (0..).zip(taps) {
        let part = rows(seen, i, i + t)?.multiply(tap);
        sum = Some(
            part.and_then(|part| sum.map_or(Ok(part.clone()), |sum| sum.add(&part))).map_err(exception)?,
        );
    }
    sum.ok_or_else(|| crate::mlx::error("a convolution without taps".to_owned()))
}
