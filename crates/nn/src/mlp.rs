//! Feed-forward layers: gated (SwiGLU and kin; Shazeer 2020) and plain.

use rillm_kvcache::SequenceCache;
use rillm_tensor_core::{Activation, Backend, Input};

use crate::linear::Bias;
use crate::{Error, Linear, Mixer, Norm, NormKind, Pass, Result, Weights};

/// How a feed-forward layer is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `down_proj(act(gate_proj(x)) * up_proj(x))`.
    Gated,
    /// `down_proj(act(up_proj(x)))`.
    Plain,
}

/// Geometry of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Factor on what `gate_proj` gives (falcon_h1).
    pub gate_factor: Option<f32>,
    /// Norm of what `down_proj` reads, `ffn_sub_norm` (bitnet).
    pub sub_norm: Option<NormKind>,
}

impl MlpSpec {
    /// Gated, from width `dim` to `hidden` and back, without biases, and no more.
    pub const fn new([dim, hidden]: [usize; 2], act: Activation) -> Self {
        Self { kind: MlpKind::Gated, dim, hidden, act, bias: Bias::None, gate_factor: None, sub_norm: None }
    }
}

/// A feed-forward layer.
#[derive(Debug)]
pub struct Mlp<B: Backend> {
    /// `gate_proj` and `up_proj` merged, or `up_proj` alone.
    up: Linear<B>,
    down: Linear<B>,
    /// Factors of the columns of gates and what they open.
    factors: Option<B::Weight>,
    sub_norm: Option<Norm<B>>,
    spec: MlpSpec,
}

impl<B: Backend> Mlp<B> {
    /// Loads `gate_proj` (if gated), `up_proj`, `down_proj` and, if asked for, `ffn_sub_norm`.
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
            factors: match spec.gate_factor {
                Some(x) => {
                    Some(w.vector("gate_proj", &[vec![x; spec.hidden], vec![1.0; spec.hidden]].concat())?)
                }
                None => None,
            },
            sub_norm: spec.sub_norm.map(|kind| w.norm("ffn_sub_norm", spec.hidden, kind)).transpose()?,
            spec: MlpSpec { act: learned(w, spec.act)?, ..spec },
        })
    }

    /// What [`output`](Mixer::output) gates or activates: the gate, then what it opens, `[t, 2 * hidden]`; or `up_proj(x)`.
    /// [`mix`](Mixer::mix) may have gated it already.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn gates(&self, be: &B, x: Input<'_, B>) -> Result<B::Tensor> {
        let h = self.up.forward(be, x, None)?;
        match &self.factors {
            Some(factors) => Ok(be.scale_cols(h, factors)?),
            None => Ok(h),
        }
    }
}

/// `act` with the parameters that the checkpoint has for it: xIELU's, which are the softplus of what is stored.
fn learned<B: Backend>(w: &Weights<'_, B>, act: Activation) -> Result<Activation> {
    let Activation::XIelu { .. } = act else { return Ok(act) };
    let w = w.at("act_fn");
    let number = |name| w.opt_values(name, 1).map(|v| v.and_then(|v| v.first().copied()));
    let missing = |name| Error::MissingWeight { name: w.name(name) };
    let softplus = |x: f32| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let alpha = |name| Ok::<_, Error>(softplus(number(name)?.ok_or_else(|| missing(name))?));
    let slope = number("beta")?.unwrap_or(0.5);
    // Where the exponential ends below zero: of no effect in single precision.
    number("eps")?;
    Ok(Activation::XIelu { positive: alpha("alpha_p")?, negative: slope + alpha("alpha_n")?, slope })
}

impl<B: Backend> Mixer<B> for Mlp<B> {
    fn mix(&self, be: &B, x: Input<'_, B>, _: &Pass<'_, B>, _: &mut [SequenceCache<B>]) -> Result<B::Tensor> {
        if self.spec.kind == MlpKind::Gated
            && self.factors.is_none()
            && let Some(h) = self.up.forward_gated(be, x, self.spec.act)?
        {
            return Ok(h);
        }
        self.gates(be, x)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        let act = self.spec.act;
        let plain;
        let inner = match self.spec.kind {
            // As `mix` left it: gated already, or gates and what they open.
            MlpKind::Gated if be.shape(&h)[1] == self.spec.hidden => Input::Rows(&h),
            MlpKind::Gated => Input::Gated { act, gate_up: &h },
            MlpKind::Plain => {
                plain = be.activate(act, h)?;
                Input::Rows(&plain)
            }
        };
        match &self.sub_norm {
            Some(norm) => self.down.forward(be, norm.of(&inner.rows(be)?), residual),
            None => self.down.forward(be, inner, residual),
        }
    }

    fn bytes(&self, be: &B) -> usize {
        self.up.bytes(be) + self.down.bytes(be)
    }
}
