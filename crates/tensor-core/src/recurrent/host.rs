//! What the operations of [`Recurrent`](super::Recurrent) mean: operands read to the host, one token after the other.

use super::gates::{sigmoid, softplus};
use super::{
    Gates, LinearAttention, RgLru, Rule, RuleRow, SelectiveScan, ShortConv, StateSpan, States, head_dims,
};
use crate::{Backend, Result};

/// A matrix in host memory.
struct Matrix {
    values: Vec<f32>,
    cols: usize,
}

impl Matrix {
    fn read<B: Backend>(be: &B, x: &B::Tensor) -> Result<Self> {
        let mut values = Vec::new();
        be.read(x, &mut values)?;
        Ok(Self { values, cols: be.shape(x)[1] })
    }

    fn zeros(rows: usize, cols: usize) -> Self {
        Self { values: vec![0.0; rows * cols], cols }
    }

    /// The state that a span begins with.
    fn state<B: Backend>(be: &B, state: Option<&B::Tensor>, [rows, cols]: [usize; 2]) -> Result<Self> {
        state.map_or_else(|| Ok(Self::zeros(rows, cols)), |state| Self::read(be, state))
    }

    fn upload<B: Backend>(&self, be: &B) -> Result<B::Tensor> {
        be.upload(self.values.len() / self.cols.max(1), self.cols, &self.values)
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.cols..][..self.cols]
    }

    fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.values[i * self.cols..][..self.cols]
    }
}

/// What one token does to one head: `S = decay S + u b`, `S = S + k (scale v)ᵀ`, `y = Sᵀ q + skip v`. All that these
/// layers do is a case of it.
struct Token<'a> {
    /// One for each row of `S`, or one for all.
    decay: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    scale: f32,
    erase: Option<Erase<'a>>,
    skip: f32,
}

/// `u = factor Sᵀ key`, before the decay.
struct Erase<'a> {
    key: &'a [f32],
    factor: f32,
    /// Where it is added.
    at: &'a [f32],
}

impl Token<'_> {
    /// Row `i` of `S` is `state[i * stride..]`.
    fn run(&self, state: &mut [f32], stride: usize, y: &mut [f32]) {
        for (j, (v, y)) in self.v.iter().zip(y).enumerate() {
            let sum = |x: &[f32], state: &[f32]| -> f32 {
                x.iter().enumerate().fold(0.0, |sum, (i, x)| state[i * stride + j].mul_add(*x, sum))
            };
            let found = self.erase.as_ref().map_or(0.0, |e| e.factor * sum(e.key, state));
            for (i, k) in self.k.iter().enumerate() {
                let cell = &mut state[i * stride + j];
                let decay = if self.decay.len() == 1 { self.decay[0] } else { self.decay[i] };
                let at = self.erase.as_ref().map_or(0.0, |e| e.at[i]);
                *cell = (self.scale * v).mul_add(*k, at.mul_add(found, *cell * decay));
            }
            *y = self.skip.mul_add(*v, sum(self.q, state));
        }
    }
}

type Done<B> = Result<(<B as Backend>::Tensor, States<<B as Backend>::Tensor>)>;

pub(super) fn short_conv<B: Backend>(
    be: &B,
    x: &B::Tensor,
    p: &ShortConv<'_, B::Tensor>,
    spans: &[StateSpan<'_, B::Tensor>],
) -> Done<B> {
    let [t, c, k] = p.dims(be, x, spans)?;
    let (x, kernel) = (Matrix::read(be, x)?, Matrix::read(be, p.kernel)?);
    let bias = p.bias.map(|b| Matrix::read(be, b)).transpose()?;
    let (mut y, mut states) = (Matrix::zeros(t, c), States::new());
    for span in spans {
        let mut seen = Matrix::state(be, span.state, [k - 1, c])?.values;
        seen.extend_from_slice(&x.values[span.rows.start * c..span.rows.end * c]);
        for (i, row) in span.rows.clone().enumerate() {
            for (j, y) in y.row_mut(row).iter_mut().enumerate() {
                *y = bias.as_ref().map_or(0.0, |b| b.values[j]);
                for tap in 0..k {
                    *y = kernel.row(tap)[j].mul_add(seen[(i + tap) * c + j], *y);
                }
            }
        }
        let latest = seen.split_off(span.rows.len() * c);
        states.push(be.upload(k - 1, c, &latest)?);
    }
    let mut y = y.upload(be)?;
    if let Some(act) = p.act {
        y = be.activate(act, y)?;
    }
    Ok((y, states))
}

pub(super) fn selective_scan<B: Backend>(
    be: &B,
    x: &B::Tensor,
    p: &SelectiveScan<'_, B::Tensor>,
    spans: &[StateSpan<'_, B::Tensor>],
) -> Done<B> {
    let [t, c, n] = p.dims(be, x, spans)?;
    let [x, dt, b, read, a, d] = read_all(be, [x, p.dt, p.b, p.c, p.a, p.d])?;
    let (mut y, mut states, mut decay) = (Matrix::zeros(t, c), States::new(), vec![0.0; n]);
    for span in spans {
        let mut state = Matrix::state(be, span.state, [n, c])?;
        for row in span.rows.clone() {
            for j in 0..c {
                let step = softplus(dt.row(row)[j]);
                decay.iter_mut().enumerate().for_each(|(i, w)| *w = (step * a.row(i)[j]).exp());
                Token {
                    decay: &decay,
                    q: read.row(row),
                    k: b.row(row),
                    v: &x.row(row)[j..=j],
                    scale: step,
                    erase: None,
                    skip: d.row(0)[j],
                }
                .run(&mut state.values[j..], c, &mut y.row_mut(row)[j..=j]);
            }
        }
        states.push(state.upload(be)?);
    }
    Ok((y.upload(be)?, states))
}

fn read_all<B: Backend, const N: usize>(be: &B, xs: [&B::Tensor; N]) -> Result<[Matrix; N]> {
    let mut out = std::array::from_fn(|_| Matrix::zeros(0, 0));
    for (to, x) in out.iter_mut().zip(xs) {
        *to = Matrix::read(be, x)?;
    }
    Ok(out)
}

/// A rule whose operands are in host memory.
enum HostRule {
    Constant([Matrix; 1]),
    Ssd([Matrix; 4], [f32; 2]),
    Delta([Matrix; 4]),
    Wkv7([Matrix; 3]),
}

impl HostRule {
    fn read<B: Backend>(be: &B, rule: &Rule<'_, B::Tensor>) -> Result<Self> {
        Ok(match rule {
            Rule::Constant { decay } => Self::Constant(read_all(be, [decay])?),
            Rule::Ssd { dt, dt_bias, a, d, limits } => Self::Ssd(read_all(be, [dt, dt_bias, a, d])?, *limits),
            Rule::Delta { gate, dt_bias, a, beta } => Self::Delta(read_all(be, [gate, dt_bias, a, beta])?),
            Rule::Wkv7 { decay, a, b } => Self::Wkv7(read_all(be, [decay, a, b])?),
        })
    }

    fn row(&self, i: usize) -> RuleRow<'_> {
        match self {
            Self::Constant([decay]) => RuleRow::Constant { decay: decay.row(0) },
            Self::Ssd([dt, dt_bias, a, _], limits) => {
                RuleRow::Ssd { dt: dt.row(i), dt_bias: dt_bias.row(0), a: a.row(0), limits: *limits }
            }
            Self::Delta([gate, dt_bias, a, beta]) => {
                RuleRow::Delta { gate: gate.row(i), dt_bias: dt_bias.row(0), a: a.row(0), beta: beta.row(i) }
            }
            Self::Wkv7([decay, ..]) => RuleRow::Wkv7 { decay: decay.row(i) },
        }
    }
}

pub(super) fn linear_attention<B: Backend>(
    be: &B,
    p: &LinearAttention<'_, B::Tensor>,
    spans: &[StateSpan<'_, B::Tensor>],
) -> Done<B> {
    let dims = p.dims(be, spans)?;
    let [q, k, v] = read_all(be, [p.q, p.k, p.v])?;
    let (rule, gates) = (HostRule::read(be, &p.rule)?, Gates::of(&p.rule, dims));
    let (n, width) = (dims.key_dim, dims.value_dim);
    let mut y = Matrix::zeros(dims.t, dims.heads * width);
    let (mut states, mut gate) = (States::new(), vec![0.0; gates.width()]);
    for span in spans {
        let mut state = Matrix::state(be, span.state, dims.state())?;
        for row in span.rows.clone() {
            gates.fill(rule.row(row), k.row(row), &mut gate);
            for h in 0..dims.heads {
                let key = dims.key_head(h) * n;
                let [q, k] = [q.row(row), k.row(row)].map(|x| &x[key..][..n]);
                let erase = match &rule {
                    HostRule::Constant(_) | HostRule::Ssd(..) => None,
                    HostRule::Delta(_) => Some((gates.made_key_at(h).map_or(k, |at| &gate[at..][..n]), k)),
                    HostRule::Wkv7([_, a, b]) => Some((&a.row(row)[h * n..][..n], &b.row(row)[h * n..][..n])),
                };
                Token {
                    decay: &gate[gates.decay_at(h)..][..dims.decays],
                    q,
                    k,
                    v: &v.row(row)[h * width..][..width],
                    scale: gate[gates.scale_at(h)],
                    erase: erase.map(|(key, at)| Erase { key, factor: gate[gates.erase_at(h)], at }),
                    skip: if let HostRule::Ssd([.., d], _) = &rule { d.row(0)[h] } else { 0.0 },
                }
                .run(
                    &mut state.values[h * n * width..][..n * width],
                    width,
                    &mut y.row_mut(row)[h * width..][..width],
                );
            }
        }
        states.push(state.upload(be)?);
    }
    Ok((y.upload(be)?, states))
}

pub(super) fn head_linear<B: Backend>(
    be: &B,
    x: &B::Tensor,
    w: &B::Tensor,
    bias: &B::Tensor,
) -> Result<B::Tensor> {
    let [t, heads, n, m] = head_dims(be, x, w, bias)?;
    let [x, w, bias] = read_all(be, [x, w, bias])?;
    let mut y = Matrix::zeros(t, heads * m);
    for row in 0..t {
        for (j, y) in y.row_mut(row).iter_mut().enumerate() {
            let h = j / m;
            *y = (0..n)
                .fold(bias.values[j], |sum, i| x.row(row)[h * n + i].mul_add(w.row(h * n + i)[j % m], sum));
        }
    }
    y.upload(be)
}

pub(super) fn rg_lru<B: Backend>(
    be: &B,
    x: &B::Tensor,
    p: &RgLru<'_, B::Tensor>,
    spans: &[StateSpan<'_, B::Tensor>],
) -> Done<B> {
    let [t, c] = p.dims(be, x, spans)?;
    let [x, input, recurrent, param] = read_all(be, [x, p.input, p.recurrent, p.param])?;
    let (mut y, mut states) = (Matrix::zeros(t, c), States::new());
    for span in spans {
        let mut state = Matrix::state(be, span.state, [1, c])?;
        for row in span.rows.clone() {
            let is_first = span.state.is_none() && row == span.rows.start;
            for j in 0..c {
                let (decay, factor) = rg_lru_gates(recurrent.row(row)[j], param.values[j], is_first);
                Token {
                    decay: &[decay],
                    q: &[1.0],
                    k: &[sigmoid(input.row(row)[j])],
                    v: &x.row(row)[j..=j],
                    scale: factor,
                    erase: None,
                    skip: 0.0,
                }
                .run(&mut state.values[j..=j], 1, &mut y.row_mut(row)[j..=j]);
            }
        }
        states.push(state.upload(be)?);
    }
    Ok((y.upload(be)?, states))
}

/// `α` and `m` of [`RgLru`].
pub(crate) fn rg_lru_gates(recurrent: f32, param: f32, is_first: bool) -> (f32, f32) {
    let log = -8.0 * sigmoid(recurrent) * softplus(param);
    let factor = if is_first { 1.0 } else { (-(2.0 * log).exp_m1()).sqrt() };
    (log.exp(), factor)
}
