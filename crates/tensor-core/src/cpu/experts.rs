//! Experts on the CPU: only the matrices of chosen experts are read. Pairs of rows and experts lie expert by expert, so
//! that the rows of an expert are one product.

mod choice;

use std::ops::Range;

use smallvec::SmallVec;

use self::choice::choose;
use super::matmul::{Along, Job, many};
use super::source::Source;
use super::{Cpu, CpuTensor, CpuWeight, Stored, rows, shape};
use crate::{Error, Experts, Input, Result, Routing, Weigh};

/// A row, one of its experts, and the expert's weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pair {
    expert: u32,
    weight: f32,
}

/// What the rows of a pass chose.
#[derive(Debug)]
pub struct CpuRoutes {
    /// The pairs of row 0, those of row 1, ..
    pairs: SmallVec<[Pair; 64]>,
    /// Which pair each row of a tensor of pairs is: by expert, and by row.
    order: SmallVec<[u32; 64]>,
    /// Where in that order each pair is.
    places: SmallVec<[u32; 64]>,
    top_k: usize,
    experts: usize,
    weigh: Weigh,
}

impl CpuRoutes {
    fn new(pairs: SmallVec<[Pair; 64]>, experts: usize, how: &Routing) -> Self {
        let mut order: SmallVec<[u32; 64]> = (0..pairs.len() as u32).collect();
        order.sort_unstable_by_key(|&pair| (pairs[pair as usize].expert, pair));
        let mut places: SmallVec<[u32; 64]> = SmallVec::from_elem(0, order.len());
        for (place, &pair) in (0..).zip(&order) {
            places[pair as usize] = place;
        }
        Self { pairs, order, places, top_k: how.top_k, experts, weigh: how.weigh }
    }

    /// Experts that rows chose, and their rows of a tensor of pairs.
    fn by_expert(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let expert = |place: usize| self.pairs[self.order[place] as usize].expert;
        let mut start = 0;
        std::iter::from_fn(move || {
            let first = start;
            if first >= self.order.len() {
                return None;
            }
            while start < self.order.len() && expert(start) == expert(first) {
                start += 1;
            }
            Some((expert(first) as usize, first..start))
        })
    }

    fn rows(&self) -> usize {
        self.pairs.len() / self.top_k.max(1)
    }
}

impl CpuWeight {
    fn stack(&self, op: &'static str) -> Result<&[CpuWeight]> {
        match &self.0 {
            Stored::Stack(all) => Ok(all),
            _ => Err(shape(op, self.dims(), [0, 0])),
        }
    }
}

/// One value for each of `n` experts.
fn for_each(w: Option<&CpuWeight>, n: usize) -> Result<Option<&[f32]>> {
    let values = w.map(|w| w.vector("route")).transpose()?;
    match values.filter(|values| values.len() != n) {
        Some(other) => Err(shape("route", [1, other.len()], [1, n])),
        None => Ok(values),
    }
}

impl Experts for Cpu {
    type Routes = CpuRoutes;

    fn stack(&self, matrices: Vec<CpuWeight>) -> Result<CpuWeight> {
        let want = matrices.first().map_or([0, 0], CpuWeight::dims);
        let vectors = matrices.iter().filter(|w| matches!(w.0, Stored::Vector(_))).count();
        let nested = matrices.iter().any(|w| matches!(w.0, Stored::Stack(_)));
        if let Some(other) = matrices.iter().find(|w| w.dims() != want) {
            return Err(shape("stack", other.dims(), want));
        }
        if nested || matrices.is_empty() || !(vectors == 0 || vectors == matrices.len()) {
            return Err(shape("stack", [vectors, matrices.len()], want));
        }
        Ok(CpuWeight(Stored::Stack(matrices)))
    }

    fn route(
        &self,
        logits: &CpuTensor,
        bias: Option<&CpuWeight>,
        factors: Option<&CpuWeight>,
        how: &Routing,
    ) -> Result<CpuRoutes> {
        how.check(logits.cols)?;
        let (bias, factors) = (for_each(bias, logits.cols)?, for_each(factors, logits.cols)?);
        let n = logits.rows.saturating_mul(how.top_k);
        if u32::try_from(n).is_err() {
            return Err(Error::OutOfMemory { what: "routes", bytes: n.saturating_mul(size_of::<Pair>()) });
        }
        let x = rows("route", logits)?;
        let mut pairs = SmallVec::from_elem(Pair::default(), n);
        self.each_run(&mut pairs, how.top_k, |i, pairs| {
            choose(x.row(i), bias, how, pairs);
            for pair in pairs {
                pair.weight *= factors.map_or(1.0, |factors| factors[pair.expert as usize]);
            }
        });
        Ok(CpuRoutes::new(pairs, logits.cols, how))
    }

    fn spread(&self, x: &CpuTensor, routes: &CpuRoutes) -> Result<CpuTensor> {
        if x.rows != routes.rows() {
            return Err(shape("spread", [x.rows, x.cols], [routes.rows(), x.cols]));
        }
        let source = rows("spread", x)?;
        let mut out = self.alloc(routes.order.len(), x.cols)?;
        self.each_row(&mut out, |place, row| {
            let pair = routes.order[place] as usize;
            row.copy_from_slice(source.row(pair / routes.top_k));
            if routes.weigh == Weigh::Inputs {
                (self.0.kernels.elementwise.scale)(row, routes.pairs[pair].weight);
            }
        });
        Ok(out)
    }

    fn linear_experts(
        &self,
        x: Input<'_, Self>,
        w: &CpuWeight,
        bias: Option<&CpuWeight>,
        routes: &CpuRoutes,
    ) -> Result<CpuTensor> {
        let op = "linear_experts";
        let (experts, [width, inp]) = (w.stack(op)?, w.dims());
        let biases = bias.map(|b| b.stack(op)).transpose()?;
        let source = self.source(&x)?;
        let [t, cols] = source.shape();
        if [t, cols] != [routes.order.len(), inp] {
            return Err(shape(op, [t, cols], [routes.order.len(), inp]));
        }
        if experts.len() != routes.experts || biases.is_some_and(|b| b.len() != experts.len()) {
            return Err(shape(op, [experts.len(), biases.map_or(0, <[_]>::len)], [routes.experts; 2]));
        }
        let jobs = routes.by_expert().map(|(expert, range)| {
            let bias = biases.map(|b| b[expert].vector(op)).transpose()?;
            Ok(Job { source: source.part(range), parts: experts[expert].matrices(op)?, bias })
        });
        let jobs = jobs.collect::<Result<SmallVec<[_; 16]>>>()?;
        let mut y = self.alloc(t, width)?;
        if let Some(target) = y.view_mut() {
            many(&self.context(), &jobs, Along::Rows, target)?;
        }
        Ok(y)
    }

    fn combine(&self, y: CpuTensor, routes: &CpuRoutes, residual: Option<CpuTensor>) -> Result<CpuTensor> {
        if y.rows != routes.order.len() {
            return Err(shape("combine", [y.rows, y.cols], [routes.order.len(), y.cols]));
        }
        let (t, source) = (routes.rows(), rows("combine", &y)?);
        let mut out = match residual {
            Some(h) if [h.rows, h.cols] != [t, y.cols] => {
                return Err(shape("combine", [h.rows, h.cols], [t, y.cols]));
            }
            Some(h) => self.own(h)?,
            None => {
                let mut zeros = self.alloc(t, y.cols)?;
                self.each_row(&mut zeros, |_, row| row.fill(0.0));
                zeros
            }
        };
        let k = routes.top_k;
        self.each_row(&mut out, |i, out| {
            for (pair, place) in routes.pairs[i * k..][..k].iter().zip(&routes.places[i * k..][..k]) {
                let weight = if routes.weigh == Weigh::Results { pair.weight } else { 1.0 };
                out.iter_mut().zip(source.row(*place as usize)).for_each(|(out, y)| *out += weight * y);
            }
        });
        Ok(out)
    }

    fn join_heads(&self, a: &CpuTensor, b: &CpuTensor, heads: usize) -> Result<CpuTensor> {
        let fits = heads > 0 && a.rows == b.rows && [a, b].iter().all(|x| x.cols.is_multiple_of(heads));
        if !fits {
            return Err(shape("join_heads", [b.rows, b.cols], [a.rows, a.cols]));
        }
        let ([m, n], mut out) = ([a, b].map(|x| x.cols / heads), self.alloc(a.rows, a.cols + b.cols)?);
        let (a, b) = (rows("join_heads", a)?, rows("join_heads", b)?);
        self.each_row(&mut out, |i, row| {
            for (head, out) in row.chunks_exact_mut((m + n).max(1)).enumerate() {
                out[..m].copy_from_slice(&a.row(i)[head * m..][..m]);
                out[m..].copy_from_slice(&b.row(i)[head * n..][..n]);
            }
        });
        Ok(out)
    }

    fn linear_heads(&self, x: &CpuTensor, w: &CpuWeight) -> Result<CpuTensor> {
        let op = "linear_heads";
        let (heads, [width, inp]) = (w.stack(op)?, w.dims());
        if x.cols != heads.len() * inp {
            return Err(shape(op, [x.rows, x.cols], [x.rows, heads.len() * inp]));
        }
        let x = rows(op, x)?;
        let jobs = heads.iter().enumerate().map(|(i, head)| {
            let source = Source::Rows(x.columns(i * inp, inp));
            Ok(Job { source, parts: head.matrices(op)?, bias: None })
        });
        let jobs = jobs.collect::<Result<SmallVec<[_; 16]>>>()?;
        let mut y = self.alloc(x.rows, heads.len() * width)?;
        if let Some(target) = y.view_mut()
            && x.rows > 0
        {
            many(&self.context(), &jobs, Along::Columns, target)?;
        }
        Ok(y)
    }
}
