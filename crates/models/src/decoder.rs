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
        // The largest first: while a matrix is packed it is in memory as stored, too.
        let embed = Embedding::load(&m.at("embed_tokens"), spec.vocab, d)?;
        let head = if spec.tied { None } else { Some(w.linear("lm_head", spec.vocab, d)?) };
        let blocks = spec.layers.iter().enumerate();
        let blocks = blocks.map(|(i, l)| Block::load(&m.at("layers").at(i), d, l)).collect::<Result<_>>()?;
        Ok(Self {
            embed,
            positions: match spec.learned_positions {
                Some(n) => Some(Embedding::load(&m.at("embed_positions"), n, d)?),
                None => None,
            },
            blocks,
            norm: m.norm("norm", d, spec.norm)?,
            head,
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
        let tail = Tail::of(batch, logits_of);
        let (mut queries, mut wanted) = (batch, logits_of);
        for (i, b) in self.blocks.iter().enumerate() {
            let mut q = b.attn.cache(be, b.attn_norm.of(&x), i, batch, caches)?;
            // When the last keys and values are cached, only rows that the head needs go on.
            if i + 1 == self.blocks.len() {
                if logits_of.is_empty() {
                    break;
                }
                if let Some(tail) = &tail {
                    (q, x) = (be.take_rows(&q, &tail.rows)?, be.take_rows(&x, &tail.rows)?);
                    (queries, wanted) = (&tail.batch, &tail.wanted);
                }
            }
            let y = b.attn.attend(be, q, i, queries, caches)?;
            x = match &b.attn_post_norm {
                None => b.attn.output(be, &y, Some(x))?,
                Some(norm) => be.add(x, &norm.forward(be, &b.attn.output(be, &y, None)?)?)?,
            };
            let h = b.mlp.up(be, b.mlp_norm.of(&x))?;
            x = match &b.mlp_post_norm {
                None => b.mlp.down(be, h, Some(x))?,
                Some(norm) => be.add(x, &norm.forward(be, &b.mlp.down(be, h, None)?)?)?,
            };
        }
        if logits_of.is_empty() {
            return Ok(None);
        }
        if wanted.len() < queries.rows() {
            x = be.take_rows(&x, wanted)?;
        }
        let x = self.norm.of(&x);
        let logits = match &self.head {
            Some(head) => head.forward(be, x, None)?,
            None => self.embed.as_head(be, x)?,
        };
        Ok(Some(match self.spec.logit_softcap {
            Some(cap) => be.softcap(logits, cap)?,
            None => logits,
        }))
    }
}

/// What the last layer computes once its keys and values are cached: of each span the rows from the first on that
/// the head needs.
#[derive(Debug, Default)]
struct Tail {
    /// Rows of the whole batch.
    rows: Vec<usize>,
    /// These rows as a batch.
    batch: Batch,
    /// Where in it the rows are that the head needs.
    wanted: Vec<usize>,
}

impl Tail {
    /// `None` if nothing can be left out.
    fn of(batch: &Batch, logits_of: &[usize]) -> Option<Self> {
        if logits_of.len() >= batch.rows() {
            return None;
        }
        let mut tail = Self::default();
        tail.batch.reset(batch.rope_len());
        for span in batch.spans() {
            let needed = logits_of.iter().filter(|row| span.rows.contains(row));
            if let Some(&first) = needed.min() {
                let (start, t) = (span.start + first - span.rows.start, span.rows.end - first);
                tail.batch.push(span.sequence, start, t);
                tail.rows.extend(first..span.rows.end);
            }
        }
        // A row that is not in the batch stays one that does not exist.
        tail.wanted.extend(logits_of.iter().map(|row| tail.rows.binary_search(row).unwrap_or(*row)));
        Some(tail)
    }
}
