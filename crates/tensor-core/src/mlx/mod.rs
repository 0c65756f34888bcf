//! The MLX backend: lazy, on Metal, CUDA or MLX's CPU. An operation records a node; [`Backend::read`] and its like
//! compute.
//!
//! MLX binds what is not yet computed to the thread that recorded it: a model is loaded and run on one thread. Buffers
//! of keys and values are updated where they are, because nobody else holds them when the update is computed.
//!
//! On Linux mlx-sys's own build script fails: `scripts/mlx-linux.sh` of the repository prepares what it would, and says
//! how to build with it.

mod activation;
mod attention;
mod builder;
mod check;
mod cuda;
mod experts;
mod fusion;
mod raw;
mod recurrent;
mod rope;
mod sample;
mod step_kernels;
mod tensor;
mod weight;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mlx_rs::{Array, Dtype, fast, memory, ops, transforms};
use rillm_quant::{FloatType, Format, RawTensor};
use smallvec::SmallVec;

use self::activation::activated;
use self::builder::On;
use self::check::{check_rope, check_span, check_write, same_shape};
use self::cuda::Kernels;
use self::rope::Ropes;
use self::tensor::Columns;
use self::weight::{Matrix, dims};
use crate::backend::project_in_parts;
use crate::cpu::Precision;
use crate::{
    Activation, AttnParams, AttnSpan, Backend, Batch, Error, Ids, Input, Keys, Result, Rope, Sampling,
};

pub use self::builder::{MlxBuilder, MlxDevice};
pub use self::experts::MlxRoutes;
pub use self::tensor::MlxTensor;
pub use self::weight::MlxWeight;

/// The MLX backend. Clones share everything.
#[derive(Clone, Debug)]
pub struct Mlx(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    precision: Precision,
    on: On,
    /// Whether our kernels for CUDA were made for this card.
    has_kernels: bool,
    /// Of activations and caches, once it is known.
    dtype: OnceLock<Dtype>,
    ropes: Ropes,
    kernels: Kernels,
    evals: AtomicUsize,
    submits: AtomicUsize,
    /// Nanoseconds, as those of [`MlxCounts`].
    submitting: AtomicU64,
    waiting: AtomicU64,
}

/// Adds what `f` takes to `nanoseconds`.
fn timed<T>(nanoseconds: &AtomicU64, f: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let answer = f();
    nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    answer
}

/// How often a backend asked MLX to compute, and what the host did meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MlxCounts {
    /// Calls that waited: `eval`.
    pub evals: usize,
    /// Calls that did not: `async_eval`.
    pub submits: usize,
    /// Time in the latter.
    pub submitting: Duration,
    /// Time in the former, and until ids could be read.
    pub waiting: Duration,
}

/// Memory that MLX holds, in bytes. The process has one MLX: this counts all of its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MlxMemory {
    /// In use.
    pub active: usize,
    /// Free, kept for reuse.
    pub cached: usize,
    /// The most that was in use at a time.
    pub peak: usize,
}

/// What only MLX can report.
fn error(message: String) -> Error {
    Error::Backend { backend: "mlx", message }
}

fn exception(e: mlx_rs::error::Exception) -> Error {
    error(e.what().to_owned())
}

fn shape(op: &'static str, got: [usize; 2], want: [usize; 2]) -> Error {
    Error::Shape { op, got, want }
}

/// A dimension, which MLX counts in 32 bits.
fn dim(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| error(format!("a dimension of {n} is more than MLX can count")))
}

impl Mlx {
    /// The backend with default choices.
    ///
    /// # Errors
    /// Those of [`MlxBuilder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Choices to make.
    pub fn builder() -> MlxBuilder {
        MlxBuilder::default()
    }

    /// Whether this build of MLX finds a graphics card.
    pub fn has_card() -> bool {
        cfg!(target_os = "macos") || raw::has_cuda()
    }

    /// How often this backend has asked MLX to compute.
    pub fn counts(&self) -> MlxCounts {
        MlxCounts {
            evals: self.0.evals.load(Ordering::Relaxed),
            submits: self.0.submits.load(Ordering::Relaxed),
            submitting: Duration::from_nanos(self.0.submitting.load(Ordering::Relaxed)),
            waiting: Duration::from_nanos(self.0.waiting.load(Ordering::Relaxed)),
        }
    }

    /// Memory that MLX holds.
    ///
    /// # Errors
    /// MLX's.
    pub fn memory() -> Result<MlxMemory> {
        Ok(MlxMemory {
            active: memory::active_memory().map_err(exception)?,
            cached: memory::cache_memory().map_err(exception)?,
            peak: memory::peak_memory().map_err(exception)?,
        })
    }

    /// Forgets the most memory that was in use so far.
    ///
    /// # Errors
    /// MLX's.
    pub fn reset_peak_memory() -> Result<()> {
        memory::reset_peak_memory().map_err(exception)
    }

    fn dtype(&self) -> Dtype {
        *self.0.dtype.get().unwrap_or(&Dtype::Float32)
    }

    /// Takes the type of activations from the first matrix that is loaded.
    fn settle_dtype(&self, parts: &[RawTensor<'_>]) -> Dtype {
        if let Some(matrix) = parts.iter().find(|p| p.shape.len() > 1) {
            let t = match matrix.format {
                Format::Float(t) | Format::Affine { meta: t, .. } => t,
                _ => FloatType::BF16,
            };
            self.0.dtype.get_or_init(|| match t {
                FloatType::F32 => Dtype::Float32,
                FloatType::F16 => Dtype::Float16,
                FloatType::BF16 => Dtype::Bfloat16,
            });
        }
        self.dtype()
    }

    fn eval(&self, arrays: &[&Array]) -> Result<()> {
        self.0.evals.fetch_add(1, Ordering::Relaxed);
        timed(&self.0.waiting, || transforms::eval(arrays.iter().copied())).map_err(exception)
    }

    /// `x` by stacked matrices, side by side.
    fn product(&self, x: &Array, matrices: &[Matrix]) -> Result<Array> {
        if let [matrix] = matrices {
            return matrix.multiply(x, self.dtype(), self.0.on);
        }
        let parts =
            matrices.iter().map(|m| m.multiply(x, self.dtype(), self.0.on)).collect::<Result<Vec<_>>>()?;
        ops::concatenate(&parts, 1).map_err(exception)
    }
}

fn tensor(array: mlx_rs::error::Result<Array>) -> Result<MlxTensor> {
    array.map(MlxTensor::from).map_err(exception)
}

impl Backend for Mlx {
    type Tensor = MlxTensor;
    type Weight = MlxWeight;

    fn name(&self) -> String {
        let device = match self.0.on {
            On::Cpu => "cpu",
            On::Metal => "metal",
            On::Cuda => "cuda",
        };
        let exact = if self.0.precision == Precision::Exact { ", exact" } else { "" };
        format!("mlx ({device}{exact})")
    }

    fn shape(&self, x: &MlxTensor) -> [usize; 2] {
        x.shape()
    }

    fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<MlxWeight> {
        MlxWeight::new(parts, self.settle_dtype(parts))
    }

    fn weight_bytes(&self, w: &MlxWeight) -> usize {
        w.bytes()
    }

    fn kv_buffer(&self, rows: usize, cols: usize) -> Result<MlxTensor> {
        let bytes = rows.saturating_mul(cols).saturating_mul(raw::size_of_dtype(self.dtype()));
        let limit = memory::memory_limit().map_err(exception)?;
        let [Ok(rows), Ok(cols)] = [dim(rows), dim(cols)] else {
            return Err(Error::OutOfMemory { what: "keys", bytes });
        };
        if bytes > limit {
            return Err(Error::OutOfMemory { what: "keys", bytes });
        }
        tensor(ops::zeros_dtype(&[rows, cols], self.dtype()))
    }

    fn tensor_bytes(&self, x: &MlxTensor) -> usize {
        // States are `f32` whatever activations are.
        let dtype = x.made().map_or(self.dtype(), Array::dtype);
        x.shape()[0] * x.shape()[1] * raw::size_of_dtype(dtype)
    }

    fn embed(&self, table: &MlxWeight, ids: Ids<'_, Self>) -> Result<MlxTensor> {
        let matrices = table.matrices("embed")?;
        let Some(matrix) = matrices.first() else { return Err(shape("embed", [0, 0], [1, 1])) };
        let ids = match ids {
            Ids::Device(ids) => ids.array(self)?,
            Ids::Host(ids) => {
                if let Some(&token) = ids.iter().find(|id| **id as usize >= matrix.rows) {
                    return Err(Error::TokenOutOfRange { token, vocab: matrix.rows });
                }
                if ids.is_empty() {
                    return tensor(ops::zeros_dtype(&[0, dim(matrix.cols)?], self.dtype()));
                }
                Cow::Owned(Array::from_slice(ids, &[dim(ids.len())?]))
            }
        };
        matrix.rows_of(&ids, self.dtype()).map(MlxTensor::from)
    }

    fn linear(&self, x: &MlxTensor, w: &MlxWeight, bias: Option<&MlxWeight>) -> Result<MlxTensor> {
        let matrices = w.matrices("linear")?;
        let ([t, cols], [out, inp]) = (x.shape(), dims(matrices));
        if cols != inp {
            return Err(shape("linear", [t, cols], [t, inp]));
        }
        let bias = bias.map(|b| b.vector("linear bias")).transpose()?;
        if let Some(b) = bias.filter(|b| b.size() != out) {
            return Err(shape("linear bias", [1, b.size()], [1, out]));
        }
        let y = self.product(&*x.array(self)?, matrices)?;
        match bias {
            Some(b) => tensor(y.add(b)),
            None => Ok(y.into()),
        }
    }

    fn rms_norm(&self, x: &MlxTensor, w: &MlxWeight, eps: f32) -> Result<MlxTensor> {
        let ([t, d], w) = (x.shape(), w.vector("rms_norm")?);
        let n = w.size();
        if n == 0 || !d.is_multiple_of(n) {
            return Err(shape("rms_norm", [t, d], [t, n]));
        }
        if n == d {
            return tensor(fast::rms_norm(&*x.array(self)?, Some(w), eps));
        }
        let heads = x.array(self)?.reshape(&[dim(t)?, dim(d / n)?, dim(n)?]).map_err(exception)?;
        let y = fast::rms_norm(heads, Some(w), eps);
        tensor(y.and_then(|y| y.reshape(&[t as i32, d as i32])))
    }

    fn layer_norm(
        &self,
        x: &MlxTensor,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        eps: f32,
    ) -> Result<MlxTensor> {
        let ([t, d], w) = (x.shape(), w.vector("layer_norm")?);
        let bias = bias.map(|b| b.vector("layer_norm bias")).transpose()?;
        let n = w.size();
        if n == 0 || !d.is_multiple_of(n) || bias.is_some_and(|b| b.size() != n) {
            return Err(shape("layer_norm", [t, d], [t, n]));
        }
        let x = x.array(self)?;
        if n == d {
            return tensor(fast::layer_norm(&*x, Some(w), bias, eps));
        }
        let heads = x.reshape(&[dim(t)?, dim(d / n)?, dim(n)?]).map_err(exception)?;
        let y = fast::layer_norm(heads, Some(w), bias, eps);
        tensor(y.and_then(|y| y.reshape(&[t as i32, d as i32])))
    }

    fn rope(&self, x: MlxTensor, rope: &Rope, batch: &Batch) -> Result<MlxTensor> {
        check_rope(&x, rope, batch)?;
        if rope.inv_freq.is_empty() || batch.rows() == 0 {
            return Ok(x);
        }
        if let Some(columns) = self.turned(&x, rope, batch)? {
            return Ok(MlxTensor::of_columns(columns, x.shape()));
        }
        // Where bits matter, angles are those of the reference, not of a reciprocal's reciprocal.
        let turned = match self.dtype() {
            Dtype::Float32 => self.0.ropes.exact(&*x.array(self)?, rope, batch.positions())?,
            _ => self.0.ropes.fast(&*x.array(self)?, rope, batch)?,
        };
        Ok(turned.into())
    }

    fn attention(
        &self,
        q: &MlxTensor,
        spans: &[AttnSpan<'_, MlxTensor>],
        p: &AttnParams,
        sinks: Option<&MlxWeight>,
    ) -> Result<MlxTensor> {
        let [t, d] = q.shape();
        let divides = p.kv_heads > 0 && p.heads.is_multiple_of(p.kv_heads);
        if d != p.q_dim() || p.v_head_dim == 0 || !divides {
            return Err(shape("attention", [t, d], [t, p.q_dim()]));
        }
        let sinks = sinks.map(|s| s.vector("attention sinks")).transpose()?;
        if let Some(sinks) = sinks.filter(|s| s.size() != p.heads) {
            return Err(shape("attention sinks", [1, sinks.size()], [1, p.heads]));
        }
        spans.iter().try_for_each(|s| check_span(q, s, p))?;
        if sinks.is_none()
            && let Some(y) = self.fused_attention(q, spans, p)?
        {
            return Ok(y);
        }
        if let [span] = spans
            && span.rows == (0..t)
        {
            return attention::attention(self, &*q.array(self)?, span, (p, sinks)).map(MlxTensor::from);
        }
        let q = q.array(self)?;
        let parts = spans.iter().map(|span| {
            let rows = raw::slice(&q, [dim(span.rows.start)?, 0], [dim(span.rows.end)?, dim(d)?])?;
            attention::attention(self, &rows, span, (p, sinks))
        });
        tensor(ops::concatenate(&parts.collect::<Result<Vec<_>>>()?, 0))
    }

    fn activate(&self, act: Activation, x: MlxTensor) -> Result<MlxTensor> {
        tensor(activated(act, &*x.array(self)?))
    }

    fn gate(&self, act: Activation, gate: MlxTensor, up: &MlxTensor) -> Result<MlxTensor> {
        same_shape("gate", up, &gate)?;
        let (gate, up) = (gate.array(self)?, up.array(self)?);
        let up = match act {
            Activation::ClippedSwish { limit, .. } => {
                let clipped = activated(Activation::Clip { limit }, &up);
                let one = Array::from_f32(1.0).as_dtype(up.dtype());
                Cow::Owned(clipped.and_then(|up| up.add(one?)).map_err(exception)?)
            }
            _ => up,
        };
        tensor(activated(act, &gate).and_then(|g| g.multiply(&*up)))
    }

    fn add(&self, x: MlxTensor, y: &MlxTensor) -> Result<MlxTensor> {
        same_shape("add", y, &x)?;
        tensor(x.array(self)?.add(&*y.array(self)?))
    }

    fn scale(&self, x: MlxTensor, factor: f32) -> Result<MlxTensor> {
        let x = x.array(self)?;
        let factor = Array::from_f32(factor).as_dtype(x.dtype());
        tensor(factor.and_then(|f| x.multiply(f)))
    }

    fn scale_rows(&self, x: MlxTensor, factors: &[f32]) -> Result<MlxTensor> {
        let [t, d] = x.shape();
        if factors.len() != t {
            return Err(shape("scale_rows", [factors.len(), d], [t, d]));
        }
        let x = x.array(self)?;
        let factors = Array::from_slice(factors, &[dim(t)?, 1]).as_dtype(x.dtype());
        tensor(factors.and_then(|f| x.multiply(f)))
    }

    fn scale_cols(&self, x: MlxTensor, factors: &MlxWeight) -> Result<MlxTensor> {
        let ([t, d], factors) = (x.shape(), factors.vector("scale_cols")?);
        if factors.size() != d {
            return Err(shape("scale_cols", [t, factors.size()], [t, d]));
        }
        let x = x.array(self)?;
        tensor(factors.as_dtype(x.dtype()).and_then(|f| x.multiply(f)))
    }

    fn softcap(&self, x: MlxTensor, cap: f32) -> Result<MlxTensor> {
        let x = x.array(self)?;
        let dtype = x.dtype();
        let y = x.as_dtype(Dtype::Float32).and_then(|x| x.divide(Array::from_f32(cap)));
        let y = y.and_then(ops::tanh).and_then(|y| y.multiply(Array::from_f32(cap)));
        tensor(y.and_then(|y| y.as_dtype(dtype)))
    }

    fn split_cols<const N: usize>(&self, x: MlxTensor, widths: [usize; N]) -> Result<[MlxTensor; N]> {
        let [t, d] = x.shape();
        let all = widths.iter().fold(0usize, |n, w| n.saturating_add(*w));
        if all != d {
            return Err(shape("split_cols", [t, d], [t, all]));
        }
        // Columns of a few rows wait until somebody needs them as an array.
        let whole = (1..=fusion::ROWS).contains(&t).then(|| Arc::new(()));
        let (from_one, of) = (x.columns().is_none(), x.array(self)?);
        let mut at = 0;
        let mut parts = [const { None }; N];
        for (part, width) in parts.iter_mut().zip(widths) {
            *part = Some(match &whole {
                Some(whole) if from_one => {
                    let (of, whole) = (of.clone().into_owned(), Arc::clone(whole));
                    let columns = Columns { of, whole, rows: 0..t, from: at, turn: None };
                    MlxTensor::of_columns(columns, [t, width])
                }
                _ => raw::slice(&of, [0, dim(at)?], [dim(t)?, dim(at + width)?])?.into(),
            });
            at += width;
        }
        let whole = MlxTensor::from(of.clone().into_owned());
        Ok(parts.map(|part| part.unwrap_or_else(|| whole.clone())))
    }

    fn take_rows(&self, x: &MlxTensor, rows: &[usize]) -> Result<MlxTensor> {
        let [t, d] = x.shape();
        if let Some(row) = rows.iter().find(|r| **r >= t) {
            return Err(shape("take_rows", [t, d], [row.saturating_add(1), d]));
        }
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return tensor(ops::zeros_dtype(&[0, dim(d)?], self.dtype()));
        };
        if rows.windows(2).all(|w| w[1] == w[0] + 1) {
            if rows.len() == t {
                return Ok(x.clone());
            }
            return raw::slice(&*x.array(self)?, [dim(*first)?, 0], [dim(*last + 1)?, dim(d)?])
                .map(MlxTensor::from);
        }
        let ids: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
        tensor(x.array(self)?.take_axis(Array::from_slice(&ids, &[dim(ids.len())?]), 0))
    }

    fn write_rows(&self, dst: &mut MlxTensor, at: usize, src: &MlxTensor, rows: Range<usize>) -> Result<()> {
        check_write(dst, at, src, &rows)?;
        if rows.is_empty() {
            return Ok(());
        }
        let ([t, d], n) = (src.shape(), rows.len());
        if let (Some(columns), 1) = (src.columns(), n) {
            return dst.ask(at, columns.row(rows.start), self);
        }
        let mut update = src.rows(rows.end, self)?;
        if n < t {
            update = Cow::Owned(raw::slice(&update, [dim(rows.start)?, 0], [dim(rows.end)?, dim(d)?])?);
        }
        dst.put(at, &update, n, self)
    }

    fn project(
        &self,
        input: Input<'_, Self>,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        residual: Option<MlxTensor>,
    ) -> Result<MlxTensor> {
        if let Some(y) = self.fused_project(&input, w, bias, residual.as_ref())? {
            return Ok(y);
        }
        project_in_parts(self, input, w, bias, residual)
    }

    fn write_keys(
        &self,
        dst: &mut MlxTensor,
        at: usize,
        keys: Keys<'_, MlxTensor>,
        rows: Range<usize>,
    ) -> Result<()> {
        check_write(dst, at, keys.x, &rows)?;
        match keys.rope {
            Some((rope, batch)) => {
                let x = self.rope(keys.x.clone(), rope, batch)?;
                self.write_rows(dst, at, &x, rows)
            }
            None => self.write_rows(dst, at, keys.x, rows),
        }
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<MlxTensor> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(shape("upload", [1, values.len()], [rows, cols]));
        }
        Ok(Array::from_slice(values, &[dim(rows)?, dim(cols)?]).into())
    }

    fn read(&self, x: &MlxTensor, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        if x.shape().contains(&0) {
            return Ok(());
        }
        let x = x.array(self)?.as_dtype(Dtype::Float32).and_then(|x| x.contiguous()).map_err(exception)?;
        self.eval(&[&x])?;
        let values = x.try_as_slice::<f32>().map_err(|e| error(e.to_string()))?;
        out.extend_from_slice(values);
        Ok(())
    }

    fn argmax(&self, logits: &MlxTensor) -> Result<Option<MlxTensor>> {
        let ids = ops::indexing::argmax_axis(&*logits.array(self)?, -1, false).map_err(exception)?;
        Ok(Some(MlxTensor::shaped(ids, [logits.shape()[0], 1])))
    }

    fn sample(&self, logits: &MlxTensor, how: &Sampling, points: &[f32]) -> Result<Option<MlxTensor>> {
        let [t, vocab] = logits.shape();
        if points.len() != t {
            return Err(shape("sample", [points.len(), 1], [t, 1]));
        }
        // The host's to refuse, or to pick the best.
        if t == 0 || vocab == 0 || how.temperature.is_nan() || how.temperature <= 0.0 {
            return Ok(None);
        }
        let logits = logits.array(self)?;
        let ids = match self.fused_draw(&logits, how, points)? {
            Some(ids) => ids,
            None => {
                let points = Array::from_slice(points, &[dim(t)?, 1]);
                sample::sample(&logits, how, &points).map_err(exception)?
            }
        };
        Ok(Some(MlxTensor::shaped(ids, [t, 1])))
    }

    fn read_ids(&self, ids: &MlxTensor, out: &mut Vec<u32>) -> Result<()> {
        let ids = ids.array(self)?;
        let values = timed(&self.0.waiting, || ids.try_as_slice::<u32>());
        let values = values.map_err(|e| error(e.to_string()))?;
        out.extend_from_slice(values);
        Ok(())
    }

    fn submit(&self, xs: &[&MlxTensor]) -> Result<()> {
        let arrays = xs.iter().map(|x| x.last(self)).collect::<Result<SmallVec<[_; 4]>>>()?;
        self.0.submits.fetch_add(1, Ordering::Relaxed);
        timed(&self.0.submitting, || transforms::async_eval(&arrays)).map_err(exception)
    }

    fn evaluate(&self, xs: &[&MlxTensor]) -> Result<()> {
        let arrays = xs.iter().map(|x| x.last(self)).collect::<Result<Vec<_>>>()?;
        self.eval(&arrays.iter().collect::<Vec<_>>())
    }
}
