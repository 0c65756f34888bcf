//! Per-layer embeddings: what a token brings to every layer besides its embedding (gemma3n, gemma4), and the branch
//! through which a layer takes it in.

use rillm_kvcache::SequenceCache;
use rillm_tensor_core::{Activation, Backend, Ids, Input};

use crate::{Embedding, Linear, Mixer, Norm, NormKind, Pass, Result, Weights};

/// Geometry of per-layer embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerLayerSpec {
    /// Width of the model.
    pub dim: usize,
    /// Tokens that have one; a model may have more tokens than that only if these never occur.
    pub vocab: usize,
    /// Layers.
    pub layers: usize,
    /// Values for each layer.
    pub width: usize,
    /// Nonlinearity of the gate.
    pub act: Activation,
    /// The norm of what the embedding is projected to, over the values of each layer.
    pub norm: NormKind,
}

/// `(norm(x Pᵀ / sqrt(dim)) + sqrt(width) E[id]) / sqrt(2)` for every layer at once, `x` being the embedding.
#[derive(Debug)]
pub struct PerLayer<B: Backend> {
    embed: Embedding<B>,
    project: Linear<B>,
    norm: Norm<B>,
    spec: PerLayerSpec,
}

impl<B: Backend> PerLayer<B> {
    /// Loads `embed_tokens_per_layer`, `per_layer_model_projection` and `per_layer_projection_norm`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: PerLayerSpec) -> Result<Self> {
        let cols = spec.layers.saturating_mul(spec.width);
        Ok(Self {
            embed: Embedding::load(&w.at("embed_tokens_per_layer"), spec.vocab, cols)?,
            project: w.linear("per_layer_model_projection", cols, spec.dim)?,
            norm: w.norm("per_layer_projection_norm", spec.width, spec.norm)?,
            spec,
        })
    }

    /// `[t, layers * width]` of tokens `ids` with embeddings `x: [t, dim]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn forward(&self, be: &B, ids: Ids<'_, B>, x: &B::Tensor) -> Result<B::Tensor> {
        let factor = |n: usize| (n as f32).sqrt();
        // Tokens that stand for images and sounds have no row: the first is taken.
        let known: Vec<u32>;
        let ids = match ids {
            Ids::Host(ids) if ids.iter().any(|id| *id as usize >= self.spec.vocab) => {
                known = ids.iter().map(|id| if (*id as usize) < self.spec.vocab { *id } else { 0 }).collect();
                Ids::Host(&known)
            }
            ids => ids,
        };
        let tokens = be.scale(self.embed.forward(be, ids)?, factor(self.spec.width))?;
        let y = be.scale(self.project.forward(be, Input::Rows(x), None)?, 1.0 / factor(self.spec.dim))?;
        let y = self.norm.forward(be, &y)?;
        Ok(be.scale(be.add(y, &tokens)?, std::f32::consts::FRAC_1_SQRT_2)?)
    }

    /// Whether each of `vocab` tokens has a row. Ids that only the backend knows can be looked up only then.
    pub fn covers(&self, vocab: usize) -> bool {
        self.spec.vocab >= vocab
    }

    /// Bytes of weights that a pass reads; gathered rows not counted.
    pub fn bytes(&self, be: &B) -> usize {
        self.project.bytes(be)
    }
}

/// `per_layer_projection(act(per_layer_input_gate(x)) * input)`, `input` being this layer's values.
#[derive(Debug)]
pub struct PerLayerGate<B: Backend> {
    gate: Linear<B>,
    project: Linear<B>,
    spec: PerLayerSpec,
    layer: usize,
}

impl<B: Backend> PerLayerGate<B> {
    /// Loads `per_layer_input_gate` and `per_layer_projection` of layer `layer`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: PerLayerSpec, layer: usize) -> Result<Self> {
        Ok(Self {
            gate: w.linear("per_layer_input_gate", spec.width, spec.dim)?,
            project: w.linear("per_layer_projection", spec.dim, spec.width)?,
            spec,
            layer,
        })
    }
}

impl<B: Backend> Mixer<B> for PerLayerGate<B> {
    fn mix(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        _: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let gate = self.gate.forward(be, x, None)?;
        let Some(all) = pass.per_layer else { return Ok(gate) };
        let before = self.layer * self.spec.width;
        let after = be.shape(all)[1].saturating_sub(before + self.spec.width);
        let [_, input, _] = be.split_cols(all.clone(), [before, self.spec.width, after])?;
        Ok(be.gate(self.spec.act, gate, &input)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.project.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.gate.bytes(be) + self.project.bytes(be)
    }
}
