//! Gated short convolutions (LFM2).

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, Recurrent};

use crate::linear::Bias;
use crate::recurrent::{Conv, STATE, keep, needed, spans};
use crate::{Linear, Mixer, Pass, Result, Weights};

/// Geometry of a [`GatedConv`] layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedConvSpec {
    /// Width of the model.
    pub dim: usize,
    /// Rows that the convolution sees, the row itself included.
    pub taps: usize,
    /// Whether projections and convolution have biases.
    pub bias: Bias,
}

/// `out_proj(c * conv(b * x))` with `b, c, x = in_proj(x)`.
#[derive(Debug)]
pub struct GatedConv<B: Recurrent> {
    in_proj: Linear<B>,
    conv: Conv<B>,
    out_proj: Linear<B>,
    spec: GatedConvSpec,
}

impl<B: Recurrent> GatedConv<B> {
    /// Loads `in_proj`, `conv` and `out_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: GatedConvSpec) -> Result<Self> {
        let GatedConvSpec { dim, taps, bias } = spec;
        Ok(Self {
            in_proj: Linear::load(w, &[("in_proj", 3 * dim)], dim, bias)?,
            conv: Conv::load(&w.at("conv"), [dim, taps], bias, None)?,
            out_proj: Linear::load(w, &[("out_proj", dim)], dim, bias)?,
            spec,
        })
    }
}

impl<B: Recurrent> Mixer<B> for GatedConv<B> {
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
        let [b, c, x] = be.split_cols(self.in_proj.forward(be, x, None)?, [self.spec.dim; 3])?;
        let x = be.gate(Activation::Identity, b, &x)?;
        let (y, states) = self.conv.forward(be, &x, &spans(pass, caches, 0)?)?;
        keep(pass, caches, [states])?;
        let [c, y] = needed(be, pass, [c, y])?;
        Ok(be.gate(Activation::Identity, c, &y)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.in_proj.bytes(be) + self.conv.bytes(be) + self.out_proj.bytes(be)
    }
}
