//! Mamba: selective state spaces (Gu and Dao 2023).

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, Recurrent, SelectiveScan};

use crate::linear::Bias;
use crate::recurrent::{Conv, STATE, constant, keep, needed, spans, vector};
use crate::{Linear, Mixer, Pass, Result, Weights};

/// Geometry of a [`Mamba`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MambaSpec {
    /// Width of the model.
    pub dim: usize,
    /// Channels.
    pub inner: usize,
    /// Values of a channel's state.
    pub state: usize,
    /// Rows that the convolution sees, the row itself included.
    pub taps: usize,
    /// Width of what steps are projected from.
    pub dt_rank: usize,
    /// Whether `in_proj` and `out_proj` have biases.
    pub bias: Bias,
    /// Whether the convolution has one.
    pub conv_bias: Bias,
    /// Norms of steps, `b` and `c`.
    pub norms: MambaNorms,
}

/// RMSNorms of what `x_proj` gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MambaNorms {
    /// None (mamba).
    None,
    /// Without factors (falcon_mamba).
    Plain {
        /// Added to the mean square.
        eps: f32,
    },
    /// With factors (jamba).
    Learned {
        /// Added to the mean square.
        eps: f32,
    },
}

/// A selective state space behind a convolution, gated.
#[derive(Debug)]
pub struct Mamba<B: Recurrent> {
    in_proj: Linear<B>,
    conv: Conv<B>,
    x_proj: Linear<B>,
    dt_proj: Linear<B>,
    /// Of steps, `b` and `c`.
    norms: Option<([B::Weight; 3], f32)>,
    a: B::Tensor,
    d: B::Tensor,
    out_proj: Linear<B>,
    spec: MambaSpec,
}

impl<B: Recurrent> Mamba<B> {
    /// Loads `in_proj`, `conv1d`, `x_proj`, `dt_proj`, `A_log: [inner, state]`, `D: [inner]`, `out_proj`, and with
    /// learned norms `dt_layernorm`, `b_layernorm` and `c_layernorm`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: MambaSpec) -> Result<Self> {
        let MambaSpec { dim, inner, state, taps, dt_rank, bias, .. } = spec;
        // First: what the file has bounds what is allocated.
        let in_proj = Linear::load(w, &[("in_proj", 2 * inner)], dim, bias)?;
        let x_proj = Linear::load(w, &[("x_proj", dt_rank + 2 * state)], inner, Bias::None)?;
        let sizes = [("dt", dt_rank), ("b", state), ("c", state)];
        let norms = match spec.norms {
            MambaNorms::None => None,
            MambaNorms::Plain { eps } => {
                let [dt, b, c] = sizes.map(|(_, n)| constant(w, n, 1.0));
                Some(([dt?, b?, c?], eps))
            }
            MambaNorms::Learned { eps } => {
                let [dt, b, c] =
                    sizes.map(|(name, n)| w.at(format!("{name}_layernorm")).weight("weight", &[n]));
                Some(([dt?, b?, c?], eps))
            }
        };
        let log = w.values("A_log", &[inner, state])?;
        let a = (0..state).flat_map(|n| (0..inner).map(move |c| c * state + n));
        let a: Vec<f32> = a.map(|at| -log[at].exp()).collect();
        Ok(Self {
            in_proj,
            conv: Conv::load(&w.at("conv1d"), [inner, taps], spec.conv_bias, Some(Activation::Silu))?,
            x_proj,
            dt_proj: Linear::load(w, &[("dt_proj", inner)], dt_rank, Bias::Added)?,
            norms,
            a: w.backend().upload(state, inner, &a)?,
            d: vector(w, "D", inner, |x| x)?,
            out_proj: Linear::load(w, &[("out_proj", dim)], inner, bias)?,
            spec,
        })
    }
}

impl<B: Recurrent> Mixer<B> for Mamba<B> {
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
        let MambaSpec { inner, state, dt_rank, .. } = self.spec;
        let [x, z] = be.split_cols(self.in_proj.forward(be, x, None)?, [inner; 2])?;
        let (x, conv) = self.conv.forward(be, &x, &spans(pass, caches, 0)?)?;
        let small = self.x_proj.forward(be, Input::Rows(&x), None)?;
        let [mut dt, mut b, mut c] = be.split_cols(small, [dt_rank, state, state])?;
        if let Some(([of_dt, of_b, of_c], eps)) = &self.norms {
            dt = be.rms_norm(&dt, of_dt, *eps)?;
            b = be.rms_norm(&b, of_b, *eps)?;
            c = be.rms_norm(&c, of_c, *eps)?;
        }
        let dt = self.dt_proj.forward(be, Input::Rows(&dt), None)?;
        let p = SelectiveScan { dt: &dt, b: &b, c: &c, a: &self.a, d: &self.d };
        let (y, scan) = be.selective_scan(&x, &p, &spans(pass, caches, 1)?)?;
        keep(pass, caches, [conv, scan])?;
        let [z, y] = needed(be, pass, [z, y])?;
        Ok(be.gate(Activation::Silu, z, &y)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        let linear = [&self.in_proj, &self.x_proj, &self.dt_proj, &self.out_proj];
        linear.iter().map(|l| l.bytes(be)).sum::<usize>() + self.conv.bytes(be) + be.tensor_bytes(&self.a)
    }
}
