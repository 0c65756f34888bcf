//! What a rule of linear attention does with its gates, as the factors of one recurrence: for each head
//! `S = w S`, `S = S - at (Sᵀ lookup)ᵀ + k vᵀ`, `y = Sᵀ q + skip`.

use mlx_rs::{Array, ops};

use super::{number, single, softplus};
use crate::mlx::{Mlx, MlxTensor, dim, exception};
use crate::recurrent::AttentionDims;
use crate::{LinearAttention, Result, Rule};

/// `e^-0.5`, of RWKV-7's decays.
const WKV7: f32 = 0.606_530_66;

/// Factors of all tokens, in `f32`: `[t, key heads, heads of values for each, width]`, where the third is 1 if they
/// are the same for these.
pub(super) struct Operands {
    pub q: Array,
    pub k: Array,
    pub v: Array,
    /// As wide as a key, or 1.
    pub decay: Array,
    pub erase: Option<Erase>,
    /// Added to what is read.
    pub skip: Option<Array>,
    sizes: [i32; 4],
}

/// What is looked up in a state and taken from it.
pub(super) struct Erase {
    pub lookup: Array,
    /// Where; at the key itself if it is not told.
    pub at: Option<Array>,
}

impl Operands {
    pub(super) fn new(be: &Mlx, p: &LinearAttention<'_, MlxTensor>, dims: AttentionDims) -> Result<Self> {
        let (t, groups, shared) = (dim(dims.t)?, dim(dims.key_heads)?, dim(dims.heads / dims.key_heads)?);
        let (n, width, decays) = (dim(dims.key_dim)?, dim(dims.value_dim)?, dim(dims.decays)?);
        let [q, k, v] = [single(be, p.q)?, single(be, p.k)?, single(be, p.v)?];
        let given = match &p.rule {
            Rule::Constant { decay } => vec![single(be, decay)?],
            Rule::Ssd { dt, dt_bias, a, d, .. } => all(be, &[dt, dt_bias, a, d])?,
            Rule::Delta { gate, dt_bias, a, beta } => all(be, &[gate, dt_bias, a, beta])?,
            Rule::Wkv7 { decay, a, b } => all(be, &[decay, a, b])?,
        };
        // Parameters have one row, which broadcasts.
        let heads = |x: &Array, width: i32| x.reshape(&[x.dim(0), groups, shared, width]);
        let make = || -> mlx_rs::error::Result<Self> {
            let [q, k] = [q.reshape(&[t, groups, 1, n])?, k.reshape(&[t, groups, 1, n])?];
            let v = heads(&v, width)?;
            let sizes = [groups, shared, n, width];
            let plain = Self { q, k, v, decay: number(1.0), erase: None, skip: None, sizes };
            Ok(match (&p.rule, given.as_slice()) {
                (Rule::Constant { .. }, [decay]) => {
                    let decay = ops::broadcast_to(heads(decay, 1)?, &[t, groups, shared, 1])?;
                    Self { decay, ..plain }
                }
                (Rule::Ssd { limits, .. }, [dt, dt_bias, a, d]) => {
                    let dt = ops::maximum(softplus(dt.add(dt_bias)?)?, number(limits[0]))?;
                    let dt = ops::minimum(dt, number(limits[1]))?;
                    let decay = heads(&dt.multiply(a)?.exp()?, 1)?;
                    let v = heads(&dt, 1)?.multiply(&plain.v)?;
                    let skip = heads(d, 1)?.multiply(&plain.v)?;
                    Self { decay, v, skip: Some(skip), ..plain }
                }
                (Rule::Delta { .. }, [gate, dt_bias, a, beta]) => {
                    let steps = heads(&softplus(gate.add(dt_bias)?)?, decays)?;
                    let beta = heads(&ops::sigmoid(beta)?, 1)?;
                    let erase = Erase { lookup: plain.k.multiply(&beta)?, at: None };
                    let decay = steps.multiply(heads(a, 1)?)?.exp()?;
                    Self { decay, v: plain.v.multiply(beta)?, erase: Some(erase), ..plain }
                }
                (Rule::Wkv7 { .. }, [decay, a, b]) => {
                    let decay = ops::sigmoid(decay)?.multiply(number(-WKV7))?.exp()?;
                    // It is looked up before the decay, which is never near zero.
                    let lookup = a.divide(decay.negative()?)?;
                    let erase = Erase { lookup: heads(&lookup, n)?, at: Some(heads(b, n)?) };
                    Self { decay: heads(&decay, n)?, erase: Some(erase), ..plain }
                }
                _ => plain,
            })
        };
        make().map_err(exception)
    }

    /// Key heads, heads of values for each, and the shape of a state.
    pub(super) fn state_shape(&self) -> [i32; 4] {
        self.sizes
    }
}

fn all(be: &Mlx, xs: &[&MlxTensor]) -> Result<Vec<Array>> {
    xs.iter().map(|x| single(be, x)).collect()
}
