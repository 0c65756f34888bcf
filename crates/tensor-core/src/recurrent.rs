//! Layers that carry a state from token to token: [`Recurrent`], and what its operations take. The default bodies in
//! `host` are what the operations mean.

mod gates;
mod host;
mod shapes;

use std::ops::Range;

use smallvec::SmallVec;

use crate::{Activation, Backend, Result};

pub(crate) use gates::{Gates, RuleRow};
pub(crate) use host::rg_lru_gates;
pub(crate) use shapes::{AttentionDims, head_dims};

/// Rows of one sequence, and the state that it is in before them.
#[derive(Debug)]
pub struct StateSpan<'a, T> {
    /// Rows of the operands. Spans follow each other without gaps and cover all rows.
    pub rows: Range<usize>,
    /// The state after the row before; `None` at the start of a sequence, where all values are zero.
    pub state: Option<&'a T>,
}

/// The state of each span after its last row, in `f32`.
pub type States<T> = SmallVec<[T; 4]>;

/// A depthwise causal convolution over the latest rows.
#[derive(Debug)]
pub struct ShortConv<'a, T> {
    /// `[k, c]`: row `k - 1` meets the row itself, row 0 the oldest.
    pub kernel: &'a T,
    /// `[1, c]`.
    pub bias: Option<&'a T>,
    /// Applied to the result.
    pub act: Option<Activation>,
}

/// Mamba's selective state space (Gu and Dao 2023): each channel has a state of `n` values and its own step.
#[derive(Debug)]
pub struct SelectiveScan<'a, T> {
    /// `[t, c]`: the step before softplus.
    pub dt: &'a T,
    /// What enters the state, `[t, n]`.
    pub b: &'a T,
    /// What is read from it, `[t, n]`.
    pub c: &'a T,
    /// Continuous decay, negative, `[n, c]`.
    pub a: &'a T,
    /// Factor of the input in the output, `[1, c]`.
    pub d: &'a T,
}

/// Linear attention: for each head a matrix `S: [key_dim, value_dim]` that decays, takes in a key and value, and is
/// read by a query. Consecutive heads share a key and query head.
#[derive(Debug)]
pub struct LinearAttention<'a, T> {
    /// `[t, key_heads * key_dim]`.
    pub q: &'a T,
    /// `[t, key_heads * key_dim]`.
    pub k: &'a T,
    /// `[t, heads * value_dim]`.
    pub v: &'a T,
    /// Heads of values, each with a state.
    pub heads: usize,
    /// Heads of keys and queries; divides `heads`.
    pub key_heads: usize,
    /// How the state changes with a token.
    pub rule: Rule<'a, T>,
}

/// How the state `S` of a head changes with a token; `y = Sᵀ q` is read afterwards.
#[derive(Debug)]
pub enum Rule<'a, T> {
    /// `S = decay S + k vᵀ` (lightning attention, Qin et al. 2024).
    Constant {
        /// `[1, heads]`.
        decay: &'a T,
    },
    /// `S = exp(dt a) S + dt k vᵀ`, `y = Sᵀ q + d v`, with `dt = clip(softplus(dt + dt_bias))`: Mamba-2 (Dao and Gu
    /// 2024), where `k` is called B, `q` C and `v` x.
    Ssd {
        /// `[t, heads]`.
        dt: &'a T,
        /// `[1, heads]`.
        dt_bias: &'a T,
        /// `-exp(A_log)`, `[1, heads]`.
        a: &'a T,
        /// `[1, heads]`.
        d: &'a T,
        /// The least and the greatest step.
        limits: [f32; 2],
    },
    /// `S = g S`, then `S = S + k β (v - Sᵀ k)ᵀ`, with `g = exp(a softplus(gate + dt_bias))` and `β = sigmoid(beta)`:
    /// the gated delta rule (Yang et al. 2024), or with one decay for each value of a key Kimi's (2025).
    Delta {
        /// `[t, heads]`, or `[t, heads * key_dim]`: row `i` of `S` decays by itself.
        gate: &'a T,
        /// As wide as `gate`.
        dt_bias: &'a T,
        /// `-exp(A_log)`, `[1, heads]`.
        a: &'a T,
        /// `[t, heads]`.
        beta: &'a T,
    },
    /// `S = w S + b (Sᵀ a)ᵀ + k vᵀ` with `w = exp(-e^-0.5 sigmoid(decay))` for each row of `S` (RWKV-7, Peng et al.
    /// 2025).
    Wkv7 {
        /// `[t, heads * key_dim]`.
        decay: &'a T,
        /// What is looked up, `[t, heads * key_dim]`.
        a: &'a T,
        /// Where what was found is added, `[t, heads * key_dim]`.
        b: &'a T,
    },
}

impl<T> Clone for Rule<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Rule<'_, T> {}

/// The real-gated linear recurrent unit (De et al. 2024): `h = α h + m sigmoid(input) x` with
/// `α = exp(-8 sigmoid(recurrent) softplus(param))` and `m = sqrt(1 - α²)`; `m = 1` at the start of a sequence.
#[derive(Debug)]
pub struct RgLru<'a, T> {
    /// `[t, c]`.
    pub input: &'a T,
    /// `[t, c]`.
    pub recurrent: &'a T,
    /// `[1, c]`.
    pub param: &'a T,
}

/// The operations of layers with a state. A backend that computes nothing of its own implements it with an empty
/// body: the operands are then read and computed on the host.
///
/// Operations are functions: they leave the states that they are given as they are, for a sequence to go back to, and
/// return new ones. Parameters are tensors that [`Backend::upload`] made.
pub trait Recurrent: Backend {
    /// `act(bias + Σ kernel[j] x[row - (k - 1) + j])` for `x: [t, c]`. A state is the latest `k - 1` rows,
    /// `[k - 1, c]`.
    ///
    /// # Errors
    /// Shapes that don't fit, or those of the backend.
    fn short_conv(
        &self,
        x: &Self::Tensor,
        p: &ShortConv<'_, Self::Tensor>,
        spans: &[StateSpan<'_, Self::Tensor>],
    ) -> Result<(Self::Tensor, States<Self::Tensor>)> {
        host::short_conv(self, x, p, spans)
    }

    /// `h = exp(dt a) h + dt b x`, `y = c h + d x`, with `dt = softplus(dt)`, for each channel of `x: [t, c]`. A
    /// state is `[n, c]`.
    ///
    /// # Errors
    /// Shapes that don't fit, or those of the backend.
    fn selective_scan(
        &self,
        x: &Self::Tensor,
        p: &SelectiveScan<'_, Self::Tensor>,
        spans: &[StateSpan<'_, Self::Tensor>],
    ) -> Result<(Self::Tensor, States<Self::Tensor>)> {
        host::selective_scan(self, x, p, spans)
    }

    /// What queries read from states that [`Rule`] changes, `[t, heads * value_dim]`. A state is
    /// `[heads * key_dim, value_dim]`.
    ///
    /// # Errors
    /// Shapes that don't fit, or those of the backend.
    fn linear_attention(
        &self,
        p: &LinearAttention<'_, Self::Tensor>,
        spans: &[StateSpan<'_, Self::Tensor>],
    ) -> Result<(Self::Tensor, States<Self::Tensor>)> {
        host::linear_attention(self, p, spans)
    }

    /// Each head of `x: [t, heads * n]` by a matrix of its own and a bias, `[t, heads * m]`. `w: [heads * n, m]` has the
    /// matrices one below the other; `bias: [1, heads * m]`.
    ///
    /// # Errors
    /// Shapes that don't fit, or those of the backend.
    fn head_linear(&self, x: &Self::Tensor, w: &Self::Tensor, bias: &Self::Tensor) -> Result<Self::Tensor> {
        host::head_linear(self, x, w, bias)
    }

    /// [`RgLru`] of `x: [t, c]`. A state is `[1, c]`.
    ///
    /// # Errors
    /// Shapes that don't fit, or those of the backend.
    fn rg_lru(
        &self,
        x: &Self::Tensor,
        p: &RgLru<'_, Self::Tensor>,
        spans: &[StateSpan<'_, Self::Tensor>],
    ) -> Result<(Self::Tensor, States<Self::Tensor>)> {
        host::rg_lru(self, x, p, spans)
    }
}
