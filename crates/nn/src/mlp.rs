//! Feed-forward layers: gated (SwiGLU and kin; Shazeer 2020) and plain.

use rillm_tensor_core::{Activation, Backend};

use crate::linear::Bias;
use crate::{Linear, Result, Weights};

/// How a feed-forward layer is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `down_proj(act(gate_proj(x)) * up_proj(x))`.
    Gated,
    /// `down_proj(act(up_proj(x)))`.
    Plain,
}

/// Geometry of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpSpec {
    /// Wiring.
    pub kind: MlpKind,
    /// Width of the model.
    pub dim: usize,
    /// Width inside.
    pub hidden: usize,
    /// Nonlinearity.
    pub act: Activation,
    /// Whether the projections have biases.
    pub bias: Bias,
}

/// A feed-forward layer.
#[derive(Debug)]
pub struct Mlp<B: Backend> {
    /// `gate_proj` and `up_proj` merged, or `up_proj` alone.
    up: Linear<B>,
    down: Linear<B>,
    spec: MlpSpec,
}

impl<B: Backend> Mlp<B> {
    /// Loads `gate_proj` (if gated), `up_proj` and `down_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: MlpSpec) -> Result<Self> {
        let up = match spec.kind {
            MlpKind::Gated => &[("gate_proj", spec.hidden), ("up_proj", spec.hidden)][..],
            MlpKind::Plain => &[("up_proj", spec.hidden)],
        };
        Ok(Self {
            up: Linear::load(w, up, spec.dim, spec.bias)?,
            down: Linear::load(w, &[("down_proj", spec.dim)], spec.hidden, spec.bias)?,
            spec,
        })
    }

    /// `x: [t, dim]` -> `[t, dim]`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn forward(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let h = self.up.forward(be, x)?;
        let h = match self.spec.kind {
            MlpKind::Gated => {
                let [gate, up] = be.split_cols(h, [self.spec.hidden; 2])?;
                be.gate(self.spec.act, gate, &up)?
            }
            MlpKind::Plain => be.activate(self.spec.act, h)?,
        };
        self.down.forward(be, &h)
    }

    /// Bytes of weights that one pass reads.
    pub fn bytes(&self, be: &B) -> usize {
        self.up.bytes(be) + self.down.bytes(be)
    }
}
