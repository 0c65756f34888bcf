//! Normalisation of rows: RMSNorm and LayerNorm.

use rillm_tensor_core::{Backend, Input};

use crate::{Result, Weights};

/// Which normalisation, and its epsilon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * w` (Zhang and Sennrich 2019).
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
    /// RMSNorm whose factor is `1 + w` (gemma).
    RmsPlusOne {
        /// Added to the mean square.
        eps: f32,
    },
    /// RMSNorm without factors.
    RmsPlain {
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x - mean) / sqrt(var + eps) * w + b` (Ba et al. 2016).
    Layer {
        /// Added to the variance.
        eps: f32,
    },
    /// LayerNorm whose factor is `1 + w` (nemotron).
    LayerPlusOne {
        /// Added to the variance.
        eps: f32,
    },
    /// LayerNorm without `b` (cohere).
    LayerNoBias {
        /// Added to the variance.
        eps: f32,
    },
    /// LayerNorm without `w` and `b` (olmo).
    LayerPlain {
        /// Added to the variance.
        eps: f32,
    },
}

impl NormKind {
    /// What is added to the mean square or variance.
    pub const fn eps(self) -> f32 {
        match self {
            Self::Rms { eps }
            | Self::RmsPlusOne { eps }
            | Self::RmsPlain { eps }
            | Self::Layer { eps }
            | Self::LayerPlusOne { eps }
            | Self::LayerNoBias { eps }
            | Self::LayerPlain { eps } => eps,
        }
    }
}

/// A normalisation layer.
#[derive(Debug)]
pub struct Norm<B: Backend> {
    weight: B::Weight,
    bias: Option<B::Weight>,
    kind: NormKind,
}

impl<B: Backend> Norm<B> {
    /// Loads `weight: [dim]`, and `bias: [dim]` of a LayerNorm.
    ///
    /// # Errors
    /// Missing or misshapen parameters.
    pub fn load(w: &Weights<'_, B>, dim: usize, kind: NormKind) -> Result<Self> {
        let prepared = |values: &[f32]| w.vector("weight", values);
        let weight = match kind {
            NormKind::RmsPlusOne { .. } | NormKind::LayerPlusOne { .. } => {
                let values: Vec<f32> = w.values("weight", &[dim])?.iter().map(|x| 1.0 + x).collect();
                prepared(&values)?
            }
            NormKind::RmsPlain { .. } | NormKind::LayerPlain { .. } => prepared(&vec![1.0; dim])?,
            _ => w.weight("weight", &[dim])?,
        };
        let bias = match kind {
            NormKind::Layer { .. } | NormKind::LayerPlusOne { .. } => Some(w.weight("bias", &[dim])?),
            _ => None,
        };
        Ok(Self { weight, bias, kind })
    }

    /// Normalises each run of `dim` values of `x: [t, n * dim]`: rows, or the heads of rows.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn forward(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        Ok(match self.of(x) {
            Input::LayerNorm { x, w, bias, eps } => be.layer_norm(x, w, bias, eps)?,
            _ => be.rms_norm(x, &self.weight, self.kind.eps())?,
        })
    }

    /// The norm of each row of `x: [t, dim]`, for a projection to read.
    pub fn of<'a>(&'a self, x: &'a B::Tensor) -> Input<'a, B> {
        let (w, eps) = (&self.weight, self.kind.eps());
        match self.kind {
            NormKind::Rms { .. } | NormKind::RmsPlusOne { .. } | NormKind::RmsPlain { .. } => {
                Input::RmsNorm { x, w, eps }
            }
            _ => Input::LayerNorm { x, w, bias: self.bias.as_ref(), eps },
        }
    }
}
