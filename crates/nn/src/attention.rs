//! Grouped-query self-attention: projections, head norms, rope, the cache, and the output projection.

use std::sync::Arc;

use rillm_kvcache::SequenceCache;
use rillm_tensor_core::{AttnParams, Backend, Batch, Input, Keys};
use smallvec::SmallVec;

use crate::linear::Bias;
use crate::{Linear, Norm, NormKind, Result, RotaryEmbedding, Weights};

/// Geometry of an [`Attention`] layer.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Width of the model.
    pub dim: usize,
    /// Head counts, head size, scale, window, softcap.
    pub params: AttnParams,
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: Bias,
    /// Whether `o_proj` has a bias.
    pub o_bias: Bias,
    /// Norm of each head of queries and keys (qwen3, gemma3).
    pub qk_norm: Option<NormKind>,
    /// Position embedding; `None` for layers without.
    pub rope: Option<Arc<RotaryEmbedding>>,
}

/// Grouped-query self-attention (Ainslie et al. 2023).
#[derive(Debug)]
pub struct Attention<B: Backend> {
    qkv: Linear<B>,
    o: Linear<B>,
    qk_norm: Option<(Norm<B>, Norm<B>)>,
    spec: AttentionSpec,
}

impl<B: Backend> Attention<B> {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj` and, if asked for, `q_norm` and `k_norm`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: AttentionSpec) -> Result<Self> {
        let p = &spec.params;
        let parts = [("q_proj", p.q_dim()), ("k_proj", p.kv_dim()), ("v_proj", p.kv_dim())];
        let qk_norm = match spec.qk_norm {
            Some(kind) => Some((w.norm("q_norm", p.head_dim, kind)?, w.norm("k_norm", p.head_dim, kind)?)),
            None => None,
        };
        Ok(Self {
            qkv: Linear::load(w, &parts, spec.dim, spec.qkv_bias)?,
            o: Linear::load(w, &[("o_proj", spec.dim)], p.q_dim(), spec.o_bias)?,
            qk_norm,
            spec,
        })
    }

    /// Attends from `x: [t, dim]`, each span of `batch` to its own sequence in `caches`, which grow by its rows.
    /// Returns `[t, dim]`.
    ///
    /// # Errors
    /// Those of the backend and of the caches. Caches may have grown then; the caller truncates them.
    pub fn forward(
        &self,
        be: &B,
        x: Input<'_, B>,
        layer: usize,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let q = self.cache(be, x, layer, batch, caches)?;
        let y = self.attend(be, q, layer, batch, caches)?;
        self.output(be, &y, None)
    }

    /// The first part of [`forward`](Self::forward): appends keys and values. Returns the queries, `[t, q_dim]`, as
    /// they were projected.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn cache(
        &self,
        be: &B,
        x: Input<'_, B>,
        layer: usize,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let p = &self.spec.params;
        let qkv = self.qkv.forward(be, x, None)?;
        let [q, mut k, v] = be.split_cols(qkv, [p.q_dim(), p.kv_dim(), p.kv_dim()])?;
        if let Some((_, norm)) = &self.qk_norm {
            k = norm.forward(be, &k)?;
        }
        let rope = self.spec.rope.as_ref().map(|rope| rope.at(batch.rope_len()));
        let keys = Keys { x: &k, rope: rope.as_deref().map(|rope| (rope, batch)) };
        for span in batch.spans() {
            caches[span.sequence].layer(layer)?.append(be, keys, &v, span.rows.clone())?;
        }
        Ok(q)
    }

    /// The second part: norm and rope of the queries, and what they see. Rows of `batch` may be fewer than those
    /// that were cached: the latest of some sequences. Returns `[t, q_dim]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn attend(
        &self,
        be: &B,
        mut q: B::Tensor,
        layer: usize,
        batch: &Batch,
        caches: &[SequenceCache<B>],
    ) -> Result<B::Tensor> {
        if let Some((norm, _)) = &self.qk_norm {
            q = norm.forward(be, &q)?;
        }
        if let Some(rope) = &self.spec.rope {
            q = be.rope(q, &rope.at(batch.rope_len()), batch)?;
        }
        let views = batch
            .spans()
            .iter()
            .map(|span| caches[span.sequence].view(layer, span.rows.clone()))
            .collect::<Result<SmallVec<[_; 4]>, _>>()?;
        Ok(be.attention(&q, &views, &self.spec.params)?)
    }

    /// The third part: `y: [t, q_dim]` -> `[t, dim]`, added to `residual`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn output(&self, be: &B, y: &B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.o.forward(be, Input::Rows(y), residual)
    }

    /// Bytes of weights that one pass reads.
    pub fn bytes(&self, be: &B) -> usize {
        self.qkv.bytes(be) + self.o.bytes(be)
    }

    /// The position embedding, if the layer has one.
    pub fn rope(&self) -> Option<&RotaryEmbedding> {
        self.spec.rope.as_deref()
    }
}
