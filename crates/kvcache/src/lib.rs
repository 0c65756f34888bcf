//! Where the keys, values and states of a sequence live, and which of them can be given back.
//!
//! Not attention itself: a cache decides what is stored where; [`Backend::attention`] computes over the view
//! that a cache gives. That keeps the sequences of a batch in one call, whatever caches they have.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod arrays;
mod dense;
mod rotating;
mod sequence;

use std::fmt::Debug;
use std::ops::Range;

use rillm_tensor_core::{AttnSpan, Backend, Keys};

pub use arrays::{Arrays, ArraysCache};
pub use dense::DenseKvCache;
pub use rotating::RotatingKvCache;
pub use sequence::{CacheKind, SequenceCache};

/// Result of a cache operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cache could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Positions that `len` needs were overwritten.
    #[error("can't go back to {len} tokens: positions before {oldest} are gone (window of {window} tokens)")]
    Overwritten {
        /// Length asked for.
        len: usize,
        /// The oldest position still stored.
        oldest: usize,
        /// Latest positions that the layer keeps.
        window: usize,
    },
    /// The sequence is shorter than what should be kept of it.
    #[error("can't keep {len} tokens of a sequence of {have}")]
    TooShort {
        /// Length asked for.
        len: usize,
        /// Length there is.
        have: usize,
    },
    /// A state is asked for that was not kept.
    #[error("can't go back to {len} tokens: states were kept of 0 and of {kept:?} tokens")]
    NoCheckpoint {
        /// Length asked for.
        len: usize,
        /// Lengths that can be gone back to, besides 0.
        kept: Vec<usize>,
    },
    /// The model asks for another number of layers than the cache has.
    #[error("the cache has no such part for layer {layer}")]
    NoSuchLayer {
        /// Layer index.
        layer: usize,
    },
    /// The backend failed.
    #[error(transparent)]
    Tensor(#[from] rillm_tensor_core::Error),
}

/// Keys and values of one sequence in one attention layer.
///
/// Positions count from the start of the sequence and never change; which slot holds a position is the cache's
/// business, told to attention by [`view`](Self::view).
pub trait KvCache<B: Backend>: Debug + Send {
    /// Positions appended and not truncated.
    fn len(&self) -> usize;
    /// Whether nothing was appended.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Appends rows `rows` of the keys `k` and of `v: [t, kv_heads * v_head_dim]`.
    ///
    /// # Errors
    /// When the backend can't allocate; the cache is then as before.
    fn append(&mut self, be: &B, k: Keys<'_, B::Tensor>, v: &B::Tensor, rows: Range<usize>) -> Result<()>;
    /// What queries at rows `rows` of a batch meet: the latest `rows.len()` positions are theirs.
    /// `None` before the first append.
    fn view(&self, rows: Range<usize>) -> Option<AttnSpan<'_, B::Tensor>>;
    /// Whether [`truncate`](Self::truncate) to `len` would work.
    ///
    /// # Errors
    /// [`Error::Overwritten`], [`Error::TooShort`].
    fn check_truncate(&self, len: usize) -> Result<()>;
    /// Forgets positions from `len` on.
    ///
    /// # Errors
    /// As [`check_truncate`](Self::check_truncate); nothing has changed then.
    fn truncate(&mut self, len: usize) -> Result<()>;
    /// Bytes of the buffers.
    fn bytes(&self, be: &B) -> usize;
}

/// Buffers grow in steps of this many positions.
const STEP: usize = 64;

/// Slots for `need` positions and an eighth more: what a long sequence costs to copy is little beside reading it for each of
/// the tokens between, the first token after a prompt finds room, and little memory waits for tokens that may not come.
fn grown(need: usize) -> usize {
    (need + need / 8).next_multiple_of(STEP)
}
