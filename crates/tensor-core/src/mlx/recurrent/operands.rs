//! What a rule of linear attention does with its gates, as the factors of one recurrence: for each head
//! `S = w S`, `S = S - at (Sᵀ lookup)ᵀ + k vᵀ`, `y = Sᵀ q + skip`.

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{Made, number, rows, single, softplus};
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
        let (groups, shared) = (dim(dims.key_heads)?, dim(dims.heads / dims.key_heads)?);
        let sizes = [groups, shared, dim(dims.key_dim)?, dim(dims.value_dim)?];
        let of = |x: &MlxTensor| single(be, x);
        let plain = Self::plain([of(p.q)?, of(p.k)?, of(p.v)?], sizes).map_err(exception)?;
        match &p.rule {
            Rule::Constant { decay } => plain.constant(&of(decay)?),
            Rule::Ssd { dt, dt_bias, a, d, limits } => {
                plain.ssd([of(dt)?, of(dt_bias)?, of(a)?, of(d)?], *limits)
            }
            Rule::Delta { gate, dt_bias, a, beta } => {
                plain.delta([of(gate)?, of(dt_bias)?, of(a)?, of(beta)?], dim(dims.decays)?)
            }
            Rule::Wkv7 { decay, a, b } => plain.wkv7([of(decay)?, of(a)?, of(b)?]),
        }
        .map_err(exception)
    }

    /// Those of some tokens, without what is added.
    pub(super) fn part(&self, range: Range<i32>) -> Result<Self> {
        let part = |x: &Array| rows(x, range.start, range.end);
        let erase = match &self.erase {
            None => None,
            Some(Erase { lookup, at }) => {
                Some(Erase { lookup: part(lookup)?, at: at.as_ref().map(part).transpose()? })
            }
        };
        let (q, k, v, decay) = (part(&self.q)?, part(&self.k)?, part(&self.v)?, part(&self.decay)?);
        Ok(Self { q, k, v, decay, erase, skip: None, sizes: self.sizes })
    }

    /// Key heads, heads of values for each, and the shape of a state.
    pub(super) fn state_shape(&self) -> [i32; 4] {
        self.sizes
    }

    /// Before its rule.
    fn plain([q, k, v]: [Array; 3], sizes: [i32; 4]) -> Made<Self> {
        let [groups, shared, n, width] = sizes;
        let [q, k] = [q, k].map(|x| x.reshape(&[x.dim(0), groups, 1, n]));
        let v = v.reshape(&[v.dim(0), groups, shared, width])?;
        Ok(Self { q: q?, k: k?, v, decay: number(1.0), erase: None, skip: None, sizes })
    }

    /// `x: [rows, heads * width]` by heads. Parameters have one row, which broadcasts.
    fn heads(&self, x: &Array, width: i32) -> Made<Array> {
        x.reshape(&[x.dim(0), self.sizes[0], self.sizes[1], width])
    }

    fn constant(self, decay: &Array) -> Made<Self> {
        let [groups, shared, ..] = self.sizes;
        let decay = ops::broadcast_to(self.heads(decay, 1)?, &[self.k.dim(0), groups, shared, 1])?;
        Ok(Self { decay, ..self })
    }

    fn ssd(self, [dt, dt_bias, a, d]: [Array; 4], [least, most]: [f32; 2]) -> Made<Self> {
        let dt = ops::maximum(softplus(dt.add(dt_bias)?)?, number(least))?;
        let dt = ops::minimum(dt, number(most))?;
        let decay = self.heads(&dt.multiply(a)?.exp()?, 1)?;
        let v = self.heads(&dt, 1)?.multiply(&self.v)?;
        let skip = self.heads(&d, 1)?.multiply(&self.v)?;
        Ok(Self { decay, v, skip: Some(skip), ..self })
    }

    fn delta(self, [gate, dt_bias, a, beta]: [Array; 4], decays: i32) -> Made<Self> {
        let steps = self.heads(&softplus(gate.add(dt_bias)?)?, decays)?;
        let decay = steps.multiply(self.heads(&a, 1)?)?.exp()?;
        let beta = self.heads(&ops::sigmoid(beta)?, 1)?;
        let erase = Erase { lookup: self.k.multiply(&beta)?, at: None };
        Ok(Self { decay, v: self.v.multiply(beta)?, erase: Some(erase), ..self })
    }

    fn wkv7(self, [decay, a, b]: [Array; 3]) -> Made<Self> {
        let n = self.sizes[2];
        let decay = ops::sigmoid(decay)?.multiply(number(-WKV7))?.exp()?;
        // It is looked up before the decay, which is never near zero, and added, not taken.
        let lookup = a.divide(decay.negative()?)?;
        let erase = Erase { lookup: self.heads(&lookup, n)?, at: Some(self.heads(&b, n)?) };
        Ok(Self { decay: self.heads(&decay, n)?, erase: Some(erase), ..self })
    }
}
