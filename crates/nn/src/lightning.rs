//! Lightning attention: linear attention whose heads forget at constant rates (Qin et al. 2024), normalised and gated.

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, LinearAttention, Recurrent, Rule};

use crate::linear::Bias;
use crate::recurrent::{STATE, keep, needed, spans};
use crate::{Linear, Mixer, Norm, NormKind, Pass, Result, Weights};

/// Geometry of a [`Lightning`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LightningSpec {
    /// Width of the model.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// What queries, keys and values go through.
    pub act: Activation,
    /// The norm of the result.
    pub norm: NormKind,
    /// The number of the layer, and how many there are: upper layers forget more slowly.
    pub at: [usize; 2],
}

impl LightningSpec {
    /// What is left of each head's state after a token: `exp(-2^(-8 (h + 1) / heads) (1 - l / (L - 1)))`, with small
    /// numbers where transformers has them.
    fn decays(&self) -> Vec<f32> {
        let [layer, layers] = self.at.map(|n| n as f64);
        let factor = 1.0 - layer / (layers - 1.0 + 1e-5) + 1e-5;
        let rate = |h: usize| (-8.0 / self.heads as f64 * (h + 1) as f64).exp2() * factor;
        (0..self.heads).map(|h| (-rate(h)).exp() as f32).collect()
    }
}

/// `out_proj(sigmoid(output_gate(x)) * norm(attention(act(qkv_proj(x)))))`.
#[derive(Debug)]
pub struct Lightning<B: Recurrent> {
    in_proj: Linear<B>,
    decay: B::Tensor,
    norm: Norm<B>,
    out_proj: Linear<B>,
    spec: LightningSpec,
}

impl<B: Recurrent> Lightning<B> {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `output_gate`, `norm` and `out_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: LightningSpec) -> Result<Self> {
        let width = spec.heads * spec.head_dim;
        let parts = ["q_proj", "k_proj", "v_proj", "output_gate"].map(|name| (name, width));
        Ok(Self {
            in_proj: Linear::load(w, &parts, spec.dim, Bias::None)?,
            decay: w.backend().upload(1, spec.heads, &spec.decays())?,
            norm: w.norm("norm", width, spec.norm)?,
            out_proj: Linear::load(w, &[("out_proj", spec.dim)], width, Bias::None)?,
            spec,
        })
    }
}

impl<B: Recurrent> Mixer<B> for Lightning<B> {
    fn cache(&self) -> CacheKind {
        STATE
    }

    fn mix(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        caches: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        let (heads, width) = (self.spec.heads, self.spec.heads * self.spec.head_dim);
        let [qkv, gate] = be.split_cols(self.in_proj.forward(be, x, None)?, [3 * width, width])?;
        let [q, k, v] = be.split_cols(be.activate(self.spec.act, qkv)?, [width; 3])?;
        let rule = Rule::Constant { decay: &self.decay };
        let p = LinearAttention { q: &q, k: &k, v: &v, heads, key_heads: heads, rule };
        let (y, state) = be.linear_attention(&p, &spans(pass, caches, 0)?)?;
        keep(pass, caches, [state])?;
        let [gate, y] = needed(be, pass, [gate, y])?;
        Ok(be.gate(Activation::Sigmoid, gate, &self.norm.forward(be, &y)?)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.in_proj.bytes(be) + self.out_proj.bytes(be)
    }
}
