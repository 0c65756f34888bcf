//! Griffin's recurrent block: a real-gated linear recurrent unit behind a convolution, gated (De et al. 2024).

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, Recurrent, RgLru};

use crate::linear::Bias;
use crate::recurrent::{Conv, STATE, keep, needed, spans, vector};
use crate::{Linear, Mixer, Pass, Result, Weights};

/// Geometry of a [`Griffin`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GriffinSpec {
    /// Width of the model.
    pub dim: usize,
    /// Channels.
    pub inner: usize,
    /// Blocks of channels whose gates are projected by themselves; divides `inner`.
    pub heads: usize,
    /// Rows that the convolution sees, the row itself included.
    pub taps: usize,
    /// What the gate of the result goes through.
    pub act: Activation,
}

/// `linear_out(act(linear_y(x)) * rg_lru(conv(linear_x(x))))`.
#[derive(Debug)]
pub struct Griffin<B: Recurrent> {
    in_proj: Linear<B>,
    conv: Conv<B>,
    input: [B::Tensor; 2],
    recurrent: [B::Tensor; 2],
    param: B::Tensor,
    out_proj: Linear<B>,
    spec: GriffinSpec,
}

impl<B: Recurrent> Griffin<B> {
    /// Loads `linear_y`, `linear_x`, `conv_1d`, of `rg_lru` `input_gate_weight`, `recurrent_gate_weight` and their
    /// biases and `recurrent_param`, and `linear_out`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: GriffinSpec) -> Result<Self> {
        let GriffinSpec { dim, inner, heads, taps, .. } = spec;
        let (lru, n, be) = (w.at("rg_lru"), inner / heads, w.backend());
        let gate = |name: &str| -> Result<[B::Tensor; 2]> {
            let matrices = lru.values(&format!("{name}_weight"), &[heads, n, n])?;
            let bias = lru.values(&format!("{name}_bias"), &[heads, n])?;
            Ok([be.upload(inner, n, &matrices)?, be.upload(1, inner, &bias)?])
        };
        let parts = [("linear_y", inner), ("linear_x", inner)];
        Ok(Self {
            in_proj: Linear::load(w, &parts, dim, Bias::Added)?,
            conv: Conv::load(&w.at("conv_1d"), [inner, taps], Bias::Added, None)?,
            input: gate("input_gate")?,
            recurrent: gate("recurrent_gate")?,
            param: vector(&lru, "recurrent_param", inner, |x| x)?,
            out_proj: Linear::load(w, &[("linear_out", dim)], inner, Bias::Added)?,
            spec,
        })
    }
}

impl<B: Recurrent> Mixer<B> for Griffin<B> {
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
        let [y, x] = be.split_cols(self.in_proj.forward(be, x, None)?, [self.spec.inner; 2])?;
        let (x, conv) = self.conv.forward(be, &x, &spans(pass, caches, 0)?)?;
        let gate = |[w, bias]: &[B::Tensor; 2]| be.head_linear(&x, w, bias);
        let (input, recurrent) = (gate(&self.input)?, gate(&self.recurrent)?);
        let p = RgLru { input: &input, recurrent: &recurrent, param: &self.param };
        let (h, state) = be.rg_lru(&x, &p, &spans(pass, caches, 1)?)?;
        keep(pass, caches, [conv, state])?;
        let [y, h] = needed(be, pass, [y, h])?;
        Ok(be.gate(self.spec.act, y, &h)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        let gates = self.input.iter().chain(&self.recurrent).map(|x| be.tensor_bytes(x)).sum::<usize>();
        self.in_proj.bytes(be) + self.conv.bytes(be) + gates + self.out_proj.bytes(be)
    }
}
