//! The gated delta rule (Yang et al. 2024): states that forget, and correct what they hold of a key.

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, LinearAttention, Recurrent, Rule};

use crate::linear::Bias;
use crate::recurrent::{Conv, STATE, constant, decay, keep, needed, spans, vector};
use crate::{Linear, Mixer, Norm, NormKind, Pass, Result, Weights};

/// Geometry of a [`GatedDelta`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedDeltaSpec {
    /// Width of the model.
    pub dim: usize,
    /// Heads of values, each with a state.
    pub heads: usize,
    /// Heads of queries and keys; divides `heads`.
    pub key_heads: usize,
    /// Values of a query or key head.
    pub key_dim: usize,
    /// Values of a value head.
    pub value_dim: usize,
    /// Rows that the convolution sees, the row itself included.
    pub taps: usize,
    /// The norm of each head of the result.
    pub norm: NormKind,
    /// What the gate of the result goes through.
    pub act: Activation,
}

/// Added to the sum of squares of a query or key head.
pub(crate) const EPS: f32 = 1e-6;

/// Heads whose states follow the gated delta rule, behind a convolution, gated.
#[derive(Debug)]
pub struct GatedDelta<B: Recurrent> {
    in_proj: Linear<B>,
    conv: Conv<B>,
    /// Factors that make an RMSNorm an L2 norm; of queries also what scales scores.
    unit: [B::Weight; 2],
    dt_bias: B::Tensor,
    a: B::Tensor,
    norm: Norm<B>,
    out_proj: Linear<B>,
    spec: GatedDeltaSpec,
}

/// Factors that make RMSNorms of `n` values L2 norms: of queries, which are divided by `√n` besides, and of keys.
pub(crate) fn unit_norms<B: Recurrent>(w: &Weights<'_, B>, n: usize) -> Result<[B::Weight; 2]> {
    Ok([constant(w, n, 1.0 / n as f32)?, constant(w, n, 1.0 / (n as f32).sqrt())?])
}

impl<B: Recurrent> GatedDelta<B> {
    /// Loads `in_proj_q`, `in_proj_k`, `in_proj_v`, `in_proj_z`, `in_proj_b`, `in_proj_a`, `conv1d` over queries, keys
    /// and values, `A_log` and `dt_bias` (one for each head), `norm` of a head's values, and `out_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: GatedDeltaSpec) -> Result<Self> {
        let (keys, values) = (spec.key_heads * spec.key_dim, spec.heads * spec.value_dim);
        let parts = [
            ("in_proj_q", keys),
            ("in_proj_k", keys),
            ("in_proj_v", values),
            ("in_proj_z", values),
            ("in_proj_b", spec.heads),
            ("in_proj_a", spec.heads),
        ];
        let conv = [2 * keys + values, spec.taps];
        Ok(Self {
            in_proj: Linear::load(w, &parts, spec.dim, Bias::None)?,
            conv: Conv::load(&w.at("conv1d"), conv, Bias::None, Some(Activation::Silu))?,
            unit: unit_norms(w, spec.key_dim)?,
            dt_bias: vector(w, "dt_bias", spec.heads, |x| x)?,
            a: vector(w, "A_log", spec.heads, decay)?,
            norm: w.norm("norm", spec.value_dim, spec.norm)?,
            out_proj: Linear::load(w, &[("out_proj", spec.dim)], values, Bias::None)?,
            spec,
        })
    }
}

impl<B: Recurrent> Mixer<B> for GatedDelta<B> {
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
        let GatedDeltaSpec { heads, key_heads, key_dim, value_dim, .. } = self.spec;
        let (keys, values) = (key_heads * key_dim, heads * value_dim);
        let all = self.in_proj.forward(be, x, None)?;
        let [qkv, z, beta, gate] = be.split_cols(all, [2 * keys + values, values, heads, heads])?;
        let (qkv, conv) = self.conv.forward(be, &qkv, &spans(pass, caches, 0)?)?;
        let [q, k, v] = be.split_cols(qkv, [keys, keys, values])?;
        // x / sqrt(Σ x² + eps) is the root mean square norm divided by √n.
        let eps = EPS / key_dim as f32;
        let [q, k] = [be.rms_norm(&q, &self.unit[0], eps)?, be.rms_norm(&k, &self.unit[1], eps)?];
        let rule = Rule::Delta { gate: &gate, dt_bias: &self.dt_bias, a: &self.a, beta: &beta };
        let p = LinearAttention { q: &q, k: &k, v: &v, heads, key_heads, rule };
        let (y, scan) = be.linear_attention(&p, &spans(pass, caches, 1)?)?;
        keep(pass, caches, [conv, scan])?;
        let [z, y] = needed(be, pass, [z, y])?;
        Ok(be.gate(self.spec.act, z, &self.norm.forward(be, &y)?)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.in_proj.bytes(be) + self.conv.bytes(be) + self.out_proj.bytes(be)
    }
}
