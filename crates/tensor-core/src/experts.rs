//! Layers of which each row uses only some matrices: mixtures of experts, and products by heads. What a router decides
//! is stated by [`Routing`].

use std::fmt::Debug;

use crate::{Backend, Error, Input, Recurrent, Result};

/// How a row chooses its experts by the logits of a router, and what the chosen weigh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a row.
    pub top_k: usize,
    /// What becomes of the logits.
    pub score: Score,
    /// If experts are chosen from the best groups only, which these are (DeepSeek 2024).
    pub groups: Option<Groups>,
    /// If given, the weights are divided by their sum plus this.
    pub normalize: Option<f32>,
    /// Factor on the weights.
    pub scale: f32,
    /// What the weights multiply.
    pub weigh: Weigh,
}

/// From logits to weights. The experts with the greatest scores are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// The softmax of all logits (mixtral, qwen).
    Softmax,
    /// The sigmoid of each logit (deepseek_v3, llama4).
    Sigmoid,
    /// The softmax of the chosen logits alone (gpt_oss).
    Chosen,
    /// One expert after the other: the greatest logit `m` of those left, with its part of the softmax over those of
    /// them with `(m - s) / max(|s|, m) <= 2 * jitter` (Liu et al. 2023's SparseMixer, without its noise).
    SparseMixer {
        /// Tolerance for being near the greatest.
        jitter: f32,
    },
}

/// Groups of consecutive experts, the best of which stay in the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups in all; divides the number of experts.
    pub count: usize,
    /// How many stay.
    pub chosen: usize,
    /// What a group is judged by.
    pub by: GroupScore,
}

/// What a group of experts is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its greatest score (deepseek_v2).
    Greatest,
    /// The sum of its two greatest scores (deepseek_v3).
    TwoGreatest,
}

/// What the weight of an expert multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weigh {
    /// Its result.
    Results,
    /// Its input (llama4).
    Inputs,
}

impl Routing {
    /// Whether `experts` can be chosen from like this.
    pub(crate) fn check(&self, experts: usize) -> Result<()> {
        let in_groups = |g: &Groups| {
            let fits = g.count > 0 && experts.is_multiple_of(g.count) && (1..=g.count).contains(&g.chosen);
            fits && g.chosen * (experts / g.count) >= self.top_k
        };
        let possible = (1..=experts).contains(&self.top_k) && self.groups.as_ref().is_none_or(in_groups);
        let [got, want] = [[self.top_k, experts], [1, experts]];
        if possible { Ok(()) } else { Err(Error::Shape { op: "route", got, want }) }
    }
}

/// Experts and heads: products with one of several matrices of equal shape.
///
/// Which matrix a row meets is decided by data, on the device where there is one. A *pair* is a row and one of its
/// experts; tensors of pairs have `top_k` rows for each row, in an order that only the routes know.
pub trait Experts: Backend {
    /// Which experts each row of a pass uses, and their weights.
    type Routes: Debug;

    /// Makes one weight of `matrices` of equal shape, each from [`Backend::prepare`]; or of vectors. Called at load.
    ///
    /// # Errors
    /// Shapes that differ, or formats that differ where the backend can't mix them.
    fn stack(&self, matrices: Vec<Self::Weight>) -> Result<Self::Weight>;

    /// Chooses by `logits: [t, experts]`. `bias: [experts]` is added to scores for the choice only, not in the weights;
    /// `factors: [experts]` multiply the weights in the end.
    fn route(
        &self,
        logits: &Self::Tensor,
        bias: Option<&Self::Weight>,
        factors: Option<&Self::Weight>,
        how: &Routing,
    ) -> Result<Self::Routes>;

    /// Each row of `x: [t, d]` once for each of its experts, times the expert's weight if weights are for inputs:
    /// `[pairs, d]`.
    fn spread(&self, x: &Self::Tensor, routes: &Self::Routes) -> Result<Self::Tensor>;

    /// Each pair's row with the matrix of its expert: `x: [pairs, in]`, `w` of `experts` matrices `[out, in]` and
    /// `bias` of as many vectors `[out]`, from [`stack`](Self::stack). Returns `[pairs, out]`.
    fn linear_experts(
        &self,
        x: Input<'_, Self>,
        w: &Self::Weight,
        bias: Option<&Self::Weight>,
        routes: &Self::Routes,
    ) -> Result<Self::Tensor>;

    /// The sum over each row's experts, times their weights if weights are for results: `y: [pairs, d]` -> `[t, d]`,
    /// added to `residual: [t, d]`.
    fn combine(
        &self,
        y: Self::Tensor,
        routes: &Self::Routes,
        residual: Option<Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// The heads of `a: [t, heads * m]` and `b: [t, heads * n]`, each beside its counterpart: `[t, heads * (m + n)]`.
    fn join_heads(&self, a: &Self::Tensor, b: &Self::Tensor, heads: usize) -> Result<Self::Tensor>;

    /// Each head with a matrix of its own: `x: [t, heads * in]`, `w` of `heads` matrices `[out, in]` from
    /// [`stack`](Self::stack). Returns `[t, heads * out]`.
    fn linear_heads(&self, x: &Self::Tensor, w: &Self::Weight) -> Result<Self::Tensor>;
}

/// All that models of any family ask of a backend.
pub trait FullBackend: Experts + Recurrent {}

impl<B: Experts + Recurrent> FullBackend for B {}
