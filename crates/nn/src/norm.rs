//! Normalisation of rows: RMSNorm and LayerNorm.

use rillm_quant::RawTensor;
use rillm_tensor_core::{Backend, Input};

use crate::{Error, Result, Weights};

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
    /// `(x - mean) / sqrt(var + eps) * w + b` (Ba et al. 2016).
    Layer {
        /// Added to the variance.
        eps: f32,
    },
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
        let weight = match kind {
            NormKind::RmsPlusOne { .. } => {
                let values: Vec<f32> = w.values("weight", &[dim])?.iter().map(|x| 1.0 + x).collect();
                let raw = RawTensor::from_f32(vec![dim], &values)
                    .map_err(|source| Error::Quant { name: w.name("weight"), source })?;
                w.prepare(&[raw])?
            }
            _ => w.weight("weight", &[dim])?,
        };
        let bias = match kind {
            NormKind::Layer { .. } => Some(w.weight("bias", &[dim])?),
            _ => None,
        };
        Ok(Self { weight, bias, kind })
    }

    /// Normalises each run of `dim` values of `x: [t, n * dim]`: rows, or the heads of rows.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn forward(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        Ok(match self.kind {
            NormKind::Rms { eps } | NormKind::RmsPlusOne { eps } => be.rms_norm(x, &self.weight, eps)?,
            NormKind::Layer { eps } => be.layer_norm(x, &self.weight, self.bias.as_ref(), eps)?,
        })
    }

    /// The norm of each row of `x: [t, dim]`, for a projection to read.
    pub fn of<'a>(&'a self, x: &'a B::Tensor) -> Input<'a, B> {
        match self.kind {
            NormKind::Rms { eps } | NormKind::RmsPlusOne { eps } => {
                Input::RmsNorm { x, w: &self.weight, eps }
            }
            NormKind::Layer { eps } => Input::LayerNorm { x, w: &self.weight, bias: self.bias.as_ref(), eps },
        }
    }
}
