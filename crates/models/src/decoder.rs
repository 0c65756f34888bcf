//! The decoder that most families share, driven by a list of per-layer descriptions. Names no family.

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_nn::{
    Attention, AttentionSpec, CausalLm, Embedding, Linear, Mlp, MlpSpec, Norm, NormKind, Result, Weights,
};
use rillm_tensor_core::{Backend, Batch, Ids};

/// A decoder, stated layer by layer.
#[derive(Clone, Debug)]
pub struct DecoderSpec {
    /// Width of the model.
    pub dim: usize,
    /// Tokens.
    pub vocab: usize,
    /// Positions the model was made for; `None` if its rope stretches without limit.
    pub context: Option<usize>,
    /// Rows of a table of learned positions, added to the embedding.
    pub learned_positions: Option<usize>,
    /// Factor on the embedding.
    pub embed_scale: Option<f32>,
    /// Layers in order.
    pub layers: Vec<LayerSpec>,
    /// The norm before the head.
    pub norm: NormKind,
    /// Whether the embedding table is the head.
    pub tied: bool,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
}

/// One decoder layer.
#[derive(Clone, Debug)]
pub struct LayerSpec {
    /// Attention.
    pub attn: AttentionSpec,
    /// Feed-forward layer.
    pub mlp: MlpSpec,
    /// Which norm.
    pub norm: NormKind,
    /// Where norms are.
    pub norms: Norms,
}

impl LayerSpec {
    /// What the layer keeps of a sequence.
    fn cache(&self) -> CacheKind {
        match self.attn.params.window {
            Some(window) => CacheKind::Rotating { window },
            None => CacheKind::Dense,
        }
    }
}

/// Where the norms of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the feed-forward layer.
    Pre,
    /// Before and after each (gemma2).
    PreAndPost,
}

#[derive(Debug)]
struct Block<B: Backend> {
    attn_norm: Norm<B>,
    attn: Attention<B>,
    attn_post_norm: Option<Norm<B>>,
    mlp_norm: Norm<B>,
    mlp: Mlp<B>,
    mlp_post_norm: Option<Norm<B>>,
}

/// A loaded decoder.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    embed: Embedding<B>,
    positions: Option<Embedding<B>>,
    blocks: Vec<Block<B>>,
    norm: Norm<B>,
    head: Option<Linear<B>>,
    spec: DecoderSpec,
}

impl<B: Backend> Decoder<B> {
    /// Loads the parameters that `spec` calls for, under the names that Llama's checkpoints have.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: DecoderSpec) -> Result<Self> {
        let (m, d) = (w.at("model"), spec.dim);
        let blocks = spec.layers.iter().enumerate();
        let blocks = blocks.map(|(i, l)| Block::load(&m.at("layers").at(i), d, l)).collect::<Result<_>>()?;
        Ok(Self {
            embed: Embedding::load(&m.at("embed_tokens"), spec.vocab, d)?,
            positions: match spec.learned_positions {
                Some(n) => Some(Embedding::load(&m.at("embed_positions"), n, d)?),
                None => None,
            },
            blocks,
            norm: m.norm("norm", d, spec.norm)?,
            head: if spec.tied { None } else { Some(w.linear("lm_head", spec.vocab, d)?) },
            spec,
        })
    }

    fn embed(&self, be: &B, ids: Ids<'_, B>, batch: &Batch) -> Result<B::Tensor> {
        let mut x = self.embed.forward(be, ids)?;
        if let Some(positions) = &self.positions {
            x = be.add(x, &positions.forward(be, Ids::Host(batch.positions()))?)?;
        }
        match self.spec.embed_scale {
            Some(factor) => Ok(be.scale(x, factor)?),
            None => Ok(x),
        }
    }
}

impl<B: Backend> Block<B> {
    fn load(w: &Weights<'_, B>, dim: usize, spec: &LayerSpec) -> Result<Self> {
        let norm = |name| w.norm(name, dim, spec.norm);
        let (attn_post_norm, mlp_norm, mlp_post_norm) = match spec.norms {
            Norms::Pre => (None, norm("post_attention_layernorm")?, None),
            Norms::PreAndPost => (
                Some(norm("post_attention_layernorm")?),
                norm("pre_feedforward_layernorm")?,
                Some(norm("post_feedforward_layernorm")?),
            ),
        };
        Ok(Self {
            attn_norm: norm("input_layernorm")?,
            attn: Attention::load(&w.at("self_attn"), spec.attn.clone())?,
            attn_post_norm,
            mlp_norm,
            mlp: Mlp::load(&w.at("mlp"), spec.mlp)?,
            mlp_post_norm,
        })
    }
}

impl<B: Backend> CausalLm<B> for Decoder<B> {
    fn vocab(&self) -> usize {
        self.spec.vocab
    }

    fn context(&self) -> Option<usize> {
        self.spec.context
    }

    fn max_positions(&self) -> Option<usize> {
        self.spec.learned_positions
    }

    fn caches(&self) -> Vec<CacheKind> {
        self.spec.layers.iter().map(LayerSpec::cache).collect()
    }

    fn rope_set(&self, len: usize) -> usize {
        self.blocks.iter().filter_map(|b| b.attn.rope()).map(|r| r.set(len)).max().unwrap_or(0)
    }

    fn weight_bytes(&self, be: &B) -> usize {
        let blocks: usize = self.blocks.iter().map(|b| b.attn.bytes(be) + b.mlp.bytes(be)).sum();
        blocks + self.head.as_ref().map_or_else(|| self.embed.bytes(be), |h| h.bytes(be))
    }

    fn forward(
        &self,
        be: &B,
        ids: Ids<'_, B>,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
        logits_of: &[usize],
    ) -> Result<Option<B::Tensor>> {
        let mut x = self.embed(be, ids, batch)?;
        // The residual and what the last layer adds to it meet in the next norm, in one operation.
        let mut pending: Option<B::Tensor> = None;
        for (i, b) in self.blocks.iter().enumerate() {
            let (h, n) = match pending.take() {
                Some(y) => b.attn_norm.forward_add(be, x, &y)?,
                None => {
                    let n = b.attn_norm.forward(be, &x)?;
                    (x, n)
                }
            };
            let mut a = b.attn.forward(be, &n, i, batch, caches)?;
            if let Some(norm) = &b.attn_post_norm {
                a = norm.forward(be, &a)?;
            }
            let (h, n) = b.mlp_norm.forward_add(be, h, &a)?;
            let mut y = b.mlp.forward(be, &n)?;
            if let Some(norm) = &b.mlp_post_norm {
                y = norm.forward(be, &y)?;
            }
            (x, pending) = (h, Some(y));
        }
        if logits_of.is_empty() {
            return Ok(None);
        }
        // Only the rows that are asked for go on.
        let pick = |x: B::Tensor| match logits_of.len() < batch.rows() {
            true => be.take_rows(&x, logits_of),
            false => Ok(x),
        };
        let x = match pending {
            Some(y) => self.norm.forward_add(be, pick(x)?, &pick(y)?)?.1,
            None => self.norm.forward(be, &pick(x)?)?,
        };
        let logits = match &self.head {
            Some(head) => head.forward(be, &x)?,
            None => self.embed.as_head(be, &x)?,
        };
        Ok(Some(match self.spec.logit_softcap {
            Some(cap) => be.softcap(logits, cap)?,
            None => logits,
        }))
    }
}
