//! Grouped-query self-attention: projections, head norms, rope, the cache, and the output projection.

use std::sync::Arc;

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, AttnParams, Backend, Batch, Input, Keys};
use smallvec::SmallVec;

use crate::linear::Bias;
use crate::{Error, Linear, Mixer, Norm, NormKind, Pass, Result, RotaryEmbedding, Weights};

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
    /// Where keys and values come from.
    pub kv: KeyValues,
    /// Norm of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Norm of each head of values.
    pub v_norm: Option<NormKind>,
    /// Whether each head has a score that takes part in its softmax without a value: `sinks` (gpt_oss).
    pub sinks: Bias,
    /// Norm of the result, before `o_proj`: `attn_sub_norm` (bitnet).
    pub sub_norm: Option<NormKind>,
    /// What a gate on the result goes through: of `g_proj`, as wide as the result (qwen3_next).
    pub gate: Option<Activation>,
    /// Queries, keys and values are cut off at this magnitude before anything else (olmo).
    pub clip: Option<f32>,
    /// Factor on the queries that grows with the position.
    pub temperature: Option<Temperature>,
    /// Position embedding; `None` for layers without.
    pub rope: Option<Arc<RotaryEmbedding>>,
}

impl AttentionSpec {
    /// Projections without biases, and no more.
    pub const fn new(dim: usize, params: AttnParams) -> Self {
        Self {
            dim,
            params,
            qkv_bias: Bias::None,
            o_bias: Bias::None,
            kv: KeyValues::Projected,
            qk_norm: None,
            v_norm: None,
            sinks: Bias::None,
            sub_norm: None,
            gate: None,
            clip: None,
            temperature: None,
            rope: None,
        }
    }
}

/// Where an attention layer's keys and values come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyValues {
    /// Projections of its own.
    #[default]
    Projected,
    /// One projection for both (gemma4).
    Same,
    /// Another layer's cache.
    Shared,
}

/// `1 + beta * ln(1 + floor((position + offset) / step))`: a factor on queries (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Strength.
    pub beta: f32,
    /// Positions between steps.
    pub step: usize,
    /// Added to the position: 1 counts positions from 1.
    pub offset: usize,
}

impl Temperature {
    /// The factor at `position`.
    pub fn at(&self, position: u32) -> f32 {
        let steps = (position as usize + self.offset) / self.step.max(1);
        1.0 + self.beta * (steps as f32).ln_1p()
    }
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNorm {
    /// Which norm.
    pub kind: NormKind,
    /// What is normalised at a time.
    pub over: NormOver,
    /// Before or after rope.
    pub order: NormOrder,
}

impl QkNorm {
    /// Of each head, before rope (qwen3, gemma3).
    pub const fn heads(kind: NormKind) -> Self {
        Self { kind, over: NormOver::Head, order: NormOrder::BeforeRope }
    }
}

/// What a norm of queries or keys normalises at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// Each head, all with the same factors.
    Head,
    /// All heads together (olmo2).
    Row,
    /// Each head, with factors of its own (cohere), under the head's number. The kind of norm is one with factors
    /// and no bias.
    EachHead,
}

/// The norm of all heads of queries, or of keys.
#[derive(Debug)]
struct HeadNorm<B: Backend> {
    norm: Norm<B>,
    /// Factors of all heads, where each has its own.
    factors: Option<B::Weight>,
}

impl<B: Backend> HeadNorm<B> {
    fn load(w: &Weights<'_, B>, spec: QkNorm, heads: usize, head_dim: usize) -> Result<Self> {
        let (kind, dim) = match (spec.over, spec.kind) {
            (NormOver::Head, kind) => (kind, head_dim),
            (NormOver::Row, kind) => (kind, heads * head_dim),
            (NormOver::EachHead, NormKind::Layer { eps } | NormKind::LayerNoBias { eps }) => {
                (NormKind::LayerPlain { eps }, head_dim)
            }
            (NormOver::EachHead, kind) => (NormKind::RmsPlain { eps: kind.eps() }, head_dim),
        };
        let factors = match spec.over {
            NormOver::EachHead => {
                let mut all = Vec::new();
                for i in 0..heads {
                    let w = w.at(i);
                    let missing = || Error::MissingWeight { name: w.name("weight") };
                    all.extend(w.opt_values("weight", head_dim)?.ok_or_else(missing)?);
                }
                Some(w.vector("weight", &all)?)
            }
            _ => None,
        };
        Ok(Self { norm: Norm::load(w, dim, kind)?, factors })
    }

    fn forward(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let x = self.norm.forward(be, x)?;
        match &self.factors {
            Some(factors) => Ok(be.scale_cols(x, factors)?),
            None => Ok(x),
        }
    }
}

/// Whether queries and keys are normalised before or after they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOrder {
    /// Norm, then rope.
    BeforeRope,
    /// Rope, then norm (hunyuan).
    AfterRope,
}

/// Grouped-query self-attention (Ainslie et al. 2023).
#[derive(Debug)]
pub struct Attention<B: Backend> {
    qkv: Linear<B>,
    o: Linear<B>,
    q_norm: Option<(NormOrder, HeadNorm<B>)>,
    k_norm: Option<(NormOrder, HeadNorm<B>)>,
    v_norm: Option<Norm<B>>,
    sinks: Option<B::Weight>,
    sub_norm: Option<Norm<B>>,
    spec: AttentionSpec,
}

impl<B: Backend> Attention<B> {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj` and, if asked for, `g_proj`, `q_norm`, `k_norm` and `attn_sub_norm`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: AttentionSpec) -> Result<Self> {
        let p = &spec.params;
        let parts = [("q_proj", p.q_dim()), ("k_proj", p.k_dim()), ("v_proj", p.v_dim())];
        let parts = match spec.kv {
            KeyValues::Projected => &parts[..],
            KeyValues::Same => &parts[..2],
            KeyValues::Shared => &parts[..1],
        };
        let mut parts = parts.to_vec();
        parts.extend(spec.gate.map(|_| ("g_proj", p.out_dim())));
        let norm = |name, heads| {
            let load = |norms: QkNorm| {
                HeadNorm::load(&w.at(name), norms, heads, p.head_dim).map(|norm| (norms.order, norm))
            };
            spec.qk_norm.map(load).transpose()
        };
        let own = spec.kv != KeyValues::Shared;
        Ok(Self {
            qkv: Linear::load(w, &parts, spec.dim, spec.qkv_bias)?,
            o: Linear::load(w, &[("o_proj", spec.dim)], p.out_dim(), spec.o_bias)?,
            q_norm: norm("q_norm", p.heads)?,
            k_norm: if own { norm("k_norm", p.kv_heads)? } else { None },
            v_norm: match spec.v_norm.filter(|_| own) {
                Some(kind) => Some(w.norm("v_norm", p.v_head_dim, kind)?),
                None => None,
            },
            sinks: match spec.sinks {
                Bias::Added => Some(w.weight("sinks", &[p.heads])?),
                Bias::None => None,
            },
            sub_norm: spec.sub_norm.map(|kind| w.norm("attn_sub_norm", p.out_dim(), kind)).transpose()?,
            spec,
        })
    }

    /// Queries, keys and values of `x: [t, dim]`; the latter two are appended. Returns the queries, `[t, q_dim]`, as
    /// they were projected, and the gate.
    fn cache(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<(B::Tensor, Option<B::Tensor>)> {
        let (p, batch) = (&self.spec.params, pass.batch);
        let (mut qkv, mut gate) = (self.qkv.forward(be, x, None)?, None);
        if self.spec.gate.is_some() {
            let width = be.shape(&qkv)[1];
            let [rest, g] = be.split_cols(qkv, [width - p.out_dim(), p.out_dim()])?;
            (qkv, gate) = (rest, Some(g));
        }
        if let Some(limit) = self.spec.clip {
            qkv = be.activate(Activation::Clip { limit }, qkv)?;
        }
        let (q, mut k, mut v) = match self.spec.kv {
            KeyValues::Projected => {
                let [q, k, v] = be.split_cols(qkv, [p.q_dim(), p.k_dim(), p.v_dim()])?;
                (q, k, v)
            }
            KeyValues::Same => {
                let [q, k] = be.split_cols(qkv, [p.q_dim(), p.k_dim()])?;
                (q, k.clone(), k)
            }
            KeyValues::Shared => return Ok((qkv, gate)),
        };
        let rope = self.spec.rope.as_ref().map(|rope| rope.at(batch.rope_len()));
        let mut rope = rope.as_deref();
        if let Some(norm) = &self.v_norm {
            v = norm.forward(be, &v)?;
        }
        if let Some((order, norm)) = &self.k_norm {
            if *order == NormOrder::AfterRope
                && let Some(rope) = rope.take()
            {
                k = be.rope(k, rope, batch)?;
            }
            k = norm.forward(be, &k)?;
        }
        let keys = Keys { x: &k, rope: rope.map(|rope| (rope, batch)) };
        for span in batch.spans() {
            caches[span.sequence].layer(pass.slot)?.append(be, keys, &v, span.rows.clone())?;
        }
        Ok((q, gate))
    }

    /// Norm and rope of the queries, and what they see. Rows of `batch` may be fewer than those that were cached: the
    /// latest of some sequences. Returns `[t, out_dim]`.
    fn attend(
        &self,
        be: &B,
        mut q: B::Tensor,
        slot: usize,
        batch: &Batch,
        caches: &[SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let order = self.q_norm.as_ref().map(|(order, norm)| (*order, norm));
        if let Some((NormOrder::BeforeRope, norm)) = order {
            q = norm.forward(be, &q)?;
        }
        if let Some(rope) = &self.spec.rope {
            q = be.rope(q, &rope.at(batch.rope_len()), batch)?;
        }
        if let Some((NormOrder::AfterRope, norm)) = order {
            q = norm.forward(be, &q)?;
        }
        if let Some(temperature) = self.spec.temperature {
            let factors: SmallVec<[_; 8]> = batch.positions().iter().map(|p| temperature.at(*p)).collect();
            q = be.scale_rows(q, &factors)?;
        }
        let views = batch
            .spans()
            .iter()
            .map(|span| caches[span.sequence].view(slot, span.rows.clone()))
            .collect::<Result<SmallVec<[_; 4]>, _>>()?;
        Ok(be.attention(&q, &views, &self.spec.params, self.sinks.as_ref())?)
    }
}

impl<B: Backend> Mixer<B> for Attention<B> {
    fn cache(&self) -> CacheKind {
        match (self.spec.kv, self.spec.params.window.into_iter().chain(self.spec.params.chunk).min()) {
            (KeyValues::Shared, _) => CacheKind::None,
            (_, Some(window)) => CacheKind::Rotating { window },
            (_, None) => CacheKind::Dense,
        }
    }

    fn mix(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let (mut q, mut gate) = Self::cache(self, be, x, pass, caches)?;
        let mut batch = pass.batch;
        if let Some(tail) = pass.tail {
            q = be.take_rows(&q, &tail.rows)?;
            gate = gate.map(|g| be.take_rows(&g, &tail.rows)).transpose()?;
            batch = &tail.batch;
        }
        let y = self.attend(be, q, pass.slot, batch, caches)?;
        match (self.spec.gate, gate) {
            (Some(act), Some(gate)) => Ok(be.gate(act, gate, &y)?),
            _ => Ok(y),
        }
    }

    fn absorb(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<()> {
        Self::cache(self, be, x, pass, caches).map(drop)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        let input = self.sub_norm.as_ref().map_or(Input::Rows(&h), |norm| norm.of(&h));
        self.o.forward(be, input, residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.qkv.bytes(be) + self.o.bytes(be)
    }

    fn rope(&self) -> Option<&RotaryEmbedding> {
        self.spec.rope.as_deref()
    }
}
