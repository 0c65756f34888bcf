//! The instruction set of inference. What a layer is made of, not what a tensor library offers.

use std::fmt::Debug;

use rillm_quant::RawTensor;

use crate::{Activation, AttnParams, AttnSpan, Batch, Error, Keys, Result, Rope, Sampling};

/// Token ids to embed: known to the host, or sampled on the device and not yet read.
#[derive(Debug)]
pub enum Ids<'a, B: Backend> {
    /// Ids in host memory, one a row.
    Host(&'a [u32]),
    /// A result of [`Backend::argmax`] or [`Backend::sample`].
    Device(&'a B::Tensor),
}

impl<B: Backend> Clone for Ids<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Ids<'_, B> {}

/// Rows that a projection reads: those of a tensor, or what an operation makes of them on the way.
#[derive(Debug)]
pub enum Input<'a, B: Backend> {
    /// The rows as they are.
    Rows(&'a B::Tensor),
    /// [`Backend::rms_norm`].
    RmsNorm {
        /// `[t, in]`.
        x: &'a B::Tensor,
        /// Its factors.
        w: &'a B::Weight,
        /// Added to the mean square.
        eps: f32,
    },
    /// [`Backend::layer_norm`].
    LayerNorm {
        /// `[t, in]`.
        x: &'a B::Tensor,
        /// Its factors.
        w: &'a B::Weight,
        /// Its bias.
        bias: Option<&'a B::Weight>,
        /// Added to the variance.
        eps: f32,
    },
    /// [`Backend::gate`] of the two halves of each row.
    Gated {
        /// What the gate goes through.
        act: Activation,
        /// The gate, then what it opens: `[t, 2 * in]`.
        gate_up: &'a B::Tensor,
    },
}

impl<B: Backend> Clone for Input<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Input<'_, B> {}

impl<'a, B: Backend> Input<'a, B> {
    /// The tensor that it is made of.
    pub fn source(self) -> &'a B::Tensor {
        match self {
            Self::Rows(x) | Self::RmsNorm { x, .. } | Self::LayerNorm { x, .. } => x,
            Self::Gated { gate_up, .. } => gate_up,
        }
    }

    /// What it stands for, as a tensor.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn rows(self, be: &B) -> Result<B::Tensor> {
        match self {
            Self::Rows(x) => Ok(x.clone()),
            Self::RmsNorm { x, w, eps } => be.rms_norm(x, w, eps),
            Self::LayerNorm { x, w, bias, eps } => be.layer_norm(x, w, bias, eps),
            Self::Gated { act, gate_up } => {
                let half = be.shape(gate_up)[1] / 2;
                let [gate, up] = be.split_cols(gate_up.clone(), [half; 2])?;
                be.gate(act, gate, &up)
            }
        }
    }
}

/// One method for each fused operation a decoder needs.
///
/// A backend is a *value*, cheap to clone, that owns its resources (threads, buffers, stream). There is no
/// global state. Activations are matrices `[t, d]`: `t` token rows of `d` values.
///
/// An operand taken by value may be reused for the result: an eager backend writes in place when it holds the
/// only reference, a lazy one records a node. [`write_rows`](Self::write_rows) and
/// [`write_keys`](Self::write_keys) are the only mutations; only [`read`](Self::read),
/// [`read_ids`](Self::read_ids) and [`evaluate`](Self::evaluate) wait.
pub trait Backend: Clone + Debug + Send + Sized + 'static {
    /// An activation or a key buffer. Cloning copies a reference.
    type Tensor: Clone + Debug + Send + 'static;
    /// Parameters in whatever layout the kernels like best.
    type Weight: Debug + Send + 'static;

    /// Name and variant for people, e.g. `"cpu (avx512, 2 threads)"`.
    fn name(&self) -> String;
    /// `[rows, cols]` of `x`.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];

    /// Packs or uploads stored matrices that read the same input, rows stacked in order: one projection, or
    /// several merged ones (q, k, v). Called at load. A vector is a matrix of one row.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`](crate::Error::UnsupportedFormat), or shapes that differ in their columns.
    fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<Self::Weight>;
    /// Bytes that one read of `w` moves.
    fn weight_bytes(&self, w: &Self::Weight) -> usize;
    /// A zeroed buffer for `rows` keys or values of `cols` values each, in the precision the backend
    /// caches in.
    fn kv_buffer(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// Bytes that `x` takes.
    fn tensor_bytes(&self, x: &Self::Tensor) -> usize;

    /// Rows `ids` of `table: [vocab, d]`, `[t, d]`.
    fn embed(&self, table: &Self::Weight, ids: Ids<'_, Self>) -> Result<Self::Tensor>;
    /// `x @ wᵀ + bias` for `x: [t, in]`, `w: [out, in]`, `bias: [1, out]`. Returns `[t, out]`.
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, bias: Option<&Self::Weight>)
    -> Result<Self::Tensor>;
    /// `x / sqrt(mean(x²) + eps) * w` over each run of `w.len()` values of a row (a row, or each head of it).
    fn rms_norm(&self, x: &Self::Tensor, w: &Self::Weight, eps: f32) -> Result<Self::Tensor>;
    /// `(x - mean) / sqrt(var + eps) * w + bias` over each run of `w.len()` values of a row.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        bias: Option<&Self::Weight>,
        eps: f32,
    ) -> Result<Self::Tensor>;
    /// Rotates every head of `x: [t, heads * head_dim]`, each row by its position in `batch`.
    fn rope(&self, x: Self::Tensor, rope: &Rope, batch: &Batch) -> Result<Self::Tensor>;
    /// Causal attention of `q: [t, heads * head_dim]`; each span meets its own keys. `sinks: [heads]` are scores that
    /// take their part of each softmax and have no value (gpt_oss). Returns `[t, heads * v_head_dim]`.
    fn attention(
        &self,
        q: &Self::Tensor,
        spans: &[AttnSpan<'_, Self::Tensor>],
        p: &AttnParams,
        sinks: Option<&Self::Weight>,
    ) -> Result<Self::Tensor>;
    /// `act(x)`, elementwise.
    fn activate(&self, act: Activation, x: Self::Tensor) -> Result<Self::Tensor>;
    /// `act(gate) * up`, elementwise.
    fn gate(&self, act: Activation, gate: Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor>;
    /// `x + y`, elementwise.
    fn add(&self, x: Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;
    /// `x * factor`.
    fn scale(&self, x: Self::Tensor, factor: f32) -> Result<Self::Tensor>;
    /// Row `i` of `x` times `factors[i]`.
    fn scale_rows(&self, x: Self::Tensor, factors: &[f32]) -> Result<Self::Tensor>;
    /// Column `j` of `x` times `factors[j]`.
    fn scale_cols(&self, x: Self::Tensor, factors: &Self::Weight) -> Result<Self::Tensor>;
    /// `cap * tanh(x / cap)`, elementwise.
    fn softcap(&self, x: Self::Tensor, cap: f32) -> Result<Self::Tensor>;
    /// Columns `[0, widths[0]), [widths[0], ..), ..` of `x`, which they cover. Views where the backend has them.
    fn split_cols<const N: usize>(&self, x: Self::Tensor, widths: [usize; N]) -> Result<[Self::Tensor; N]>;
    /// Rows `rows` of `x`, in that order.
    fn take_rows(&self, x: &Self::Tensor, rows: &[usize]) -> Result<Self::Tensor>;
    /// Overwrites `dst` from row `at` with rows `rows` of `src`, in place if `dst` is unshared; values take
    /// the precision of `dst`.
    fn write_rows(
        &self,
        dst: &mut Self::Tensor,
        at: usize,
        src: &Self::Tensor,
        rows: std::ops::Range<usize>,
    ) -> Result<()>;
    /// Activations `[rows, cols]` of the row-major `values`, in single precision.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Tensor>;
    /// Copies `x` to host memory, row-major, waiting for it if need be.
    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<()>;

    // Fusions. Each default is the specification; a backend overrides what it can beat.

    /// [`linear`](Self::linear) of what `input` stands for, added to `residual: [t, out]`.
    fn project(
        &self,
        input: Input<'_, Self>,
        w: &Self::Weight,
        bias: Option<&Self::Weight>,
        residual: Option<Self::Tensor>,
    ) -> Result<Self::Tensor> {
        project_in_parts(self, input, w, bias, residual)
    }
    /// [`gate`](Self::gate) of the halves of [`linear`](Self::linear) of what `input` stands for: `[t, out / 2]`; `None` if
    /// the backend prefers to gate what the next projection reads ([`Input::Gated`]).
    fn project_gated(
        &self,
        _input: Input<'_, Self>,
        _w: &Self::Weight,
        _bias: Option<&Self::Weight>,
        _act: Activation,
    ) -> Result<Option<Self::Tensor>> {
        Ok(None)
    }
    /// [`write_rows`](Self::write_rows) of keys, rotated if they say so.
    fn write_keys(
        &self,
        dst: &mut Self::Tensor,
        at: usize,
        keys: Keys<'_, Self::Tensor>,
        rows: std::ops::Range<usize>,
    ) -> Result<()> {
        match keys.rope {
            Some((rope, batch)) => {
                let x = self.rope(keys.x.clone(), rope, batch)?;
                self.write_rows(dst, at, &x, rows)
            }
            None => self.write_rows(dst, at, keys.x, rows),
        }
    }
    /// The most likely token of each row of `logits: [t, vocab]`, the first of equals, left on the device for
    /// [`Ids::Device`] and [`read_ids`](Self::read_ids); `None` if the backend prefers the host to pick.
    fn argmax(&self, _logits: &Self::Tensor) -> Result<Option<Self::Tensor>> {
        Ok(None)
    }
    /// Draws a token from each row of `logits: [t, vocab]`: the first at which [`Sampling::masses`], added up in the
    /// order of ids, exceed `points[row]` (of `[0, 1)`) of their sum. Left on the device as those of
    /// [`argmax`](Self::argmax) are; `None` if the backend prefers the host to draw.
    fn sample(
        &self,
        _logits: &Self::Tensor,
        _how: &Sampling,
        _points: &[f32],
    ) -> Result<Option<Self::Tensor>> {
        Ok(None)
    }
    /// Appends the ids of a result of [`argmax`](Self::argmax) or [`sample`](Self::sample), waiting for them if need be.
    fn read_ids(&self, _ids: &Self::Tensor, _out: &mut Vec<u32>) -> Result<()> {
        Err(Error::NoDeviceIds)
    }
    /// Starts computing `xs`, and all that they need, without waiting. Nothing to do for an eager backend.
    fn submit(&self, _xs: &[&Self::Tensor]) -> Result<()> {
        Ok(())
    }
    /// Computes `xs`, so that what they were made from can be let go. Nothing to do for an eager backend.
    fn evaluate(&self, _xs: &[&Self::Tensor]) -> Result<()> {
        Ok(())
    }
}

/// The specification of [`Backend::project`]: the operations that it stands for, one by one.
pub(crate) fn project_in_parts<B: Backend>(
    be: &B,
    input: Input<'_, B>,
    w: &B::Weight,
    bias: Option<&B::Weight>,
    residual: Option<B::Tensor>,
) -> Result<B::Tensor> {
    let y = be.linear(&input.rows(be)?, w, bias)?;
    match residual {
        Some(h) => be.add(h, &y),
        None => Ok(y),
    }
}
