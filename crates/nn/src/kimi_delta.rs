//! Kimi Delta Attention: the gated delta rule with a decay for each value of a key (Kimi Linear, 2025).

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, LinearAttention, Recurrent, Rule};

use crate::gated_delta::unit_norms;
use crate::linear::Bias;
use crate::recurrent::{Conv, STATE, decay, keep, needed, spans, vector};
use crate::{Linear, Mixer, Norm, NormKind, Pass, Result, Weights};

/// Geometry of a [`KimiDelta`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KimiDeltaSpec {
    /// Width of the model.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a head, of keys and of values.
    pub head_dim: usize,
    /// Rows that the convolutions see, the row itself included.
    pub taps: usize,
    /// The norm of each head of the result.
    pub norm: NormKind,
}

/// Heads whose states follow the delta rule, behind convolutions, gated.
#[derive(Debug)]
pub struct KimiDelta<B: Recurrent> {
    in_proj: Linear<B>,
    conv: Conv<B>,
    decay_proj: Linear<B>,
    gate_proj: Linear<B>,
    unit: [B::Weight; 2],
    dt_bias: B::Tensor,
    a: B::Tensor,
    norm: Norm<B>,
    out_proj: Linear<B>,
    spec: KimiDeltaSpec,
}

impl<B: Recurrent> KimiDelta<B> {
    /// Loads `q_proj`, `k_proj`, `v_proj` and a convolution for each (`q_conv1d`, ..), `f_a_proj`, `f_b_proj`, `g_a_proj`,
    /// `g_b_proj`, `b_proj`, `A_log` (one for each head), `dt_bias` (one for each value of a key), `o_norm` and `o_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: KimiDeltaSpec) -> Result<Self> {
        let KimiDeltaSpec { dim, heads, head_dim, taps, .. } = spec;
        let width = heads * head_dim;
        let parts = [
            ("q_proj", width),
            ("k_proj", width),
            ("v_proj", width),
            ("f_a_proj", head_dim),
            ("g_a_proj", head_dim),
            ("b_proj", heads),
        ];
        Ok(Self {
            in_proj: Linear::load(w, &parts, dim, Bias::None)?,
            conv: Conv::of_parts(
                w,
                &["q_conv1d", "k_conv1d", "v_conv1d"],
                [width, taps],
                Some(Activation::Silu),
            )?,
            decay_proj: w.linear("f_b_proj", width, head_dim)?,
            gate_proj: w.linear("g_b_proj", width, head_dim)?,
            unit: unit_norms(w, head_dim)?,
            dt_bias: vector(w, "dt_bias", width, |x| x)?,
            a: vector(w, "A_log", heads, decay)?,
            norm: w.norm("o_norm", head_dim, spec.norm)?,
            out_proj: w.linear("o_proj", dim, width)?,
            spec,
        })
    }
}

impl<B: Recurrent> Mixer<B> for KimiDelta<B> {
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
        let (heads, n) = (self.spec.heads, self.spec.head_dim);
        let all = self.in_proj.forward(be, x, None)?;
        let [qkv, f, g, beta] = be.split_cols(all, [3 * heads * n, n, n, heads])?;
        let (qkv, conv) = self.conv.forward(be, &qkv, &spans(pass, caches, 0)?)?;
        let [q, k, v] = be.split_cols(qkv, [heads * n; 3])?;
        let eps = crate::gated_delta::EPS / n as f32;
        let [q, k] = [be.rms_norm(&q, &self.unit[0], eps)?, be.rms_norm(&k, &self.unit[1], eps)?];
        let gate = self.decay_proj.forward(be, Input::Rows(&f), None)?;
        let rule = Rule::Delta { gate: &gate, dt_bias: &self.dt_bias, a: &self.a, beta: &beta };
        let p = LinearAttention { q: &q, k: &k, v: &v, heads, key_heads: heads, rule };
        let (y, state) = be.linear_attention(&p, &spans(pass, caches, 1)?)?;
        keep(pass, caches, [conv, state])?;
        let [g, y] = needed(be, pass, [g, y])?;
        let g = self.gate_proj.forward(be, Input::Rows(&g), None)?;
        Ok(be.gate(Activation::Sigmoid, g, &self.norm.forward(be, &y)?)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        let linear = [&self.in_proj, &self.decay_proj, &self.gate_proj, &self.out_proj];
        linear.iter().map(|l| l.bytes(be)).sum::<usize>() + self.conv.bytes(be)
    }
}
