//! What the kernels of `cuda.rs` take over: products of a few rows with what comes before and after them, and the
//! attention of one token. Each says no by returning `None`, and the operations run one by one.

use std::sync::{Arc, Mutex, PoisonError};

use mlx_rs::{Array, Dtype};

use super::cuda::{Attend, Matvec, Prologue};
use super::weight::{MlxWeight, dims};
use super::{Mlx, MlxTensor};
use crate::{Activation, AttnParams, AttnSpan, Batch, Input, Pairing, Result, Rope};

/// Rows that a fused product takes at most.
const ROWS: usize = 8;
/// Positions from which attention is divided among more blocks than there are heads: MLX's own does that.
const LONG: usize = 4096;

/// How a tensor was made.
#[derive(Clone, Debug, Default)]
pub(super) enum Origin {
    #[default]
    Unknown,
    /// Columns of one row.
    Columns(Columns),
    /// A buffer, one row of which was just written.
    Written {
        /// The buffer as it was before.
        before: Array,
        /// The row.
        at: usize,
        /// What it holds now.
        row: Columns,
        /// The row as a fused kernel made it: the buffer's next state is `before` with that, and the operations that
        /// would make it are never computed.
        made: Arc<Mutex<Option<Array>>>,
    },
}

/// Columns from `from` on of the one row of `of`.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub of: Array,
    /// Parts of the same row share it.
    pub row: Arc<()>,
    pub from: usize,
    pub turn: Option<Turn>,
}

/// A rotation of all heads.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    inv_freq: Array,
    /// The same for the same frequencies.
    number: usize,
    head_dim: usize,
    pairs: usize,
    halves: bool,
    position: usize,
}

impl Turn {
    fn is(&self, other: &Self) -> bool {
        self.number == other.number
            && self.head_dim == other.head_dim
            && self.halves == other.halves
            && self.position == other.position
    }
}

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
        let (x, prologue, norm) = match *input {
            Input::Rows(x) => (x, Prologue::Plain, None),
            Input::RmsNorm { x, w, eps } => (x, Prologue::RmsNorm, Some((w, eps))),
            Input::Gated { act: Activation::Silu, gate_up } => (gate_up, Prologue::SiluGate, None),
            Input::Gated { act: Activation::GeluTanh, gate_up } => (gate_up, Prologue::GeluGate, None),
            _ => return Ok(None),
        };
        let [rows, cols] = x.shape();
        if !self.fuses() || rows == 0 || rows > ROWS {
            return Ok(None);
        }
        let [matrix] = w.matrices("linear")? else { return Ok(None) };
        let Some(stored) = matrix.for_kernels(self.dtype()) else { return Ok(None) };
        let ([out, inp], halved) =
            (dims(w.matrices("linear")?), norm.is_none() && prologue != Prologue::Plain);
        let gain = norm.map(|(w, _)| w.vector("rms_norm")).transpose()?;
        let bias = bias.map(|b| b.vector("linear bias")).transpose()?;
        // The kernels read 16 bytes at a time, and columns of a row may start anywhere.
        let whole = |x: &MlxTensor| matches!(x.origin, Origin::Unknown) && x.array.dtype() == self.dtype();
        let narrow = |x: &&Array| x.dtype() == self.dtype();
        // What does not fit is the plain operations' to refuse.
        let fits = whole(x)
            && residual.is_none_or(whole)
            && gain.iter().all(narrow)
            && bias.iter().all(narrow)
            && cols == if halved { 2 * inp } else { inp }
            && gain.is_none_or(|g| g.size() == inp)
            && bias.is_none_or(|b| b.size() == out)
            && residual.is_none_or(|h| h.shape() == [rows, out]);
        let dtype = self.dtype();
        let what = Matvec {
            dtype,
            bits: stored.bits,
            group: stored.group,
            inp,
            out,
            rows,
            prologue,
            bias: bias.is_some(),
            residual: residual.is_some(),
        };
        if !fits || !what.is_possible() {
            return Ok(None);
        }
        let none = &x.array;
        let eps = self.0.kernels.number(norm.map_or(0.0, |(_, eps)| eps));
        let inputs = [
            &x.array,
            stored.codes,
            stored.scales.unwrap_or(none),
            stored.biases.unwrap_or(none),
            gain.unwrap_or(none),
            &eps,
            bias.unwrap_or(none),
            residual.map_or(none, |h| &h.array),
            // Not read: there are no experts.
            none,
        ];
        self.0.kernels.matvec(what, &inputs).map(|y| Some(y.into()))
    }

    /// Whether what is made of columns of `x` may be fused: it is one row, and not columns of one itself.
    pub(super) fn is_row(&self, x: &MlxTensor) -> bool {
        self.fuses() && x.shape()[0] == 1 && matches!(x.origin, Origin::Unknown)
    }

    /// What is known of `x` once `rope` has turned it.
    pub(super) fn turned(&self, x: &MlxTensor, rope: &Rope, batch: &Batch) -> Result<Origin> {
        let (Origin::Columns(columns), [position]) = (&x.origin, batch.positions()) else {
            return Ok(Origin::Unknown);
        };
        if columns.turn.is_some() || rope.scale != 1.0 {
            return Ok(Origin::Unknown);
        }
        let (inv_freq, number) = self.0.ropes.inv_freq(rope)?;
        let turn = Turn {
            inv_freq,
            number,
            head_dim: rope.head_dim,
            pairs: rope.inv_freq.len(),
            halves: rope.pairing == Pairing::Halves,
            position: *position as usize,
        };
        Ok(Origin::Columns(Columns { turn: Some(turn), ..columns.clone() }))
    }

    /// [`Backend::attention`](crate::Backend::attention) of one token, with the rotation of its query and key, in one kernel.
    pub(super) fn fused_attention(
        &self,
        q: &MlxTensor,
        span: &AttnSpan<'_, MlxTensor>,
        p: &AttnParams,
    ) -> Result<Option<MlxTensor>> {
        let [Origin::Columns(query), Origin::Written { before: keys, at, row: key, made }] =
            [&q.origin, &span.k.origin]
        else {
            return Ok(None);
        };
        let Origin::Written { before: values, at: value_at, row: value, .. } = &span.v.origin else {
            return Ok(None);
        };
        let (Some(turn), Some(key_turn)) = (&query.turn, &key.turn) else { return Ok(None) };
        let len = span.layout.len;
        let window = p.narrower(span.window).into_iter().chain(p.chunk).min().unwrap_or(usize::MAX);
        let in_order = span.layout.keep == 0 && len <= span.layout.ring && window >= len && len <= LONG;
        let one_row = Arc::ptr_eq(&query.row, &key.row)
            && Arc::ptr_eq(&query.row, &value.row)
            && value.turn.is_none()
            && [query.from, key.from, value.from] == [0, p.q_dim(), p.q_dim() + p.k_dim()]
            && query.of.dim(1) as usize == p.q_dim() + p.k_dim() + p.v_dim();
        let latest = [*at, *value_at, turn.position] == [len - 1; 3] && turn.is(key_turn);
        let heads =
            [64, 128, 256].contains(&p.head_dim) && turn.head_dim == p.head_dim && p.softcap.is_none();
        let heads = heads && p.v_head_dim == p.head_dim;
        let typed = [&query.of, keys, values].iter().all(|x| x.dtype() == self.dtype());
        if !(typed && in_order && one_row && latest && heads && span.rows == (0..1)) {
            return Ok(None);
        }
        let what = Attend {
            dtype: self.dtype(),
            head: p.head_dim,
            heads: p.heads,
            kv_heads: p.kv_heads,
            pairs: turn.pairs,
            halves: turn.halves,
            scale: p.scale.to_bits(),
        };
        let length = self.0.kernels.length(len - 1)?;
        let inputs = [&query.of, keys, values, &turn.inv_freq, &length];
        let [out, key] = self.0.kernels.attend(what, &inputs)?;
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(Some(out.into()))
    }
}
