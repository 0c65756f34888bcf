//! Gemma 3n's decoder: streams of hidden states around attention, a learned residual and a sparse feed-forward layer.

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_nn::{
    Attention, CausalLm, Embedding, Linear, Mixer, Mlp, MlpSpec, Norm, Pass, PerLayer, PerLayerGate, Result,
    Weights,
};
use rillm_tensor_core::{Backend, Batch, Ids, Input};

use super::Spec;
use super::altup::{AltUp, Laurel, match_magnitude};

/// A loaded model.
#[derive(Debug)]
pub(super) struct Model<B: Backend> {
    embed: Embedding<B>,
    per_layer: PerLayer<B>,
    /// From the embedding to the other streams, and back.
    project: Vec<Linear<B>>,
    unembed: Vec<Linear<B>>,
    layers: Vec<Layer<B>>,
    norm: Norm<B>,
    head: Option<Linear<B>>,
    spec: Spec,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    altup: AltUp<B>,
    laurel: Laurel<B>,
    attn_norm: Norm<B>,
    attn: Attention<B>,
    attn_post_norm: Norm<B>,
    mlp_norm: Norm<B>,
    mlp: Mlp<B>,
    mlp_post_norm: Norm<B>,
    gate: PerLayerGate<B>,
    gate_post_norm: Norm<B>,
    cutoff: Option<f32>,
    /// The cache that it reads.
    slot: usize,
}

impl<B: Backend> Model<B> {
    pub(super) fn load(w: &Weights<'_, B>, spec: Spec) -> Result<Self> {
        let (m, d) = (w.at("model"), spec.dim);
        let others = |name: &str| {
            let w = m.at(name);
            (0..spec.streams - 1).map(|i| w.linear(&i.to_string(), d, d)).collect::<Result<Vec<_>>>()
        };
        let layers = (0..spec.layers.len()).map(|i| Layer::load(&m.at("layers").at(i), &spec, i));
        Ok(Self {
            embed: Embedding::load(&m.at("embed_tokens"), spec.vocab, d)?,
            per_layer: PerLayer::load(&m, spec.per_layer)?,
            project: others("altup_projections")?,
            unembed: others("altup_unembed_projections")?,
            layers: layers.collect::<Result<_>>()?,
            norm: m.norm("norm", d, spec.norm)?,
            head: if spec.tied { None } else { Some(w.linear("lm_head", spec.vocab, d)?) },
            spec,
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(w: &Weights<'_, B>, spec: &Spec, i: usize) -> Result<Self> {
        let layer = &spec.layers[i];
        let norm = |name| w.norm(name, spec.dim, spec.norm);
        let (dim, hidden, act) = (spec.dim, layer.hidden, spec.act);
        let mlp = MlpSpec::new([dim, hidden], act);
        let source = layer.shares.unwrap_or(i);
        Ok(Self {
            altup: AltUp::load(&w.at("altup"), spec)?,
            laurel: Laurel::load(&w.at("laurel"), dim, spec.laurel_rank, spec.norm)?,
            attn_norm: norm("input_layernorm")?,
            attn: Attention::load(&w.at("self_attn"), layer.attn.clone())?,
            attn_post_norm: norm("post_attention_layernorm")?,
            mlp_norm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::load(&w.at("mlp"), mlp)?,
            mlp_post_norm: norm("post_feedforward_layernorm")?,
            gate: PerLayerGate::load(w, spec.per_layer, i)?,
            gate_post_norm: norm("post_per_layer_input_norm")?,
            cutoff: layer.cutoff,
            slot: spec.layers[..source].iter().filter(|l| l.shares.is_none()).count(),
        })
    }

    fn forward(
        &self,
        be: &B,
        streams: &[B::Tensor],
        active: usize,
        (batch, per_layer): (&Batch, &B::Tensor),
        caches: &mut [SequenceCache<B>],
    ) -> Result<Vec<B::Tensor>> {
        let predictions = self.altup.predict(be, streams)?;
        let pass = Pass { per_layer: Some(per_layer), ..Pass::new(self.slot, batch) };
        let x = predictions[active].clone();
        let normed = self.attn_norm.forward(be, &x)?;
        let laurel = self.laurel.forward(be, &normed)?;
        let h = self.attn.mix(be, Input::Rows(&normed), &pass, caches)?;
        let y = self.attn_post_norm.forward(be, &self.attn.output(be, h, None)?)?;
        let x = be.add(be.add(y, &x)?, &laurel)?;
        let x = be.scale(x, std::f32::consts::FRAC_1_SQRT_2)?;
        let inner = self.mlp_norm.of(&x);
        let h = match self.cutoff {
            Some(deviations) => close_gates(be, &self.mlp.gates(be, inner)?, deviations)?,
            None => self.mlp.mix(be, inner, &pass, caches)?,
        };
        let y = self.mlp_post_norm.forward(be, &self.mlp.output(be, h, None)?)?;
        let mut streams = self.altup.correct(be, predictions, &be.add(y, &x)?)?;
        let first = self.altup.scaled(be, streams[active].clone())?;
        let h = self.gate.mix(be, Input::Rows(&first), &pass, caches)?;
        let y = self.gate_post_norm.forward(be, &self.gate.output(be, h, None)?)?;
        for stream in streams.iter_mut().skip(1) {
            *stream = be.add(stream.clone(), &y)?;
        }
        Ok(streams)
    }

    fn bytes(&self, be: &B) -> usize {
        let layer = self.attn.bytes(be) + self.mlp.bytes(be) + self.gate.bytes(be);
        layer + self.altup.bytes(be) + self.laurel.bytes(be)
    }
}

/// `max(gate - (mean + deviations * standard deviation of its row), 0)` in `gate_up: [t, 2 * hidden]`.
fn close_gates<B: Backend>(be: &B, gate_up: &B::Tensor, deviations: f32) -> Result<B::Tensor> {
    let ([t, cols], mut values) = (be.shape(gate_up), Vec::new());
    be.read(gate_up, &mut values)?;
    for row in values.chunks_exact_mut(cols.max(1)) {
        let (gate, _) = row.split_at_mut(cols / 2);
        let n = gate.len() as f64;
        let mean = gate.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let var = gate.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        let cutoff = (mean + f64::from(deviations) * var.sqrt()) as f32;
        gate.iter_mut().for_each(|x| *x = (*x - cutoff).max(0.0));
    }
    Ok(be.upload(t, cols, &values)?)
}

impl<B: Backend> CausalLm<B> for Model<B> {
    fn vocab(&self) -> usize {
        self.spec.vocab
    }

    fn context(&self) -> Option<usize> {
        Some(self.spec.context)
    }

    fn caches(&self) -> Vec<CacheKind> {
        self.layers.iter().map(|l| l.attn.cache()).filter(|kind| *kind != CacheKind::None).collect()
    }

    fn rope_set(&self, len: usize) -> usize {
        self.layers.iter().filter_map(|l| l.attn.rope()).map(|r| r.set(len)).max().unwrap_or(0)
    }

    fn weight_bytes(&self, be: &B) -> usize {
        let layers: usize = self.layers.iter().map(|l| l.bytes(be)).sum();
        let streams: usize = self.project.iter().chain(&self.unembed).map(|l| l.bytes(be)).sum();
        let head = self.head.as_ref().map_or_else(|| self.embed.bytes(be), |h| h.bytes(be));
        layers + streams + self.per_layer.bytes(be) + head
    }

    fn forward(
        &self,
        be: &B,
        ids: Ids<'_, B>,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
        logits_of: &[usize],
    ) -> Result<Option<B::Tensor>> {
        if matches!(ids, Ids::Device(_)) && !self.per_layer.covers(self.spec.vocab) {
            return Ok(None);
        }
        let x = be.scale(self.embed.forward(be, ids)?, (self.spec.dim as f32).sqrt())?;
        let per_layer = self.per_layer.forward(be, ids, &x)?;
        let mut streams = vec![x];
        for project in &self.project {
            let y = project.forward(be, Input::Rows(&streams[0]), None)?;
            streams.push(match_magnitude(be, y, &streams[0])?);
        }
        for layer in &self.layers {
            streams = layer.forward(be, &streams, self.spec.active, (batch, &per_layer), caches)?;
        }
        if logits_of.is_empty() {
            return Ok(None);
        }
        for stream in &mut streams {
            *stream = be.take_rows(stream, logits_of)?;
        }
        let mut sum = streams[0].clone();
        for (unembed, stream) in self.unembed.iter().zip(&streams[1..]) {
            let y = unembed.forward(be, Input::Rows(stream), None)?;
            sum = be.add(match_magnitude(be, y, &streams[0])?, &sum)?;
        }
        let x = be.scale(sum, 1.0 / self.spec.streams as f32)?;
        let logits = match &self.head {
            Some(head) => head.forward(be, self.norm.of(&x), None)?,
            None => self.embed.as_head(be, self.norm.of(&x))?,
        };
        Ok(Some(match self.spec.softcap {
            Some(cap) => be.softcap(logits, cap)?,
            None => logits,
        }))
    }
}
