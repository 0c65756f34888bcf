//! The decoder that most families share, driven by a list of residual branches. Names no family.

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_nn::{CausalLm, Embedding, Linear, Mixer, Norm, Pass, Result, Tail, Weights};
use rillm_tensor_core::{Backend, Batch, Ids, Input, Recurrent};
use smallvec::SmallVec;

use crate::{BranchSpec, DecoderSpec};

/// One branch of a residual layer.
#[derive(Debug)]
struct Branch<B: Backend> {
    norm: Option<Norm<B>>,
    mixer: Box<dyn Mixer<B>>,
    post_norm: Option<Norm<B>>,
    factor: Option<f32>,
    /// Its cache, if its mixer keeps something.
    slot: Option<usize>,
}

/// A loaded decoder.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    embed: Embedding<B>,
    positions: Option<Embedding<B>>,
    /// The groups of all layers: where a layer ends makes no difference.
    groups: Vec<Vec<Branch<B>>>,
    norm: Norm<B>,
    head: Option<Linear<B>>,
    spec: DecoderSpec,
}

impl<B: Recurrent> Decoder<B> {
    /// Loads the parameters that `spec` calls for, under the names that Llama's checkpoints have.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: DecoderSpec) -> Result<Self> {
        let (m, d) = (w.at("model"), spec.dim);
        // The largest first: while a matrix is packed it is in memory as stored, too.
        let embed = Embedding::load(&m.at("embed_tokens"), spec.vocab, d)?;
        let head = match spec.head.tied {
            true => None,
            false => Some(Linear::load(w, &[("lm_head", spec.vocab)], d, spec.head.bias)?),
        };
        let mut slots = 0;
        let mut groups = Vec::new();
        for (i, layer) in spec.layers.iter().enumerate() {
            let w = m.at("layers").at(i);
            for group in &layer.0 {
                let branches = group.iter().map(|b| Branch::load(&w, d, b, &mut slots));
                groups.push(branches.collect::<Result<_>>()?);
            }
        }
        Ok(Self {
            embed,
            positions: match spec.learned_positions {
                Some(n) => Some(Embedding::load(&m.at("embed_positions"), n, d)?),
                None => None,
            },
            groups,
            norm: m.norm("norm", d, spec.norm)?,
            head,
            spec,
        })
    }

    fn branches(&self) -> impl Iterator<Item = &Branch<B>> {
        self.groups.iter().flatten()
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

    fn logits(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let x = self.norm.of(x);
        let mut logits = match &self.head {
            Some(head) => head.forward(be, x, None)?,
            None => self.embed.as_head(be, x)?,
        };
        if let Some(factor) = self.spec.head.scale {
            logits = be.scale(logits, factor)?;
        }
        Ok(match self.spec.head.softcap {
            Some(cap) => be.softcap(logits, cap)?,
            None => logits,
        })
    }
}

impl<B: Recurrent> Branch<B> {
    fn load(w: &Weights<'_, B>, dim: usize, spec: &BranchSpec, slots: &mut usize) -> Result<Self> {
        let norm = |n: Option<crate::NormSpec>| n.map(|n| w.norm(n.name, dim, n.kind)).transpose();
        let mixer = spec.mixer.load(&w.at(spec.name))?;
        let slot = (mixer.cache() != CacheKind::None).then(|| {
            *slots += 1;
            *slots - 1
        });
        Ok(Self {
            norm: norm(spec.norm)?,
            mixer,
            post_norm: norm(spec.post_norm)?,
            factor: spec.factor,
            slot,
        })
    }

    /// What the mixer reads of rows `x`.
    fn input<'a>(&'a self, x: &'a B::Tensor) -> Input<'a, B> {
        self.norm.as_ref().map_or(Input::Rows(x), |norm| norm.of(x))
    }

    fn pass<'a>(&self, batch: &'a Batch, tail: Option<&'a Tail>) -> Pass<'a> {
        Pass { slot: self.slot.unwrap_or(usize::MAX), batch, tail }
    }

    /// `x` and what the branch makes of `h`, its mixer's rows.
    fn add(&self, be: &B, h: B::Tensor, x: B::Tensor) -> Result<B::Tensor> {
        if self.post_norm.is_none() && self.factor.is_none() {
            return self.mixer.output(be, h, Some(x));
        }
        let mut y = self.mixer.output(be, h, None)?;
        if let Some(norm) = &self.post_norm {
            y = norm.forward(be, &y)?;
        }
        if let Some(factor) = self.factor {
            y = be.scale(y, factor)?;
        }
        Ok(be.add(x, &y)?)
    }
}

impl<B: Recurrent> CausalLm<B> for Decoder<B> {
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
        self.branches().map(|b| b.mixer.cache()).filter(|kind| *kind != CacheKind::None).collect()
    }

    fn rope_set(&self, len: usize) -> usize {
        self.branches().filter_map(|b| b.mixer.rope()).map(|r| r.set(len)).max().unwrap_or(0)
    }

    fn weight_bytes(&self, be: &B) -> usize {
        let mixers: usize = self.branches().map(|b| b.mixer.bytes(be)).sum();
        mixers + self.head.as_ref().map_or_else(|| self.embed.bytes(be), |h| h.bytes(be))
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
        // After the last group with a state, only rows that the head needs go on.
        let last = self.groups.iter().rposition(|g| g.iter().any(|b| b.slot.is_some())).unwrap_or(0);
        let mut rows = batch;
        for (i, group) in self.groups.iter().enumerate() {
            if i == last && logits_of.is_empty() {
                let stateful = group.iter().filter(|b| b.slot.is_some());
                for b in stateful {
                    b.mixer.absorb(be, b.input(&x), &b.pass(batch, None), caches)?;
                }
                return Ok(None);
            }
            let tail = tail.as_ref().filter(|_| i == last);
            let kept = tail.map(|tail| be.take_rows(&x, &tail.rows)).transpose()?;
            let mut mixed = SmallVec::<[_; 2]>::new();
            for b in group {
                let (x, tail) = match &kept {
                    Some(kept) if b.slot.is_none() => (kept, None),
                    _ => (&x, tail),
                };
                mixed.push(b.mixer.mix(be, b.input(x), &b.pass(rows, tail), caches)?);
            }
            if let (Some(kept), Some(tail)) = (kept, tail) {
                (x, rows) = (kept, &tail.batch);
            }
            for (b, h) in group.iter().zip(mixed) {
                x = b.add(be, h, x)?;
            }
        }
        let wanted = tail.as_ref().map_or(logits_of, |tail| &tail.wanted);
        if wanted.len() < rows.rows() {
            x = be.take_rows(&x, wanted)?;
        }
        self.logits(be, &x).map(Some)
    }
}
