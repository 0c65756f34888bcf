//! The cache of layers with a state: what a recurrence or a convolution carries from token to token.

use std::fmt::Debug;

use rillm_tensor_core::Backend;
use smallvec::SmallVec;

use crate::{Error, Result};

/// The tensors of one state, e.g. of a convolution and of a recurrence.
pub type Arrays<T> = SmallVec<[T; 2]>;

/// The state of one layer of one sequence, and states that it was in before.
///
/// A state can't be taken apart into tokens, so going back means going to a state that was kept: the one before the
/// latest append, so that this can always be taken back, and those that an append of several tokens led to, where
/// prompts ended. What lies between is computed again by whoever has the tokens.
#[derive(Debug)]
pub struct ArraysCache<B: Backend> {
    now: Checkpoint<B::Tensor>,
    /// In order of length.
    before: Vec<Checkpoint<B::Tensor>>,
    /// Ends of prompts that are kept.
    limit: usize,
}

/// The state after `len` tokens.
#[derive(Debug)]
struct Checkpoint<T> {
    /// Empty at the start.
    arrays: Arrays<T>,
    len: usize,
    /// Whether several tokens were appended at once to get here.
    is_prompt: bool,
}

impl<T> Checkpoint<T> {
    fn start() -> Self {
        Self { arrays: Arrays::new(), len: 0, is_prompt: false }
    }
}

impl<B: Backend> ArraysCache<B> {
    /// An empty cache that keeps at most `checkpoints` states besides the one before the latest append.
    pub fn new(checkpoints: usize) -> Self {
        Self { now: Checkpoint::start(), before: Vec::new(), limit: checkpoints }
    }

    /// Tokens that the state has seen.
    pub fn len(&self) -> usize {
        self.now.len
    }

    /// Whether it has seen none.
    pub fn is_empty(&self) -> bool {
        self.now.len == 0
    }

    /// Tensor `i` of the state; `None` at the start of a sequence.
    pub fn array(&self, i: usize) -> Option<&B::Tensor> {
        self.now.arrays.get(i)
    }

    /// All tensors: of the state and of those that were kept.
    pub fn arrays(&self) -> impl Iterator<Item = &B::Tensor> {
        self.before.iter().chain([&self.now]).flat_map(|c| &c.arrays)
    }

    /// Takes `arrays` as the state after `rows` more tokens.
    pub fn append(&mut self, rows: usize, arrays: Arrays<B::Tensor>) {
        self.before.retain(|c| c.is_prompt);
        if self.before.len() > self.limit {
            self.before.remove(0);
        }
        let next = Checkpoint { arrays, len: self.now.len + rows, is_prompt: rows > 1 };
        let before = std::mem::replace(&mut self.now, next);
        if before.len > 0 {
            self.before.push(before);
        }
    }

    /// The longest length up to `len` that [`truncate`](Self::truncate) can go to.
    pub fn nearest(&self, len: usize) -> usize {
        let kept = self.before.iter().chain([&self.now]).map(|c| c.len);
        kept.filter(|kept| *kept <= len).max().unwrap_or(0)
    }

    /// Whether [`truncate`](Self::truncate) to `len` would work.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], [`Error::TooShort`].
    pub fn check_truncate(&self, len: usize) -> Result<()> {
        if len > self.now.len {
            return Err(Error::TooShort { len, have: self.now.len });
        }
        if self.nearest(len) != len {
            let kept = self.before.iter().map(|c| c.len).collect();
            return Err(Error::NoCheckpoint { len, kept });
        }
        Ok(())
    }

    /// Goes back to the state after `len` tokens.
    ///
    /// # Errors
    /// As [`check_truncate`](Self::check_truncate); nothing has changed then.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.check_truncate(len)?;
        while self.now.len > len {
            self.now = self.before.pop().unwrap_or_else(Checkpoint::start);
        }
        Ok(())
    }

    /// Bytes of all tensors.
    pub fn bytes(&self, be: &B) -> usize {
        self.arrays().map(|x| be.tensor_bytes(x)).sum()
    }
}
