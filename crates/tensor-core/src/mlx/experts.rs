//! Experts on MLX: what a row chooses stays on the device. Of many pairs, those of one expert lie together, which MLX's
//! gathered products make use of.

use mlx_rs::{Array, Dtype, ops};

use super::raw::Order;
use super::weight::{Matrix, dims};
use super::{Mlx, MlxTensor, MlxWeight, dim, exception, shape, tensor};
use crate::{Experts, GroupScore, Groups, Input, Result, Routing, Score, Weigh};

/// Pairs from which they are sorted by expert.
const SORTED: usize = 64;

/// What the rows of a pass chose.
#[derive(Debug)]
pub struct MlxRoutes {
    /// Of each pair in the order of tensors of pairs.
    experts: Array,
    /// `[t, top_k]`, f32.
    weights: Array,
    sorting: Option<Sorting>,
    rows: usize,
    top_k: usize,
    count: usize,
    weigh: Weigh,
}

/// Another order of pairs than row by row.
#[derive(Debug)]
struct Sorting {
    /// Which pair comes where.
    order: Array,
    /// Where each pair is.
    places: Array,
}

impl MlxRoutes {
    fn pairs(&self) -> usize {
        self.rows * self.top_k
    }
}

fn number(value: f32) -> Array {
    Array::from_f32(value)
}

/// The `k` greatest of each row of `x`: their columns, in any order.
fn greatest(x: &Array, k: usize) -> Result<Array> {
    let all = ops::argpartition_axis(x.negative().map_err(exception)?, dim(k)? - 1, -1).map_err(exception)?;
    super::raw::slice(&all, [0, 0], [x.dim(0), dim(k)?])
}

/// `x` with minus infinity in the columns of other groups than the best.
fn best_groups(x: &Array, groups: &Groups) -> Result<Array> {
    let (t, n) = (x.dim(0), x.dim(1));
    let (count, size) = (dim(groups.count)?, n / dim(groups.count)?);
    let grouped = x.reshape(&[t, count, size]).map_err(exception)?;
    let scores = match groups.by {
        GroupScore::TwoGreatest if size > 1 => {
            let sorted = ops::sort_axis(&grouped, -1).map_err(exception)?;
            let two = super::raw::slice(&sorted, [0, 0, size - 2], [t, count, size])?;
            two.sum_axis(-1, false)
        }
        _ => grouped.max_axis(-1, false),
    }
    .map_err(exception)?;
    // The rank of each group: the order of the order.
    let order = scores.negative().and_then(|s| ops::argsort_axis(s, -1)).map_err(exception)?;
    let ranks = ops::argsort_axis(order, -1).map_err(exception)?;
    let kept = ranks.lt(Array::from_slice(&[groups.chosen as u32], &[1]));
    let kept = kept.and_then(|kept| kept.reshape(&[t, count, 1])).map_err(exception)?;
    let hidden = ops::select(kept, grouped, number(f32::NEG_INFINITY)).map_err(exception)?;
    hidden.reshape(&[t, n]).map_err(exception)
}

/// One expert after the other; see [`Score::SparseMixer`].
fn sparse_mixer(logits: &Array, jitter: f32, top_k: usize) -> Result<[Array; 2]> {
    let (t, n) = (logits.dim(0), logits.dim(1));
    let lowest = number(f32::NEG_INFINITY);
    let columns = Array::from_iter(0..n as u32, &[1, n]);
    let (mut left, mut experts, mut weights) = (logits.clone(), Vec::new(), Vec::new());
    for _ in 0..top_k {
        let expert = ops::indexing::argmax_axis(&left, -1, true).map_err(exception)?;
        let most = left.max_axis(-1, true).map_err(exception)?;
        let gap = most.subtract(logits).and_then(|gap| gap.divide(ops::maximum(logits.abs()?, &most)?));
        let far = gap.and_then(|gap| gap.gt(number(2.0 * jitter))).map_err(exception)?;
        let near = ops::select(far, &lowest, &left).map_err(exception)?;
        let shares = near.subtract(&most).and_then(|x| x.exp()).and_then(|e| e.sum_axis(-1, true));
        weights.push(shares.and_then(|sum| number(1.0).divide(sum)).map_err(exception)?);
        let taken = columns.eq(&expert).map_err(exception)?;
        left = ops::select(taken, &lowest, &left).map_err(exception)?;
        experts.push(expert.reshape(&[t, 1]).map_err(exception)?);
    }
    let join = |parts: &[Array]| ops::concatenate(parts, 1).map_err(exception);
    Ok([join(&experts)?, join(&weights)?])
}

/// The experts of each row of `logits`, and their weights: both `[t, top_k]`.
fn choose(logits: &Array, bias: Option<&Array>, how: &Routing) -> Result<[Array; 2]> {
    let [experts, mut weights] = match how.score {
        Score::SparseMixer { jitter } => sparse_mixer(logits, jitter, how.top_k)?,
        score => {
            let scores = match score {
                Score::Softmax => ops::softmax_axis(logits, -1, true).map_err(exception)?,
                Score::Sigmoid => ops::sigmoid(logits).map_err(exception)?,
                _ => logits.clone(),
            };
            let mut choice = match bias {
                Some(bias) => scores.add(bias).map_err(exception)?,
                None => scores.clone(),
            };
            if let Some(groups) = &how.groups {
                choice = best_groups(&choice, groups)?;
            }
            let experts = greatest(&choice, how.top_k)?;
            let chosen = scores.take_along_axis(&experts, -1).map_err(exception)?;
            match score {
                Score::Chosen => [experts, ops::softmax_axis(chosen, -1, true).map_err(exception)?],
                _ => [experts, chosen],
            }
        }
    };
    if let Some(more) = how.normalize {
        let sum = weights.sum_axis(-1, true).and_then(|sum| sum.add(number(more)));
        weights = sum.and_then(|sum| weights.divide(sum)).map_err(exception)?;
    }
    if how.scale != 1.0 {
        weights = weights.multiply(number(how.scale)).map_err(exception)?;
    }
    Ok([experts, weights])
}

/// Results of merged matrices side by side.
fn beside(parts: &[Matrix], f: impl Fn(&Matrix) -> Result<Array>) -> Result<Array> {
    match parts {
        [part] => f(part),
        _ => {
            let all = parts.iter().map(f).collect::<Result<Vec<_>>>()?;
            ops::concatenate(&all, -1).map_err(exception)
        }
    }
}

impl Experts for Mlx {
    type Routes = MlxRoutes;

    fn stack(&self, matrices: Vec<MlxWeight>) -> Result<MlxWeight> {
        MlxWeight::stack(&matrices)
    }

    fn route(
        &self,
        logits: &MlxTensor,
        bias: Option<&MlxWeight>,
        factors: Option<&MlxWeight>,
        how: &Routing,
    ) -> Result<MlxRoutes> {
        let [t, count] = logits.shape();
        how.check(count)?;
        let vector = |w: &MlxWeight| match w.vector("route")? {
            values if values.size() == count => values.as_dtype(Dtype::Float32).map_err(exception),
            values => Err(shape("route", [1, values.size()], [1, count])),
        };
        let (bias, factors) = (bias.map(vector).transpose()?, factors.map(vector).transpose()?);
        let logits = logits.array(self)?.as_dtype(Dtype::Float32).map_err(exception)?;
        let (top_k, pairs) = (how.top_k, dim(t * how.top_k)?);
        let [chosen, mut weights] = if t == 0 {
            let none = |dtype| ops::zeros_dtype(&[0, dim(top_k)?], dtype).map_err(exception);
            [none(Dtype::Uint32)?, none(Dtype::Float32)?]
        } else {
            choose(&logits, bias.as_ref(), how)?
        };
        if let Some(factors) = factors {
            let own = factors.take_axis(&chosen, 0);
            weights = own.and_then(|own| weights.multiply(own)).map_err(exception)?;
        }
        let mut experts = chosen.reshape(&[pairs]).map_err(exception)?;
        let mut sorting = None;
        if t * top_k >= SORTED {
            let order = ops::argsort_axis(&experts, 0).map_err(exception)?;
            experts = experts.take_axis(&order, 0).map_err(exception)?;
            let places = ops::argsort_axis(&order, 0).map_err(exception)?;
            sorting = Some(Sorting { order, places });
        }
        Ok(MlxRoutes { experts, weights, sorting, rows: t, top_k, count, weigh: how.weigh })
    }

    fn spread(&self, x: &MlxTensor, routes: &MlxRoutes) -> Result<MlxTensor> {
        let [t, d] = x.shape();
        if t != routes.rows {
            return Err(shape("spread", [t, d], [routes.rows, d]));
        }
        let (k, x) = (dim(routes.top_k)?, x.array(self)?);
        let mut all = x.reshape(&[dim(t)?, 1, dim(d)?]).map_err(exception)?;
        all = match routes.weigh {
            Weigh::Inputs => {
                let weights = routes.weights.reshape(&[dim(t)?, k, 1]).and_then(|w| w.as_dtype(x.dtype()));
                weights.and_then(|w| all.multiply(w)).map_err(exception)?
            }
            Weigh::Results => ops::broadcast_to(all, &[dim(t)?, k, dim(d)?]).map_err(exception)?,
        };
        let all = all.reshape(&[dim(routes.pairs())?, dim(d)?]).map_err(exception)?;
        match &routes.sorting {
            Some(sorting) => tensor(all.take_axis(&sorting.order, 0)),
            None => Ok(all.into()),
        }
    }

    fn linear_experts(
        &self,
        x: Input<'_, Self>,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        routes: &MlxRoutes,
    ) -> Result<MlxTensor> {
        let op = "linear_experts";
        let (experts, matrices) = w.stacked(op)?;
        let [out, inp] = dims(matrices);
        let bias = bias.map(|b| b.vectors(op)).transpose()?;
        let fits = bias.is_none_or(|b| [b.dim(0) as usize, b.dim(1) as usize] == [experts, out]);
        if experts != routes.count || !fits {
            return Err(shape(op, [experts, out], [routes.count, out]));
        }
        if let Some(y) = self.fused_experts(&x, matrices, bias, &routes.experts)? {
            return Ok(y);
        }
        let x = x.rows(self)?;
        let [t, cols] = x.shape();
        if [t, cols] != [routes.pairs(), inp] {
            return Err(shape(op, [t, cols], [routes.pairs(), inp]));
        }
        let (rows, width) = (dim(t)?, dim(out)?);
        if t == 0 {
            return tensor(ops::zeros_dtype(&[0, width], self.dtype()));
        }
        let x = x.array(self)?.reshape(&[rows, 1, dim(cols)?]).map_err(exception)?;
        let order = if routes.sorting.is_some() { Order::Ascending } else { Order::Any };
        let y = beside(matrices, |m| m.gather(&x, &routes.experts, order, self.dtype(), self.0.on))?;
        let y = y.reshape(&[rows, width]).map_err(exception)?;
        match bias {
            Some(bias) => tensor(bias.take_axis(&routes.experts, 0).and_then(|b| y.add(b))),
            None => Ok(y.into()),
        }
    }

    fn combine(&self, y: MlxTensor, routes: &MlxRoutes, residual: Option<MlxTensor>) -> Result<MlxTensor> {
        let [t, d] = y.shape();
        if t != routes.pairs() {
            return Err(shape("combine", [t, d], [routes.pairs(), d]));
        }
        if let Some(h) = residual.as_ref().filter(|h| h.shape() != [routes.rows, d]) {
            return Err(shape("combine", h.shape(), [routes.rows, d]));
        }
        let y = y.array(self)?;
        let (rows, k) = (dim(routes.rows)?, dim(routes.top_k)?);
        let ordered = match &routes.sorting {
            Some(sorting) => y.take_axis(&sorting.places, 0).map_err(exception)?,
            None => y.clone().into_owned(),
        };
        let mut all = ordered.reshape(&[rows, k, dim(d)?]).map_err(exception)?;
        if routes.weigh == Weigh::Results {
            let weights = routes.weights.reshape(&[rows, k, 1]).and_then(|w| w.as_dtype(y.dtype()));
            all = weights.and_then(|w| all.multiply(w)).map_err(exception)?;
        }
        let sum = all.sum_axis(1, false).map_err(exception)?;
        match residual {
            Some(h) => tensor(h.array(self)?.add(sum)),
            None => Ok(sum.into()),
        }
    }

    fn join_heads(&self, a: &MlxTensor, b: &MlxTensor, heads: usize) -> Result<MlxTensor> {
        let ([t, m], [rows, n]) = (a.shape(), b.shape());
        if heads == 0 || rows != t || !m.is_multiple_of(heads) || !n.is_multiple_of(heads) {
            return Err(shape("join_heads", [rows, n], [t, m]));
        }
        let by_head = |x: &MlxTensor, cols: usize| -> Result<Array> {
            x.array(self)?.reshape(&[dim(t)?, dim(heads)?, dim(cols / heads)?]).map_err(exception)
        };
        let all = ops::concatenate(&[by_head(a, m)?, by_head(b, n)?], -1).map_err(exception)?;
        tensor(all.reshape(&[dim(t)?, dim(m + n)?]))
    }

    fn linear_heads(&self, x: &MlxTensor, w: &MlxWeight) -> Result<MlxTensor> {
        let op = "linear_heads";
        let (heads, matrices) = w.stacked(op)?;
        let ([t, cols], [out, inp]) = (x.shape(), dims(matrices));
        if cols != heads * inp {
            return Err(shape(op, [t, cols], [t, heads * inp]));
        }
        let (rows, n) = (dim(t)?, dim(heads)?);
        if t == 0 {
            return tensor(ops::zeros_dtype(&[0, dim(heads * out)?], self.dtype()));
        }
        let x = x.array(self)?.reshape(&[rows, n, dim(inp)?]).and_then(|x| x.swap_axes(0, 1));
        let x = x.map_err(exception)?;
        let y = beside(matrices, |m| m.by_heads(&x, self.dtype(), self.0.on))?;
        tensor(y.swap_axes(0, 1).and_then(|y| y.reshape(&[rows, dim(heads * out).unwrap_or(0)])))
    }
}
