//! Multi-head latent attention (DeepSeek 2024): keys and values of all heads are projections of one latent, which is
//! what the cache holds.
//!
//! It is computed in the absorbed form: a query `q` meets the key `W_k l` of latent `l` as `(W_kᵀ q) · l`, and what the
//! heads see are sums of latents, which `W_v` makes values of afterwards. So there is one head of keys, the latent and the
//! rotated part beside each other, and its first part is the value.

use std::borrow::Cow;
use std::sync::Arc;

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_quant::{Format, RawTensor};
use rillm_tensor_core::{AttnParams, Backend, Batch, Experts, Input, Keys};
use smallvec::SmallVec;

use crate::linear::Bias;
use crate::{Error, Linear, Mixer, Norm, NormKind, Pass, Result, RotaryEmbedding, Weights};

/// Geometry of multi-head latent attention.
#[derive(Clone, Debug)]
pub struct MlaSpec {
    /// Width of the model.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Width of the latent that queries are made of; `None` if they are made of the input.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent that keys and values are made of.
    pub kv_lora_rank: usize,
    /// Values of a head that are not rotated.
    pub nope_dim: usize,
    /// Values of a head that are rotated; for keys, all heads have the same.
    pub rope_dim: usize,
    /// Values of a value head.
    pub v_head_dim: usize,
    /// Factor on scores.
    pub scale: f32,
    /// Norm of both latents.
    pub norm: NormKind,
    /// Whether the projections to latents and `o_proj` have biases.
    pub bias: Bias,
    /// Position embedding of the rotated parts, of heads of `rope_dim` values.
    pub rope: Option<Arc<RotaryEmbedding>>,
}

/// Where queries come from.
#[derive(Debug)]
enum Queries<B: Backend> {
    /// `q_proj`.
    Input(Linear<B>),
    /// `q_a_proj`, `q_a_layernorm`, `q_b_proj`.
    Latent(Linear<B>, Norm<B>, Linear<B>),
}

/// Multi-head latent attention.
#[derive(Debug)]
pub struct Mla<B: Backend> {
    /// To all heads' parts that are not rotated, then all that are.
    queries: Queries<B>,
    kv_a: Linear<B>,
    kv_norm: Norm<B>,
    /// `W_kᵀ` of each head, `[kv_lora_rank, nope_dim]`.
    absorb: B::Weight,
    /// `W_v` of each head, `[v_head_dim, kv_lora_rank]`.
    expand: B::Weight,
    o: Linear<B>,
    params: AttnParams,
    spec: MlaSpec,
}

impl<B: Experts> Mla<B> {
    /// Loads `q_proj`, or `q_a_proj`, `q_a_layernorm` and `q_b_proj`; `kv_a_proj_with_mqa`, `kv_a_layernorm`,
    /// `kv_b_proj` (or mlx-lm's `embed_q` and `unembed_out`), and `o_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: MlaSpec) -> Result<Self> {
        let (dim, rank) = (spec.dim, spec.kv_lora_rank);
        let queries = match spec.q_lora_rank {
            None => Queries::Input(spec.by_parts(w, "q_proj", dim)?),
            Some(q_rank) => Queries::Latent(
                Linear::load(w, &[("q_a_proj", q_rank)], dim, spec.bias)?,
                w.norm("q_a_layernorm", q_rank, spec.norm)?,
                spec.by_parts(w, "q_b_proj", q_rank)?,
            ),
        };
        let [absorb, expand] = spec.heads(w)?;
        let kv = [("kv_a_proj_with_mqa", rank + spec.rope_dim)];
        Ok(Self {
            queries,
            kv_a: Linear::load(w, &kv, dim, spec.bias)?,
            kv_norm: w.norm("kv_a_layernorm", rank, spec.norm)?,
            absorb,
            expand,
            o: Linear::load(w, &[("o_proj", dim)], spec.heads * spec.v_head_dim, spec.bias)?,
            params: AttnParams {
                v_head_dim: rank,
                scale: spec.scale,
                ..AttnParams::new(spec.heads, 1, rank + spec.rope_dim)
            },
            spec,
        })
    }

    /// Appends the latents of `x: [t, dim]` and their rotated parts.
    fn append(
        &self,
        be: &B,
        x: &B::Tensor,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<()> {
        let MlaSpec { kv_lora_rank: rank, rope_dim, .. } = self.spec;
        let kv = self.kv_a.forward(be, Input::Rows(x), None)?;
        let [latent, turned] = be.split_cols(kv, [rank, rope_dim])?;
        let latent = self.kv_norm.forward(be, &latent)?;
        let turned = self.turn(be, turned, pass.batch)?;
        let keys = be.join_heads(&latent, &turned, 1)?;
        let keys = Keys { x: &keys, rope: None };
        for span in pass.batch.spans() {
            caches[span.sequence].layer(pass.slot)?.append(be, keys, &latent, span.rows.clone())?;
        }
        Ok(())
    }

    fn turn(&self, be: &B, x: B::Tensor, batch: &Batch) -> Result<B::Tensor> {
        match &self.spec.rope {
            Some(rope) => Ok(be.rope(x, &rope.at(batch.rope_len()), batch)?),
            None => Ok(x),
        }
    }

    /// What the queries of `x: [t, dim]`, the rows of `batch`, see: `[t, heads * v_head_dim]`.
    fn attend(
        &self,
        be: &B,
        x: &B::Tensor,
        (slot, batch): (usize, &Batch),
        caches: &[SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let s = &self.spec;
        let q = match &self.queries {
            Queries::Input(q) => q.forward(be, Input::Rows(x), None)?,
            Queries::Latent(a, norm, b) => {
                let latent = a.forward(be, Input::Rows(x), None)?;
                b.forward(be, norm.of(&latent), None)?
            }
        };
        let [plain, turned] = be.split_cols(q, [s.heads * s.nope_dim, s.heads * s.rope_dim])?;
        let absorbed = be.linear_heads(&plain, &self.absorb)?;
        let q = be.join_heads(&absorbed, &self.turn(be, turned, batch)?, s.heads)?;
        let views = batch
            .spans()
            .iter()
            .map(|span| caches[span.sequence].view(slot, span.rows.clone()))
            .collect::<Result<SmallVec<[_; 4]>, _>>()?;
        let seen = be.attention(&q, &views, &self.params, None)?;
        Ok(be.linear_heads(&seen, &self.expand)?)
    }
}

impl MlaSpec {
    /// `{name}.weight: [heads * (nope_dim + rope_dim), in]` with its rows in another order: all heads' parts that are not
    /// rotated, then all that are.
    fn by_parts<B: Backend>(&self, w: &Weights<'_, B>, name: &str, inp: usize) -> Result<Linear<B>> {
        let (nope, head) = (self.nope_dim, self.nope_dim + self.rope_dim);
        let raw = w.at(name).raw("weight", &[self.heads * head, inp])?;
        let part = |start: usize, len: usize| {
            let rows = (0..self.heads * len).map(move |i| i / len * head + start + i % len);
            raw.take_rows(rows)
        };
        Linear::prepared(w, &[part(0, nope), part(nope, self.rope_dim)])
    }

    /// `W_kᵀ` and `W_v` of each head.
    fn heads<B: Experts>(&self, w: &Weights<'_, B>) -> Result<[B::Weight; 2]> {
        let Self { heads, kv_lora_rank: rank, nope_dim: nope, v_head_dim: v, .. } = *self;
        let (mut absorb, mut expand) = (Vec::new(), Vec::new());
        // The smaller of the two is asked for: a look may convert.
        if !w.at("embed_q").has("weight") {
            let raw = w.at("kv_b_proj").raw("weight", &[heads * (nope + v), rank])?;
            for head in 0..heads {
                let at = head * (nope + v);
                let turned = transposed(&raw.rows_range(at..at + nope));
                let quant = |source| Error::Quant { name: w.name("kv_b_proj.weight"), source };
                absorb.push(w.prepare(&[turned.map_err(quant)?])?);
                expand.push(w.prepare(&[raw.rows_range(at + nope..at + nope + v)])?);
            }
        } else {
            let to = w.at("embed_q").raw("weight", &[heads, rank, nope])?;
            let from = w.at("unembed_out").raw("weight", &[heads, v, rank])?;
            for head in 0..heads {
                absorb.push(w.prepare(&[to.rows_range(head * rank..(head + 1) * rank)])?);
                expand.push(w.prepare(&[from.rows_range(head * v..(head + 1) * v)])?);
            }
        }
        Ok([w.backend().stack(absorb)?, w.backend().stack(expand)?])
    }
}

/// `raw: [n, d]` as `[d, n]`: plain values in their type, others decoded.
pub(crate) fn transposed(raw: &RawTensor<'_>) -> rillm_quant::Result<RawTensor<'static>> {
    let (n, d) = (raw.rows(), raw.cols());
    let Format::Float(t) = raw.format else {
        let values = raw.decode()?;
        let turned: Vec<f32> = (0..d * n).map(|i| values[i % n * d + i / n]).collect();
        return RawTensor::from_f32(vec![d, n], &turned);
    };
    let mut bytes = Vec::with_capacity(raw.codes.len());
    for i in 0..d * n {
        let at = (i % n * d + i / n) * t.bytes();
        bytes.extend_from_slice(&raw.codes[at..at + t.bytes()]);
    }
    RawTensor::new(raw.format, vec![d, n], [Cow::Owned(bytes), Cow::Borrowed(&[]), Cow::Borrowed(&[])])
}

impl<B: Experts> Mixer<B> for Mla<B> {
    fn cache(&self) -> CacheKind {
        CacheKind::Dense
    }

    fn mix(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let x = x.rows(be)?;
        self.append(be, &x, pass, caches)?;
        match pass.tail {
            Some(tail) => self.attend(be, &be.take_rows(&x, &tail.rows)?, (pass.slot, &tail.batch), caches),
            None => self.attend(be, &x, (pass.slot, pass.batch), caches),
        }
    }

    fn absorb(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<()> {
        self.append(be, &x.rows(be)?, pass, caches)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.o.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        let queries = match &self.queries {
            Queries::Input(q) => q.bytes(be),
            Queries::Latent(a, _, b) => a.bytes(be) + b.bytes(be),
        };
        let heads = be.weight_bytes(&self.absorb) + be.weight_bytes(&self.expand);
        queries + self.kv_a.bytes(be) + heads + self.o.bytes(be)
    }

    fn rope(&self) -> Option<&RotaryEmbedding> {
        self.spec.rope.as_deref()
    }
}
