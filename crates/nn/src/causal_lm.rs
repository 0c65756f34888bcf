//! The contract between a model and everything that runs it.

use std::fmt::Debug;

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Backend, Batch, Ids};

use crate::Result;

/// An autoregressive model over backend `B`: all that an author of a model implements.
pub trait CausalLm<B: Backend>: Debug + Send {
    /// Tokens that logits are given for.
    fn vocab(&self) -> usize;

    /// Positions that the model was made for, in tokens; `None` if nothing limits them. Longer sequences can be
    /// asked for, but expect little of them.
    fn context(&self) -> Option<usize>;

    /// Positions that can be computed at all: the rows of a table of learned positions.
    fn max_positions(&self) -> Option<usize> {
        None
    }

    /// What each layer keeps of a sequence.
    fn caches(&self) -> Vec<CacheKind>;

    /// Names the set of rope frequencies of a sequence of `len` tokens. States computed under one set don't fit
    /// another: when a growing sequence crosses over, its session prefills it again.
    fn rope_set(&self, len: usize) -> usize {
        let _ = len;
        0
    }

    /// Bytes of weights that a forward pass of one token reads: every matrix once, a tied head once, gathered
    /// embedding rows not.
    fn weight_bytes(&self, be: &B) -> usize;

    /// Runs `ids`, one a row of `batch`; each span continues the sequence `caches[span.sequence]`, which grows by
    /// its rows. Returns the logits `[rows.len(), vocab]` that follow the batch's rows `logits_of`, or `None` if
    /// that is empty.
    ///
    /// # Errors
    /// Those of the layers. Caches may have grown in some layers then; the caller truncates them.
    fn forward(
        &self,
        be: &B,
        ids: Ids<'_, B>,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
        logits_of: &[usize],
    ) -> Result<Option<B::Tensor>>;
}
