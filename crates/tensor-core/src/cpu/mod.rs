//! The CPU backend: eager, `f32` activations, packed weights, kernels picked at run time.
//!
//! What is computed where: `packed` lays weights out, `matmul` and `attention` divide work among `threads`,
//! `kernels` compute, `tensor` owns memory.

mod arena;
mod attention;
mod bandwidth;
mod cores;
mod experts;
mod kernels;
mod matmul;
mod packed;
mod recurrent;
mod rope;
mod rows;
mod source;
mod tensor;
mod threads;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rillm_quant::RawTensor;

use self::arena::Arena;
use self::attention::SpanView;
use self::kernels::Kernels;
use self::matmul::{Context, Epilogue, Residual, Scratch};
use self::packed::Packed;
use self::rope::Angles;
use self::rows::Rows;
use self::source::Source;
use self::tensor::{KvData, KvMut, Pool};
use self::threads::Threads;
use crate::{
    Activation, AttnParams, AttnSpan, Backend, Batch, Error, Ids, Input, Keys, KvLayout, Result, Rope,
};

pub use self::bandwidth::Bandwidth;
pub use self::experts::CpuRoutes;
pub use self::matmul::Precision;
pub use self::tensor::CpuTensor;

/// Values below which dividing work among threads costs more than it saves.
const SERIAL: usize = 1 << 14;

/// The CPU backend. Clones share threads and memory; two values made apart share nothing.
#[derive(Clone, Debug)]
pub struct Cpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernels: &'static Kernels,
    threads: Threads,
    precision: Precision,
    scratch: Scratch,
    weights: Arena,
    caches: Arena,
    pool: Arc<Pool>,
    angles: Angles,
}

/// Choices for a [`Cpu`]. The default is the fastest kernels, a thread for each physical performance core, and
/// [`Precision::Fast`].
#[derive(Clone, Debug, Default)]
pub struct CpuBuilder {
    threads: Option<usize>,
    precision: Precision,
    kernels: Option<String>,
}

impl CpuBuilder {
    /// Computes with `n` threads, the calling one included.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n.max(1));
        self
    }

    /// Rounds activations and caches as `precision` says.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Pins the kernels to those called `name`, one of [`Cpu::kernel_names`].
    pub fn kernels(mut self, name: impl Into<String>) -> Self {
        self.kernels = Some(name.into());
        self
    }

    /// Starts the backend.
    ///
    /// # Errors
    /// Kernels that this processor lacks, or threads that the system refuses.
    pub fn build(self) -> Result<Cpu> {
        let kernels = match &self.kernels {
            None => kernels::best(),
            Some(name) => kernels::by_name(name).ok_or_else(|| Error::Backend {
                backend: "cpu",
                message: format!("no kernels {name:?} here, there are {}", Cpu::kernel_names().join(", ")),
            })?,
        };
        // Activations and what is computed from them share pages; weights and caches have theirs.
        let work = Arena::default();
        Ok(Cpu(Arc::new(Inner {
            kernels,
            threads: Threads::new(self.threads.unwrap_or_else(cores::default_threads))?,
            precision: self.precision,
            scratch: Scratch::new(work.clone()),
            weights: Arena::default(),
            caches: Arena::default(),
            pool: Arc::new(Pool::new(work)),
            angles: Angles::default(),
        })))
    }
}

/// Parameters as the CPU keeps them.
#[derive(Debug)]
pub struct CpuWeight(Stored);

#[derive(Debug)]
enum Stored {
    /// Norms and biases.
    Vector(Vec<f32>),
    /// Matrices of equal width, rows stacked.
    Matrices(Vec<Packed>),
    /// One for each expert or head, of equal shape.
    Stack(Vec<CpuWeight>),
}

impl CpuWeight {
    fn vector(&self, op: &'static str) -> Result<&[f32]> {
        match &self.0 {
            Stored::Vector(v) => Ok(v),
            _ => Err(shape(op, self.dims(), [1, self.dims()[1]])),
        }
    }

    fn matrices(&self, op: &'static str) -> Result<&[Packed]> {
        match &self.0 {
            Stored::Matrices(m) => Ok(m),
            _ => Err(shape(op, self.dims(), [self.dims()[1], 1])),
        }
    }

    /// Rows and columns, of one of a stack.
    fn dims(&self) -> [usize; 2] {
        match &self.0 {
            Stored::Vector(v) => [1, v.len()],
            Stored::Matrices(m) => dims(m),
            Stored::Stack(all) => all.first().map_or([0, 0], Self::dims),
        }
    }
}

fn dims(matrices: &[Packed]) -> [usize; 2] {
    [matrices.iter().map(Packed::rows).sum(), matrices.first().map_or(0, Packed::cols)]
}

fn shape(op: &'static str, got: [usize; 2], want: [usize; 2]) -> Error {
    Error::Shape { op, got, want }
}

impl Cpu {
    /// The backend with default choices.
    ///
    /// # Errors
    /// Threads that the system refuses.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Choices to make.
    pub fn builder() -> CpuBuilder {
        CpuBuilder::default()
    }

    /// Names of the kernels that this processor can run, slowest first.
    pub fn kernel_names() -> Vec<&'static str> {
        kernels::available().into_iter().map(|k| k.name).collect()
    }

    /// Threads that compute, the calling one included.
    pub fn threads(&self) -> usize {
        self.0.threads.count()
    }

    fn context(&self) -> Context<'_> {
        let Inner { kernels, threads, precision, scratch, .. } = &*self.0;
        Context { kernels, threads, precision: *precision, scratch }
    }

    fn alloc(&self, rows: usize, cols: usize) -> Result<CpuTensor> {
        let len = rows.saturating_mul(cols);
        Ok(CpuTensor::new(self.0.pool.take(len)?, rows, cols))
    }

    /// `x` in memory of its own without gaps: itself if it is that already.
    fn own(&self, mut x: CpuTensor) -> Result<CpuTensor> {
        if x.unique().is_some() {
            return Ok(x);
        }
        self.make(Source::Rows(rows("copy", &x)?))
    }

    /// What `source` makes, in memory of its own.
    fn make(&self, source: Source<'_>) -> Result<CpuTensor> {
        let [t, cols] = source.shape();
        let mut out = self.alloc(t, cols)?;
        self.each_row(&mut out, |i, row| source.make(&self.0.kernels.elementwise, i, row));
        Ok(out)
    }

    /// The rows that `input` stands for.
    fn source<'a>(&self, input: &Input<'a, Self>) -> Result<Source<'a>> {
        Ok(match *input {
            Input::Rows(x) => Source::Rows(rows("linear", x)?),
            Input::RmsNorm { x, w, eps } => {
                let w = w.vector("rms_norm")?;
                if w.is_empty() || !x.cols.is_multiple_of(w.len()) {
                    return Err(shape("rms_norm", [x.rows, x.cols], [x.rows, w.len()]));
                }
                Source::RmsNorm { x: rows("rms_norm", x)?, w, eps }
            }
            Input::LayerNorm { x, w, bias, eps } => {
                let w = w.vector("layer_norm")?;
                let bias = bias.map(|b| b.vector("layer_norm bias")).transpose()?;
                let runs = !w.is_empty() && x.cols.is_multiple_of(w.len());
                if !runs || bias.is_some_and(|b| b.len() != w.len()) {
                    return Err(shape("layer_norm", [x.rows, x.cols], [x.rows, w.len()]));
                }
                Source::LayerNorm { x: rows("layer_norm", x)?, w, bias, eps }
            }
            Input::Gated { act, gate_up: x } => {
                let half = x.cols / 2;
                if 2 * half != x.cols {
                    return Err(shape("gate", [x.rows, x.cols], [x.rows, 2 * half]));
                }
                let x = rows("gate", x)?;
                Source::Gated { act, gate: x.columns(0, half), up: x.columns(half, half) }
            }
        })
    }

    /// Calls `f` on every row of `x`, which is unshared, in parallel if there is much to do.
    fn each_row(&self, x: &mut CpuTensor, f: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = x.cols;
        if let Some(values) = x.unique() {
            self.each_run(values, cols, f);
        }
    }

    /// Calls `f` on every run of `cols` values, in parallel if there is much to do.
    fn each_run<T: Send>(&self, values: &mut [T], cols: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        if values.is_empty() || cols == 0 {
            return;
        }
        let n = values.len() / cols;
        if n * cols < SERIAL || n == 1 {
            values.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| f(i, row));
            return;
        }
        let tasks = (4 * self.threads()).min(n);
        let height = n.div_ceil(tasks);
        let parts = Mutex::new(values.chunks_mut(height * cols).enumerate());
        self.0.threads.run(n.div_ceil(height), &|_| {
            let part = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((p, part)) = part else { return };
            part.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| f(p * height + i, row));
        });
    }

    /// `f(x)` row by row, in place where `x` is unshared.
    fn update(&self, x: CpuTensor, f: impl Fn(usize, &mut [f32]) + Sync) -> Result<CpuTensor> {
        let mut x = self.own(x)?;
        self.each_row(&mut x, f);
        Ok(x)
    }
}

/// The slots of a key buffer from `at` on that rows `rows` of `src` go to.
fn slots<'a>(dst: &'a mut CpuTensor, at: usize, src: &CpuTensor, rows: &Range<usize>) -> Result<KvMut<'a>> {
    let cols = dst.cols;
    let there = rows.start <= rows.end && rows.end <= src.rows;
    let fits = src.cols == cols && there && at.checked_add(rows.len()).is_some_and(|end| end <= dst.rows);
    let wrong = shape("write_rows", [src.rows, src.cols], [dst.rows, cols]);
    match dst.kv_mut()? {
        Some(kv) if fits => Ok(kv.part(at * cols..(at + rows.len()) * cols)),
        _ => Err(wrong),
    }
}

/// Whether `rope` can turn the rows of `x` by their positions in `batch`.
fn check_rope(x: &CpuTensor, rope: &Rope, batch: &Batch) -> Result<()> {
    let fits =
        rope.head_dim > 0 && x.cols.is_multiple_of(rope.head_dim) && rope.inv_freq.len() <= rope.head_dim / 2;
    if !fits || batch.rows() != x.rows {
        return Err(shape("rope", [x.rows, x.cols], [batch.rows(), rope.head_dim]));
    }
    Ok(())
}

/// The activations of `x`.
fn rows<'a>(op: &'static str, x: &'a CpuTensor) -> Result<Rows<'a>> {
    x.view().ok_or_else(|| shape(op, [x.rows, x.cols], [0, 0]))
}

impl Backend for Cpu {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;

    fn name(&self) -> String {
        let n = self.threads();
        format!("cpu ({}, {n} {})", self.0.kernels.name, if n == 1 { "thread" } else { "threads" })
    }

    fn shape(&self, x: &CpuTensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<CpuWeight> {
        if let [vector] = parts
            && vector.shape.len() < 2
        {
            return Ok(CpuWeight(Stored::Vector(vector.decode()?)));
        }
        let pack = |raw| Packed::new(raw, &self.0.weights, self.0.kernels, &self.0.threads);
        let packed = parts.iter().map(pack).collect::<Result<Vec<_>>>()?;
        let want = dims(&packed);
        match packed.iter().find(|m| m.cols() != want[1]) {
            Some(m) => Err(shape("prepare", [m.rows(), m.cols()], want)),
            None => Ok(CpuWeight(Stored::Matrices(packed))),
        }
    }

    fn weight_bytes(&self, w: &CpuWeight) -> usize {
        match &w.0 {
            Stored::Vector(v) => 4 * v.len(),
            Stored::Matrices(m) => m.iter().map(Packed::bytes).sum(),
            Stored::Stack(all) => all.iter().map(|w| self.weight_bytes(w)).sum(),
        }
    }

    fn kv_buffer(&self, rows: usize, cols: usize) -> Result<CpuTensor> {
        match self.0.precision {
            Precision::Exact => CpuTensor::single(&self.0.caches, rows, cols),
            Precision::Fast => CpuTensor::half(&self.0.caches, rows, cols),
        }
    }

    fn tensor_bytes(&self, x: &CpuTensor) -> usize {
        x.bytes()
    }

    fn embed(&self, table: &CpuWeight, ids: Ids<'_, Self>) -> Result<CpuTensor> {
        let Ids::Host(ids) = ids else { return Err(Error::NoDeviceIds) };
        let matrices = table.matrices("embed")?;
        let [Some(table)] = [matrices.first()] else { return Err(shape("embed", [0, 0], [1, 1])) };
        let vocab = table.rows();
        if let Some(&token) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::TokenOutOfRange { token, vocab });
        }
        let mut out = self.alloc(ids.len(), table.cols())?;
        self.each_row(&mut out, |i, row| table.row(ids[i] as usize, row));
        Ok(out)
    }

    fn linear(&self, x: &CpuTensor, w: &CpuWeight, bias: Option<&CpuWeight>) -> Result<CpuTensor> {
        self.project(Input::Rows(x), w, bias, None)
    }

    fn rms_norm(&self, x: &CpuTensor, w: &CpuWeight, eps: f32) -> Result<CpuTensor> {
        self.make(self.source(&Input::RmsNorm { x, w, eps })?)
    }

    fn layer_norm(
        &self,
        x: &CpuTensor,
        w: &CpuWeight,
        bias: Option<&CpuWeight>,
        eps: f32,
    ) -> Result<CpuTensor> {
        self.make(self.source(&Input::LayerNorm { x, w, bias, eps })?)
    }

    fn rope(&self, x: CpuTensor, rope: &Rope, batch: &Batch) -> Result<CpuTensor> {
        check_rope(&x, rope, batch)?;
        let (turn, source) = (self.0.kernels.elementwise.rope, rows("rope", &x)?);
        let mut out = self.alloc(x.rows, x.cols)?;
        self.0.angles.with(rope, batch.positions(), |table| {
            self.each_row(&mut out, |i, row| turn(source.row(i), table.turn(i), row));
        });
        Ok(out)
    }

    fn attention(
        &self,
        q: &CpuTensor,
        spans: &[AttnSpan<'_, CpuTensor>],
        p: &AttnParams,
        sinks: Option<&CpuWeight>,
    ) -> Result<CpuTensor> {
        let divides = p.kv_heads > 0 && p.heads.is_multiple_of(p.kv_heads);
        if q.cols != p.q_dim() || p.v_head_dim == 0 || !divides {
            return Err(shape("attention", [q.rows, q.cols], [q.rows, p.q_dim()]));
        }
        let sinks = sinks.map(|s| s.vector("attention sinks")).transpose()?;
        if let Some(sinks) = sinks.filter(|s| s.len() != p.heads) {
            return Err(shape("attention sinks", [1, sinks.len()], [1, p.heads]));
        }
        let views = spans.iter().map(|s| {
            let wrong = || shape("attention", [s.k.rows, s.k.cols], [s.layout.len, p.k_dim()]);
            let KvLayout { len, keep, ring } = s.layout;
            let slots = len.min(keep.saturating_add(ring));
            let fits = |x: &CpuTensor, dim| x.cols == dim && x.rows >= slots && (ring > 0 || len <= keep);
            let fit = fits(s.k, p.k_dim()) && fits(s.v, p.v_dim());
            if !fit || s.rows.end > q.rows || s.rows.len() > len {
                return Err(wrong());
            }
            let (k, v) = s.k.kv().zip(s.v.kv()).ok_or_else(wrong)?;
            Ok(SpanView { rows: s.rows.clone(), k, v, layout: s.layout, sink: s.sink, window: s.window })
        });
        let views = views.collect::<Result<smallvec::SmallVec<[_; 4]>>>()?;
        let mut out = self.alloc(q.rows, p.out_dim())?;
        let q = rows("attention", q)?;
        if let Some(target) = out.view_mut() {
            attention::attention(&self.context(), q, &views, (p, sinks), target)?;
        }
        Ok(out)
    }

    fn activate(&self, act: Activation, x: CpuTensor) -> Result<CpuTensor> {
        let f = self.0.kernels.elementwise.activate;
        self.update(x, |_, row| f(act, row))
    }

    fn gate(&self, act: Activation, gate: CpuTensor, up: &CpuTensor) -> Result<CpuTensor> {
        let (got, want) = (self.shape(up), self.shape(&gate));
        if got != want {
            return Err(shape("gate", got, want));
        }
        self.make(Source::Gated { act, gate: rows("gate", &gate)?, up: rows("gate", up)? })
    }

    fn add(&self, x: CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        let (got, want) = (self.shape(y), self.shape(&x));
        if got != want {
            return Err(shape("add", got, want));
        }
        let (add, y) = (self.0.kernels.elementwise.add, rows("add", y)?);
        self.update(x, |i, row| add(row, y.row(i)))
    }

    fn scale(&self, x: CpuTensor, factor: f32) -> Result<CpuTensor> {
        let f = self.0.kernels.elementwise.scale;
        self.update(x, |_, row| f(row, factor))
    }

    fn scale_rows(&self, x: CpuTensor, factors: &[f32]) -> Result<CpuTensor> {
        if factors.len() != x.rows {
            return Err(shape("scale_rows", [factors.len(), x.cols], [x.rows, x.cols]));
        }
        let f = self.0.kernels.elementwise.scale;
        self.update(x, |i, row| f(row, factors[i]))
    }

    fn scale_cols(&self, x: CpuTensor, factors: &CpuWeight) -> Result<CpuTensor> {
        let factors = factors.vector("scale_cols")?;
        if factors.len() != x.cols {
            return Err(shape("scale_cols", [x.rows, factors.len()], [x.rows, x.cols]));
        }
        self.update(x, |_, row| row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f))
    }

    fn softcap(&self, x: CpuTensor, cap: f32) -> Result<CpuTensor> {
        let f = self.0.kernels.elementwise.softcap;
        self.update(x, |_, row| f(row, cap))
    }

    fn split_cols<const N: usize>(&self, x: CpuTensor, widths: [usize; N]) -> Result<[CpuTensor; N]> {
        let all = widths.iter().fold(0usize, |n, w| n.saturating_add(*w));
        if all != x.cols {
            return Err(shape("split_cols", [x.rows, x.cols], [x.rows, all]));
        }
        let mut at = 0;
        Ok(widths.map(|width| {
            at += width;
            x.columns(at - width, width)
        }))
    }

    fn take_rows(&self, x: &CpuTensor, picked: &[usize]) -> Result<CpuTensor> {
        if let Some(row) = picked.iter().find(|r| **r >= x.rows) {
            return Err(shape("take_rows", [x.rows, x.cols], [row.saturating_add(1), x.cols]));
        }
        let source = rows("take_rows", x)?;
        let mut out = self.alloc(picked.len(), x.cols)?;
        self.each_row(&mut out, |i, row| row.copy_from_slice(source.row(picked[i])));
        Ok(out)
    }

    fn write_rows(&self, dst: &mut CpuTensor, at: usize, src: &CpuTensor, rows: Range<usize>) -> Result<()> {
        let cols = dst.cols;
        let from = rows.start * cols..rows.end * cols;
        let narrow = self.0.kernels.elementwise.narrow;
        let wrong = shape("write_rows", [src.rows, src.cols], [dst.rows, cols]);
        match (slots(dst, at, src, &rows)?, src.kv(), src.view()) {
            (KvMut::F32(dst), Some(KvData::F32(src)), _) => dst.copy_from_slice(&src[from]),
            (KvMut::F16(dst), Some(KvData::F16(src)), _) => dst.copy_from_slice(&src[from]),
            (KvMut::F32(dst), _, Some(src)) => {
                self.each_run(dst, cols, |i, dst| dst.copy_from_slice(src.row(rows.start + i)));
            }
            (KvMut::F16(dst), _, Some(src)) => {
                self.each_run(dst, cols, |i, dst| narrow(src.row(rows.start + i), dst));
            }
            _ => return Err(wrong),
        }
        Ok(())
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<CpuTensor> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(shape("upload", [1, values.len()], [rows, cols]));
        }
        let mut out = self.alloc(rows, cols)?;
        if let Some(to) = out.unique() {
            to.copy_from_slice(values);
        }
        Ok(out)
    }

    fn read(&self, x: &CpuTensor, out: &mut Vec<f32>) -> Result<()> {
        let x = rows("read", x)?;
        out.clear();
        (0..x.rows).for_each(|i| out.extend_from_slice(x.row(i)));
        Ok(())
    }

    fn project(
        &self,
        input: Input<'_, Self>,
        w: &CpuWeight,
        bias: Option<&CpuWeight>,
        residual: Option<CpuTensor>,
    ) -> Result<CpuTensor> {
        let matrices = w.matrices("linear")?;
        let [out, inp] = dims(matrices);
        let source = self.source(&input)?;
        let [t, cols] = source.shape();
        if cols != inp {
            return Err(shape("linear", [t, cols], [t, inp]));
        }
        let bias = bias.map(|b| b.vector("linear bias")).transpose()?;
        if let Some(b) = bias.filter(|b| b.len() != out) {
            return Err(shape("linear bias", [1, b.len()], [1, out]));
        }
        let (mut y, residual) = match residual {
            Some(h) if [h.rows, h.cols] != [t, out] => return Err(shape("add", [t, out], [h.rows, h.cols])),
            Some(h) => (self.own(h)?, Residual::InPlace),
            None => (self.alloc(t, out)?, Residual::None),
        };
        if let Some(target) = y.view_mut() {
            matmul::linear(&self.context(), &source, matrices, Epilogue { bias, residual }, target)?;
        }
        Ok(y)
    }

    fn project_gated(
        &self,
        input: Input<'_, Self>,
        w: &CpuWeight,
        bias: Option<&CpuWeight>,
        act: Activation,
    ) -> Result<Option<CpuTensor>> {
        let matrices = w.matrices("linear")?;
        let source = self.source(&input)?;
        let bias = bias.map(|b| b.vector("linear bias")).transpose()?;
        let [out, _] = dims(matrices);
        let t = source.shape()[0];
        if !matmul::gates(matrices, t) {
            return Ok(None);
        }
        let mut y = self.alloc(t, out / 2)?;
        if let Some(target) = y.view_mut() {
            matmul::gated(&self.context(), &source, (matrices, act), bias, target)?;
        }
        Ok(Some(y))
    }

    fn write_keys(
        &self,
        dst: &mut CpuTensor,
        at: usize,
        keys: Keys<'_, CpuTensor>,
        rows: Range<usize>,
    ) -> Result<()> {
        let Keys { x, rope } = keys;
        let Some((rope, batch)) = rope else { return self.write_rows(dst, at, x, rows) };
        check_rope(x, rope, batch)?;
        let (cols, first) = (dst.cols, rows.start);
        let (to, src) = (slots(dst, at, x, &rows)?, self::rows("write_keys", x)?);
        let kernels = &self.0.kernels.elementwise;
        self.0.angles.with(rope, batch.positions(), |table| match to {
            KvMut::F32(to) => self.each_run(to, cols, |i, to| {
                (kernels.rope)(src.row(first + i), table.turn(first + i), to);
            }),
            KvMut::F16(to) => self.each_run(to, cols, |i, to| {
                (kernels.rope_narrow)(src.row(first + i), table.turn(first + i), to);
            }),
        });
        Ok(())
    }
}
