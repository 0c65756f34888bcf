//! Feed-forward layers: gated (SwiGLU and kin; Shazeer 2020) and plain.

use rillm_kvcache::SequenceCache;
use rillm_tensor_core::{Activation, Backend, Input};

use crate::linear::Bias;
use crate::{Linear, Mixer, Pass, Result, Weights};

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
}

impl<B: Backend> Mixer<B> for Mlp<B> {
    fn mix(&self, be: &B, x: Input<'_, B>, _: &Pass<'_>, _: &mut [SequenceCache<B>]) -> Result<B::Tensor> {
        self.up.forward(be, x, None)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        let act = self.spec.act;
        match self.spec.kind {
            MlpKind::Gated => self.down.forward(be, Input::Gated { act, gate_up: &h }, residual),
            MlpKind::Plain => self.down.forward(be, Input::Rows(&be.activate(act, h)?), residual),
        }
    }

    fn bytes(&self, be: &B) -> usize {
        self.up.bytes(be) + self.down.bytes(be)
    }
}
