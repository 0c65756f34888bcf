//! Tables of vectors: tokens, learned positions; and the table as output head.

use rillm_tensor_core::{Backend, Ids, Input};

use crate::{Result, Weights};

/// A table of vectors, usable as the output head when tied.
#[derive(Debug)]
pub struct Embedding<B: Backend> {
    weight: B::Weight,
}

impl<B: Backend> Embedding<B> {
    /// Loads `weight: [n, dim]`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, n: usize, dim: usize) -> Result<Self> {
        Ok(Self { weight: w.weight("weight", &[n, dim])? })
    }

    /// The vectors of `ids`, `[t, dim]`.
    ///
    /// # Errors
    /// An id outside the table.
    pub fn forward(&self, be: &B, ids: Ids<'_, B>) -> Result<B::Tensor> {
        Ok(be.embed(&self.weight, ids)?)
    }

    /// Logits of `x: [t, dim]` against every row, `[t, n]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn as_head(&self, be: &B, x: Input<'_, B>) -> Result<B::Tensor> {
        Ok(be.project(x, &self.weight, None, None)?)
    }

    /// Bytes that one pass as head reads.
    pub fn bytes(&self, be: &B) -> usize {
        be.weight_bytes(&self.weight)
    }
}
