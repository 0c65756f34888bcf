//! What the kernels of `cuda.rs` take over: products of a few rows with what comes before and after them, and the
//! attention of a token of each of a few sequences. Each says no by returning `None`, and the operations run one by one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlx_rs::{Array, Dtype};
use smallvec::SmallVec;

use super::cuda::{Attend, Draw, Matvec, Prologue};
use super::tensor::{Asked, Buffer, Columns, Turn, Written};
use super::weight::{Matrix, MlxWeight, dims};
use super::{Mlx, MlxTensor};
use crate::{Activation, AttnParams, AttnSpan, Batch, Input, Pairing, Result, Rope, Sampling};

/// Rows that a fused product takes at most, and sequences that a fused attention does.
pub(super) const ROWS: usize = 8;
/// Pairs of a row and an expert that a fused product takes at most.
const PAIRS: usize = 64;
/// Rows of logits that are drawn from in one kernel, at most: each number of them is one of its own.
const DRAWS: usize = 16;

impl Mlx {
    /// Whether our kernels run here.
    pub(super) fn fuses(&self) -> bool {
        self.0.has_kernels && matches!(self.dtype(), Dtype::Bfloat16 | Dtype::Float16)
    }

    /// [`Backend::project`](crate::Backend::project) in one kernel.
    pub(super) fn fused_project(
        &self,
        input: &Input<'_, Self>,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        residual: Option<&MlxTensor>,
    ) -> Result<Option<MlxTensor>> {
        let bias = bias.map(|b| b.vector("linear bias")).transpose()?;
        self.fused_product(input, w.matrices("linear")?, bias, residual, None)
    }

    /// [`Experts::linear_experts`](crate::Experts::linear_experts) in one kernel. `experts: [pairs]`; `bias` has a row for
    /// each expert.
    pub(super) fn fused_experts(
        &self,
        input: &Input<'_, Self>,
        matrices: &[Matrix],
        bias: Option<&Array>,
        experts: &Array,
    ) -> Result<Option<MlxTensor>> {
        self.fused_product(input, matrices, bias, None, Some(experts))
    }

    fn fused_product(
        &self,
        input: &Input<'_, Self>,
        matrices: &[Matrix],
        bias: Option<&Array>,
        residual: Option<&MlxTensor>,
        experts: Option<&Array>,
    ) -> Result<Option<MlxTensor>> {
        let (x, prologue, norm) = match *input {
            Input::Rows(x) => (x, Prologue::Plain, None),
            Input::RmsNorm { x, w, eps } => (x, Prologue::RmsNorm, Some((w, eps))),
            Input::Gated { act: Activation::Silu, gate_up } => (gate_up, Prologue::SiluGate, None),
            Input::Gated { act: Activation::GeluTanh, gate_up } => (gate_up, Prologue::GeluGate, None),
            _ => return Ok(None),
        };
        let [rows, cols] = x.shape();
        if !self.fuses() || rows == 0 || rows > if experts.is_some() { PAIRS } else { ROWS } {
            return Ok(None);
        }
        let [matrix] = matrices else { return Ok(None) };
        let Some(stored) = matrix.for_kernels(self.dtype()) else { return Ok(None) };
        let ([out, inp], halved) = (dims(matrices), norm.is_none() && prologue != Prologue::Plain);
        let gain = norm.map(|(w, _)| w.vector("rms_norm")).transpose()?;
        // The kernels read 16 bytes at a time, and columns of a row may start anywhere.
        let whole = |x: &MlxTensor| x.made().is_some_and(|x| x.dtype() == self.dtype());
        let narrow = |x: &&Array| x.dtype() == self.dtype();
        // What does not fit is the plain operations' to refuse.
        let fits = whole(x)
            && experts.is_none_or(|e| e.size() == rows)
            && residual.is_none_or(whole)
            && gain.iter().all(narrow)
            && bias.iter().all(narrow)
            && cols == if halved { 2 * inp } else { inp }
            && gain.is_none_or(|g| g.size() == inp)
            && bias.is_none_or(|b| b.shape().last() == Some(&(out as i32)))
            && residual.is_none_or(|h| h.shape() == [rows, out]);
        let what = Matvec {
            dtype: self.dtype(),
            bits: stored.bits,
            group: stored.group,
            inp,
            out,
            rows: if experts.is_some() { 1 } else { rows },
            pairs: experts.map_or(0, Array::size),
            prologue,
            eps: norm.map_or(0.0, |(_, eps)| eps).to_bits(),
            bias: bias.is_some(),
            residual: residual.is_some(),
        };
        let Some(x) = x.made().filter(|_| fits && what.is_possible()) else { return Ok(None) };
        let residual = residual.and_then(MlxTensor::made);
        let inputs =
            [Some(x), Some(stored.codes), stored.scales, stored.biases, gain, bias, residual, experts]
                .into_iter();
        let y = self.0.kernels.matvec(what, inputs.flatten())?;
        Ok(Some(MlxTensor::shaped(y, [rows, out])))
    }

    /// [`Backend::sample`](crate::Backend::sample) in one kernel, `[t]`.
    pub(super) fn fused_draw(&self, logits: &Array, how: &Sampling, points: &[f32]) -> Result<Option<Array>> {
        let vocab = logits.dim(1) as usize;
        // Parts of the masses of all tokens have to fit into 32 bits.
        if !self.0.has_kernels || points.len() > DRAWS || vocab > 1 << 19 {
            return Ok(None);
        }
        let what = Draw { dtype: logits.dtype(), rows: points.len(), vocab };
        let (tempered, top_k) = (f32::from(u8::from(how.tempered)), how.top_k.min(vocab) as f32);
        let settings: [f32; Draw::SETTINGS] = [how.temperature, how.top_p, how.min_p.ln(), tempered, top_k];
        let mut numbers: SmallVec<[f32; 8]> = SmallVec::from_slice(&settings);
        numbers.extend_from_slice(points);
        self.0.kernels.draw(what, logits, &numbers).map(Some)
    }

    /// The columns of `x` as `rope` turns them, if they are columns and not turned yet.
    pub(super) fn turned(&self, x: &MlxTensor, rope: &Rope, batch: &Batch) -> Result<Option<Columns>> {
        let Some(columns) = x.columns() else { return Ok(None) };
        if columns.turn.is_some() || rope.scale != 1.0 {
            return Ok(None);
        }
        let turn =
            Turn { rope: self.0.ropes.shared(rope)?, positions: SmallVec::from_slice(batch.positions()) };
        Ok(Some(Columns { turn: Some(turn), ..columns.clone() }))
    }

    /// `x: [rows, heads * head_dim]` turned by MLX.
    pub(super) fn turn_rows(&self, x: &Array, turn: &Turn) -> Result<Array> {
        let Turn { rope, positions } = turn;
        match self.dtype() {
            Dtype::Float32 => self.0.ropes.exact(x, rope, positions),
            _ => self.0.ropes.fast_rows(x, rope, positions),
        }
    }

    /// [`Backend::attention`](crate::Backend::attention) of a token of each of a few sequences, with the rotation of their
    /// queries and keys and the writes that were asked for, in one kernel.
    pub(super) fn fused_attention(
        &self,
        q: &MlxTensor,
        spans: &[AttnSpan<'_, MlxTensor>],
        p: &AttnParams,
    ) -> Result<Option<MlxTensor>> {
        let Some(query) = q.columns() else { return Ok(None) };
        if !self.fuses() || spans.is_empty() || spans.len() != q.shape()[0] {
            return Ok(None);
        }
        let mut buffers: SmallVec<[_; 1]> = SmallVec::new();
        for (i, span) in spans.iter().enumerate() {
            if std::ptr::eq(span.k, span.v) || span.rows != (i..i + 1) {
                return Ok(None);
            }
            let (Some(keys), Some(values)) = (span.k.buffer(), span.v.buffer()) else { return Ok(None) };
            if !self.takes_token((query, i), [&keys, &values], span, p) {
                return Ok(None);
            }
            buffers.push([keys, values]);
        }
        let Some(turn) = &query.turn else { return Ok(None) };
        let asks = self.0.evals.load(Ordering::Relaxed) + self.0.submits.load(Ordering::Relaxed);
        for ([keys, values], span) in buffers.iter_mut().zip(spans) {
            self.make_room([keys, values], span, asks)?;
        }
        let lengths: SmallVec<[usize; 1]> = spans.iter().map(|span| span.layout.len - 1).collect();
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let what = Attend {
            dtype: self.dtype(),
            sequences: spans.len(),
            head: p.head_dim,
            heads: p.heads,
            kv_heads: p.kv_heads,
            pairs: turn.rope.inv_freq.len(),
            halves: turn.rope.pairing == Pairing::Halves,
            scale: p.scale.to_bits(),
            splits: Attend::splits(p.heads * spans.len(), longest),
        };
        let mut inputs: SmallVec<[Array; 8]> = SmallVec::new();
        inputs.extend([query.of.clone(), self.0.ropes.rates(&turn.rope)?]);
        for ([keys, values], length) in buffers.iter().zip(&lengths) {
            let after = keys.written.as_ref().map_or(&query.of, |written| &written.rows);
            let length = self.0.kernels.length(*length)?;
            inputs.extend([keys.array.clone(), values.array.clone(), length, after.clone()]);
        }
        let [out, rows] = self.0.kernels.attend(what, &inputs)?;
        let call = Arc::new(());
        for (which, (buffer, at)) in
            buffers.iter_mut().flatten().zip(lengths.iter().flat_map(|at| [*at; 2])).enumerate()
        {
            buffer.written = Some(Written { at, rows: rows.clone(), which, call: Arc::clone(&call), asks });
        }
        Ok(Some(MlxTensor::shaped(out, [spans.len(), p.q_dim()])))
    }

    /// Makes the row that was asked for the kernel's to write.
    fn make_room(
        &self,
        [keys, values]: [&mut Buffer; 2],
        span: &AttnSpan<'_, MlxTensor>,
        asks: usize,
    ) -> Result<()> {
        let at = span.layout.len - 1;
        // Kernels before this one wrote both or neither. What they wrote counts as there once it is under way.
        let chained = match (&keys.written, &values.written) {
            (None, None) => true,
            (Some(k), Some(v)) => Arc::ptr_eq(&k.call, &v.call) && k.asks != asks,
            _ => false,
        };
        for (buffer, shape) in [(keys, span.k.shape()), (values, span.v.shape())] {
            let Some(Asked { row, .. }) = buffer.asked.take() else { continue };
            if !chained || buffer.read_to > at {
                buffer.settle(shape, self)?;
            }
            if buffer.read_to > at {
                // Any update makes it the kernel's to write to; this one's row is written over.
                let row = Columns { turn: None, ..row }.array(shape[1], self)?;
                buffer.update(at, &row, 1, shape)?;
            }
        }
        Ok(())
    }

    /// Whether the kernel takes a token: query `i`, key and value are the columns of one row, the first two are to be
    /// rotated alike, and the latter two to be written to the slot of the token's position, after all others.
    fn takes_token(
        &self,
        (query, i): (&Columns, usize),
        [keys, values]: [&Buffer; 2],
        span: &AttnSpan<'_, MlxTensor>,
        p: &AttnParams,
    ) -> bool {
        let (Some(Asked { at, row: key }), Some(Asked { at: value_at, row: value }), Some(turn)) =
            (&keys.asked, &values.asked, &query.turn)
        else {
            return false;
        };
        let len = span.layout.len;
        let window = p.narrower(span.window).into_iter().chain(p.chunk).min().unwrap_or(usize::MAX);
        let in_order = span.layout.keep == 0 && len <= span.layout.ring && window >= len;
        let row = query.rows.start + i;
        let same = |x: &Columns| Arc::ptr_eq(&query.whole, &x.whole) && x.rows == (row..row + 1);
        let one_row = same(key)
            && same(value)
            && value.turn.is_none()
            && [query.from, key.from, value.from] == [0, p.q_dim(), p.q_dim() + p.k_dim()]
            && query.of.dim(1) as usize == p.q_dim() + p.k_dim() + p.v_dim();
        let latest = [*at, *value_at, turn.positions[i] as usize].iter().all(|position| position + 1 == len)
            && key.turn.as_ref().is_some_and(|key| {
                Arc::ptr_eq(&key.rope, &turn.rope) && key.positions[..] == turn.positions[i..=i]
            });
        let heads = [64, 128, 256].contains(&p.head_dim)
            && [turn.rope.head_dim, p.v_head_dim] == [p.head_dim; 2]
            && p.softcap.is_none();
        let typed = [&query.of, &keys.array, &values.array].iter().all(|x| x.dtype() == self.dtype());
        let several = span.k.shape()[0] > 1 && span.v.shape()[0] > 1;
        typed && in_order && one_row && latest && heads && several
    }
}
