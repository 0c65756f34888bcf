//! The decoder that most families share, driven by a list of residual branches. Names no family.

use std::cell::RefCell;

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_nn::{CausalLm, Embedding, Linear, Mixer, Norm, Pass, PerLayer, Result, Tail, Weights};
use rillm_tensor_core::{Backend, Batch, FullBackend, Ids, Input};
use smallvec::SmallVec;

use crate::{BranchSpec, DecoderSpec, GroupSpec, NormSpec};

/// One branch of a residual layer.
#[derive(Debug)]
struct Branch<B: Backend> {
    norm: Option<Norm<B>>,
    mixer: Box<dyn Mixer<B>>,
    post_norm: Option<Norm<B>>,
    factor: Option<f32>,
    /// The cache that it reads, its own or another's.
    slot: Option<usize>,
}

/// Branches that read the same rows.
#[derive(Debug)]
struct Group<B: Backend> {
    branches: Vec<Branch<B>>,
    /// What becomes of the rows before.
    entry: Option<Norm<B>>,
    /// Factor on what the branches are added to.
    keep: Option<f32>,
    post_norm: Option<Norm<B>>,
    /// Factor on everything afterwards.
    scalar: Option<f32>,
}

/// A loaded decoder.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    embed: Embedding<B>,
    positions: Option<Embedding<B>>,
    per_layer: Option<PerLayer<B>>,
    /// The groups of all layers: where a layer ends makes no difference.
    groups: Vec<Group<B>>,
    norm: Norm<B>,
    head: Option<Linear<B>>,
    spec: DecoderSpec,
}

impl<B: FullBackend> Decoder<B> {
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
        let mut slots = Vec::new();
        let mut groups = Vec::new();
        for (i, layer) in spec.layers.iter().enumerate() {
            let w = m.at("layers").at(i);
            for group in &layer.0 {
                groups.push(Group::load(&w, d, group, i, &mut slots)?);
            }
        }
        Ok(Self {
            embed,
            positions: match spec.learned_positions {
                Some(n) => Some(Embedding::load(&m.at("embed_positions"), n, d)?),
                None => None,
            },
            per_layer: spec.per_layer.map(|spec| PerLayer::load(&m, spec)).transpose()?,
            groups,
            norm: m.norm("norm", d, spec.norm)?,
            head,
            spec,
        })
    }

    fn branches(&self) -> impl Iterator<Item = &Branch<B>> {
        self.groups.iter().flat_map(|g| &g.branches)
    }

    /// Embeddings of `ids`, and what they bring to each layer.
    fn embed(&self, be: &B, ids: Ids<'_, B>, batch: &Batch) -> Result<(B::Tensor, Option<B::Tensor>)> {
        let mut x = self.embed.forward(be, ids)?;
        if let Some(positions) = &self.positions {
            x = be.add(x, &positions.forward(be, Ids::Host(batch.positions()))?)?;
        }
        if let Some(factor) = self.spec.embed_scale {
            x = be.scale(x, factor)?;
        }
        let per_layer = self.per_layer.as_ref().map(|p| p.forward(be, ids, &x)).transpose()?;
        Ok((x, per_layer))
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

impl<B: FullBackend> Group<B> {
    fn load(
        w: &Weights<'_, B>,
        dim: usize,
        spec: &GroupSpec,
        layer: usize,
        slots: &mut Vec<usize>,
    ) -> Result<Self> {
        let branches = spec.branches.iter().map(|b| Branch::load(w, dim, b, layer, slots));
        Ok(Self {
            branches: branches.collect::<Result<_>>()?,
            entry: load_norm(w, dim, spec.entry)?,
            keep: spec.keep,
            post_norm: load_norm(w, dim, spec.post_norm)?,
            scalar: match spec.scalar {
                Some(name) => w.opt_values(name, 1)?.and_then(|v| v.first().copied()),
                None => None,
            },
        })
    }

    /// Whether it changes what sequences keep.
    fn keeps(&self) -> bool {
        self.branches.iter().any(Branch::keeps)
    }

    /// `x` and what the branches make of `mixed`, their mixers' rows.
    fn add(&self, be: &B, mixed: SmallVec<[B::Tensor; 2]>, mut x: B::Tensor) -> Result<B::Tensor> {
        let branches = self.branches.iter().zip(mixed);
        if let Some(factor) = self.keep {
            x = be.scale(x, factor)?;
        }
        match &self.post_norm {
            None => {
                for (b, h) in branches {
                    x = b.add(be, h, Some(x))?;
                }
            }
            Some(norm) => {
                let mut sum = None;
                for (b, h) in branches {
                    sum = Some(b.add(be, h, sum)?);
                }
                if let Some(sum) = sum {
                    x = be.add(x, &norm.forward(be, &sum)?)?;
                }
            }
        }
        match self.scalar {
            Some(factor) => Ok(be.scale(x, factor)?),
            None => Ok(x),
        }
    }
}

fn load_norm<B: Backend>(w: &Weights<'_, B>, dim: usize, spec: Option<NormSpec>) -> Result<Option<Norm<B>>> {
    spec.map(|n| w.norm(n.name, dim, n.kind)).transpose()
}

impl<B: FullBackend> Branch<B> {
    /// `slots` tells the layer of every cache so far.
    fn load(
        w: &Weights<'_, B>,
        dim: usize,
        spec: &BranchSpec,
        layer: usize,
        slots: &mut Vec<usize>,
    ) -> Result<Self> {
        let scope = if spec.name.is_empty() { w } else { &w.at(spec.name) };
        let mixer = spec.mixer.load(scope, layer)?;
        let slot = match (mixer.cache(), spec.cache_of) {
            (CacheKind::None, Some(of)) => slots.iter().position(|layer| *layer == of),
            (CacheKind::None, None) => None,
            _ => {
                slots.push(layer);
                Some(slots.len() - 1)
            }
        };
        Ok(Self {
            norm: load_norm(w, dim, spec.norm)?,
            mixer,
            post_norm: load_norm(w, dim, spec.post_norm)?,
            factor: spec.factor,
            slot,
        })
    }

    fn keeps(&self) -> bool {
        self.mixer.cache() != CacheKind::None
    }

    /// What the mixer reads of rows `x`.
    fn input<'a>(&'a self, x: &'a B::Tensor) -> Input<'a, B> {
        self.norm.as_ref().map_or(Input::Rows(x), |norm| norm.of(x))
    }

    /// What the branch adds to `x`, which is nothing if `None`, of `h`, its mixer's rows.
    fn add(&self, be: &B, h: B::Tensor, x: Option<B::Tensor>) -> Result<B::Tensor> {
        if self.post_norm.is_none() && self.factor.is_none() {
            return self.mixer.output(be, h, x);
        }
        let mut y = self.mixer.output(be, h, None)?;
        if let Some(norm) = &self.post_norm {
            y = norm.forward(be, &y)?;
        }
        if let Some(factor) = self.factor {
            y = be.scale(y, factor)?;
        }
        match x {
            Some(x) => Ok(be.add(x, &y)?),
            None => Ok(y),
        }
    }
}

impl<B: FullBackend> CausalLm<B> for Decoder<B> {
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
        let per_layer = self.per_layer.as_ref().map_or(0, |p| p.bytes(be));
        mixers + per_layer + self.head.as_ref().map_or_else(|| self.embed.bytes(be), |h| h.bytes(be))
    }

    fn forward(
        &self,
        be: &B,
        ids: Ids<'_, B>,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
        logits_of: &[usize],
    ) -> Result<Option<B::Tensor>> {
        if matches!(ids, Ids::Device(_))
            && self.per_layer.as_ref().is_some_and(|p| !p.covers(self.spec.vocab))
        {
            return Ok(None);
        }
        let (mut x, mut per_layer) = self.embed(be, ids, batch)?;
        let (tail, first_values) = (Tail::of(batch, logits_of), RefCell::new(None));
        // After the last group with a state, only rows that the head needs go on.
        let last = self.groups.iter().rposition(Group::keeps).unwrap_or(0);
        let mut rows = batch;
        for (i, group) in self.groups.iter().enumerate() {
            if let Some(norm) = &group.entry {
                x = norm.forward(be, &x)?;
            }
            if i == last && logits_of.is_empty() {
                for b in group.branches.iter().filter(|b| b.keeps()) {
                    let first_values = Some(&first_values);
                    let pass = Pass { first_values, ..Pass::new(b.slot.unwrap_or(0), batch) };
                    b.mixer.absorb(be, b.input(&x), &pass, caches)?;
                }
                return Ok(None);
            }
            let tail = tail.as_ref().filter(|_| i == last);
            let kept = tail.map(|tail| be.take_rows(&x, &tail.rows)).transpose()?;
            if let (Some(all), Some(tail)) = (&per_layer, tail) {
                per_layer = Some(be.take_rows(all, &tail.rows)?);
            }
            let mut mixed = SmallVec::new();
            for b in &group.branches {
                let (x, batch, tail) = match (&kept, tail) {
                    (Some(kept), Some(tail)) if !b.keeps() => (kept, &tail.batch, None),
                    _ => (&x, rows, tail),
                };
                let (slot, per_layer) = (b.slot.unwrap_or(0), per_layer.as_ref());
                let first_values = Some(&first_values);
                let pass = Pass { slot, batch, tail, per_layer, first_values };
                mixed.push(b.mixer.mix(be, b.input(x), &pass, caches)?);
            }
            if let (Some(kept), Some(tail)) = (kept, tail) {
                (x, rows) = (kept, &tail.batch);
            }
            x = group.add(be, mixed, x)?;
        }
        let wanted = tail.as_ref().map_or(logits_of, |tail| &tail.wanted);
        if wanted.len() < rows.rows() {
            x = be.take_rows(&x, wanted)?;
        }
        self.logits(be, &x).map(Some)
    }
}
