//! Whether operands fit each other, for every backend.

use super::{LinearAttention, RgLru, Rule, SelectiveScan, ShortConv, StateSpan};
use crate::{Backend, Error, Result};

fn same(op: &'static str, got: [usize; 2], want: [usize; 2]) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::Shape { op, got, want }) }
}

/// That `spans` cover `t` rows in order, and their states have shape `want`.
fn check_spans<B: Backend>(
    be: &B,
    op: &'static str,
    spans: &[StateSpan<'_, B::Tensor>],
    t: usize,
    want: [usize; 2],
) -> Result<()> {
    let mut end = 0;
    for span in spans {
        if span.rows.start != end || span.rows.is_empty() {
            return Err(Error::Shape { op, got: [span.rows.start, span.rows.end], want: [end, t] });
        }
        end = span.rows.end;
        if let Some(state) = span.state {
            same(op, be.shape(state), want)?;
        }
    }
    same(op, [end, want[1]], [t, want[1]])
}

impl<T> ShortConv<'_, T> {
    /// `[rows of x, width, taps]`.
    pub(crate) fn dims<B: Backend<Tensor = T>>(
        &self,
        be: &B,
        x: &T,
        spans: &[StateSpan<'_, T>],
    ) -> Result<[usize; 3]> {
        let ([t, c], [k, kc]) = (be.shape(x), be.shape(self.kernel));
        same("short_conv", [k.max(1), kc], [k.max(1), c])?;
        if k == 0 {
            return Err(Error::Shape { op: "short_conv", got: [k, kc], want: [1, c] });
        }
        if let Some(bias) = self.bias {
            same("short_conv bias", be.shape(bias), [1, c])?;
        }
        check_spans(be, "short_conv", spans, t, [k - 1, c])?;
        Ok([t, c, k])
    }
}

impl<T> SelectiveScan<'_, T> {
    /// `[rows of x, channels, state]`.
    pub(crate) fn dims<B: Backend<Tensor = T>>(
        &self,
        be: &B,
        x: &T,
        spans: &[StateSpan<'_, T>],
    ) -> Result<[usize; 3]> {
        let op = "selective_scan";
        let ([t, c], [n, _]) = (be.shape(x), be.shape(self.a));
        same(op, be.shape(self.dt), [t, c])?;
        same(op, be.shape(self.b), [t, n])?;
        same(op, be.shape(self.c), [t, n])?;
        same(op, be.shape(self.a), [n, c])?;
        same(op, be.shape(self.d), [1, c])?;
        check_spans(be, op, spans, t, [n, c])?;
        Ok([t, c, n])
    }
}

/// `[rows of x, heads, n, m]` of [`Recurrent::head_linear`](super::Recurrent::head_linear).
pub(crate) fn head_dims<B: Backend>(
    be: &B,
    x: &B::Tensor,
    w: &B::Tensor,
    bias: &B::Tensor,
) -> Result<[usize; 4]> {
    let (op, [t, inp], [rows, m], [_, out]) = ("head_linear", be.shape(x), be.shape(w), be.shape(bias));
    let heads = out.checked_div(m).unwrap_or(0);
    let n = inp.checked_div(heads).unwrap_or(0);
    same(op, be.shape(bias), [1, heads * m])?;
    same(op, [t, inp], [t, heads * n])?;
    same(op, [rows, m], [heads * n, m])?;
    Ok([t, heads, n, m])
}

impl<T> RgLru<'_, T> {
    /// `[rows of x, channels]`.
    pub(crate) fn dims<B: Backend<Tensor = T>>(
        &self,
        be: &B,
        x: &T,
        spans: &[StateSpan<'_, T>],
    ) -> Result<[usize; 2]> {
        let (op, [t, c]) = ("rg_lru", be.shape(x));
        same(op, be.shape(self.input), [t, c])?;
        same(op, be.shape(self.recurrent), [t, c])?;
        same(op, be.shape(self.param), [1, c])?;
        check_spans(be, op, spans, t, [1, c])?;
        Ok([t, c])
    }
}

/// Geometry of a [`LinearAttention`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionDims {
    /// Rows.
    pub t: usize,
    /// Heads of values.
    pub heads: usize,
    /// Heads of keys.
    pub key_heads: usize,
    /// Values of a key.
    pub key_dim: usize,
    /// Values of a value.
    pub value_dim: usize,
    /// Decays of a head: 1, or one for each value of a key.
    pub decays: usize,
}

impl AttentionDims {
    /// The head of keys that head `head` of values uses.
    pub(crate) fn key_head(&self, head: usize) -> usize {
        head / (self.heads / self.key_heads)
    }
    /// Shape of a state.
    pub(crate) fn state(&self) -> [usize; 2] {
        [self.heads * self.key_dim, self.value_dim]
    }
}

impl<T> LinearAttention<'_, T> {
    /// Its geometry, if all shapes fit.
    pub(crate) fn dims<B: Backend<Tensor = T>>(
        &self,
        be: &B,
        spans: &[StateSpan<'_, T>],
    ) -> Result<AttentionDims> {
        let op = "linear_attention";
        let ([t, keys], [_, values]) = (be.shape(self.k), be.shape(self.v));
        let (heads, key_heads) = (self.heads, self.key_heads);
        let whole = |n: usize, d: usize| n > 0 && d > 0 && n.is_multiple_of(d);
        if !whole(heads, key_heads) || !whole(keys, key_heads) || !whole(values, heads) {
            return Err(Error::Shape { op, got: [keys, values], want: [key_heads, heads] });
        }
        let key_dim = keys / key_heads;
        same(op, be.shape(self.q), [t, keys])?;
        same(op, be.shape(self.v), [t, values])?;
        let wide = heads.saturating_mul(key_dim);
        let decays = match &self.rule {
            Rule::Constant { decay } => same(op, be.shape(decay), [1, heads]).map(|()| 1)?,
            Rule::Ssd { dt, dt_bias, a, d, .. } => {
                same(op, be.shape(dt), [t, heads])?;
                [dt_bias, a, d].into_iter().try_for_each(|x| same(op, be.shape(x), [1, heads]))?;
                1
            }
            Rule::Delta { gate, dt_bias, a, beta } => {
                let cols = if be.shape(gate)[1] == heads { heads } else { wide };
                same(op, be.shape(gate), [t, cols])?;
                same(op, be.shape(dt_bias), [1, cols])?;
                same(op, be.shape(a), [1, heads])?;
                same(op, be.shape(beta), [t, heads])?;
                cols / heads
            }
            Rule::Wkv7 { decay, a, b } => {
                [decay, a, b].into_iter().try_for_each(|x| same(op, be.shape(x), [t, wide]))?;
                key_dim
            }
        };
        let dims = AttentionDims { t, heads, key_heads, key_dim, value_dim: values / heads, decays };
        check_spans(be, op, spans, t, dims.state())?;
        Ok(dims)
    }
}
