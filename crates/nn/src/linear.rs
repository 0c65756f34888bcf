//! Projections: one matrix, or several that read the same input and run as one.

use rillm_quant::RawTensor;
use rillm_tensor_core::{Activation, Backend, Input};

use crate::{Error, Result, Weights};

/// Whether a projection adds a bias; stated by the configuration, not guessed from the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bias {
    /// `x @ Wᵀ`.
    #[default]
    None,
    /// `x @ Wᵀ + b`.
    Added,
}

/// `x @ Wᵀ + b`; `W` may be stored dense or quantized.
#[derive(Debug)]
pub struct Linear<B: Backend> {
    weight: B::Weight,
    bias: Option<B::Weight>,
}

impl<B: Backend> Linear<B> {
    /// Loads `{name}.weight: [out, in]` of each `(name, out)` in `parts`, rows stacked in order, and
    /// `{name}.bias: [out]` if `bias` says so.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, parts: &[(&str, usize)], inp: usize, bias: Bias) -> Result<Self> {
        let matrices = parts
            .iter()
            .map(|(name, out)| w.at(name).raw("weight", &[*out, inp]))
            .collect::<Result<Vec<_>>>()?;
        let weight = w.prepare(&matrices)?;
        let bias = match bias {
            Bias::None => None,
            Bias::Added => {
                let mut values = Vec::new();
                for (name, out) in parts {
                    values.extend(w.at(name).values("bias", &[*out])?);
                }
                let raw = RawTensor::from_f32(vec![values.len()], &values)
                    .map_err(|source| Error::Quant { name: w.name("bias"), source })?;
                Some(w.prepare(&[raw])?)
            }
        };
        Ok(Self { weight, bias })
    }

    /// Stored matrices that read the same input, without a bias.
    pub(crate) fn prepared(w: &Weights<'_, B>, parts: &[RawTensor<'_>]) -> Result<Self> {
        Ok(Self { weight: w.prepare(parts)?, bias: None })
    }

    /// `x: [t, in]` -> `[t, out]`, the outputs of several parts side by side, added to `residual: [t, out]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn forward(&self, be: &B, x: Input<'_, B>, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        Ok(be.project(x, &self.weight, self.bias.as_ref(), residual)?)
    }

    /// The first half of the outputs through `act`, times the second: `[t, out / 2]`, if the backend gates at once.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn forward_gated(&self, be: &B, x: Input<'_, B>, act: Activation) -> Result<Option<B::Tensor>> {
        Ok(be.project_gated(x, &self.weight, self.bias.as_ref(), act)?)
    }

    /// Bytes that one pass reads.
    pub fn bytes(&self, be: &B) -> usize {
        be.weight_bytes(&self.weight) + self.bias.as_ref().map_or(0, |b| be.weight_bytes(b))
    }
}
