//! What the branches of a layer have in common, whether they mix positions, channels or both.

use std::cell::RefCell;
use std::fmt::Debug;

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Backend, Batch, Input};

use crate::{Result, RotaryEmbedding};

/// Attention, a feed-forward layer, a recurrence: what computes one branch of a residual layer.
///
/// It comes in two parts, so that the second can add to the rows that the first read, in place.
pub trait Mixer<B: Backend>: Debug + Send {
    /// What it keeps of a sequence.
    fn cache(&self) -> CacheKind {
        CacheKind::None
    }

    /// All but the output projection, of `x: [t, dim]`: `[t, inner]`, or only the rows of `pass.tail`. The states of
    /// the sequences grow by all rows.
    ///
    /// # Errors
    /// Those of the backend and of the caches. Caches may have grown then; the caller truncates them.
    fn mix(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor>;

    /// The output projection of what [`mix`](Self::mix) gave, `[t, dim]`, added to `residual`.
    ///
    /// # Errors
    /// Those of the backend.
    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor>;

    /// Takes note of `x` in the states alone: [`mix`](Self::mix) whose result nobody needs.
    ///
    /// # Errors
    /// As [`mix`](Self::mix).
    fn absorb(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<()> {
        self.mix(be, x, pass, caches).map(drop)
    }

    /// Bytes of weights that a pass of one token reads.
    fn bytes(&self, be: &B) -> usize;

    /// Its position embedding, if it has one.
    fn rope(&self) -> Option<&RotaryEmbedding> {
        None
    }
}

/// Where in a forward pass a mixer is.
#[derive(Debug)]
pub struct Pass<'a, B: Backend> {
    /// Which cache of each sequence is its own.
    pub slot: usize,
    /// The rows and their sequences.
    pub batch: &'a Batch,
    /// The rows that are needed of the result, if not all.
    pub tail: Option<&'a Tail>,
    /// What tokens bring to each layer besides the embedding, `[t, layers * width]` of the rows that are needed of the
    /// result (gemma3n, gemma4).
    pub per_layer: Option<&'a B::Tensor>,
    /// Where the first layer of the pass puts its values, `[t, dim]`, for the others (RWKV-7).
    pub first_values: Option<&'a RefCell<Option<B::Tensor>>>,
}

impl<'a, B: Backend> Pass<'a, B> {
    /// All rows, and nothing besides.
    pub fn new(slot: usize, batch: &'a Batch) -> Self {
        Self { slot, batch, tail: None, per_layer: None, first_values: None }
    }
}

/// The rows that are needed after the last layer with a state: of each span those from the first that has logits.
#[derive(Debug, Default)]
pub struct Tail {
    /// Rows of the whole batch.
    pub rows: Vec<usize>,
    /// These rows as a batch.
    pub batch: Batch,
    /// Where in it the rows are that logits are wanted of.
    pub wanted: Vec<usize>,
}

impl Tail {
    /// The rows of `batch` that the logits of rows `logits_of` need; `None` if that is all of them.
    pub fn of(batch: &Batch, logits_of: &[usize]) -> Option<Self> {
        if logits_of.len() >= batch.rows() {
            return None;
        }
        let mut tail = Self::default();
        tail.batch.reset(batch.rope_len());
        for span in batch.spans() {
            let needed = logits_of.iter().filter(|row| span.rows.contains(row));
            if let Some(&first) = needed.min() {
                let (start, t) = (span.start + first - span.rows.start, span.rows.end - first);
                tail.batch.push(span.sequence, start, t);
                tail.rows.extend(first..span.rows.end);
            }
        }
        // A row that is not in the batch stays one that does not exist.
        tail.wanted.extend(logits_of.iter().map(|row| tail.rows.binary_search(row).unwrap_or(*row)));
        Some(tail)
    }
}
