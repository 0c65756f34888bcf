//! Mamba-2: state spaces with one decay for each head (Dao and Gu 2024).

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Input, LinearAttention, Recurrent, Rule};

use crate::linear::Bias;
use crate::recurrent::{Conv, STATE, constant, decay, keep, needed, spans, vector};
use crate::{Linear, Mixer, Pass, Result, Weights};

/// Geometry of a [`Mamba2`] layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Spec {
    /// Width of the model.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Rows of a head's state.
    pub state: usize,
    /// Groups of heads that share what enters and leaves their states.
    pub groups: usize,
    /// Rows that the convolution sees, the row itself included.
    pub taps: usize,
    /// Whether `in_proj` has a bias.
    pub in_bias: Bias,
    /// Whether `out_proj` has one.
    pub out_bias: Bias,
    /// Whether the convolution has one.
    pub conv_bias: Bias,
    /// The least and the greatest step.
    pub dt_limits: [f32; 2],
    /// The norm of the result; `None` gates and no more.
    pub norm: Option<GatedNorm>,
    /// Factors on what `in_proj` gives: of the gate, `x`, `b`, `c` and the steps (falcon_h1).
    pub factors: Option<[f32; 5]>,
}

/// The RMSNorm of a gated result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Parts of a row that are normalised by themselves.
    pub groups: usize,
    /// Before or after the gate.
    pub order: GateOrder,
}

/// Where a gate is, beside a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateOrder {
    /// `norm(silu(z) * y)`.
    GateFirst,
    /// `silu(z) * norm(y)`.
    NormFirst,
}

impl Mamba2Spec {
    /// Width of the result.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Widths of the parts of `in_proj`: gate, `x`, `b`, `c`, steps.
    pub fn widths(&self) -> [usize; 5] {
        let (inner, wide) = (self.inner(), self.groups * self.state);
        [inner, inner, wide, wide, self.heads]
    }
}

/// A norm in parts: each divided by its root mean square, then factors for each column.
#[derive(Debug)]
struct Parts<B: Recurrent> {
    /// Ones, as many as a part has values; or the factors, if there is one part.
    each: B::Weight,
    factors: Option<B::Weight>,
    norm: GatedNorm,
}

impl<B: Recurrent> Parts<B> {
    fn load(w: &Weights<'_, B>, dim: usize, norm: GatedNorm) -> Result<Self> {
        let factors = w.weight("weight", &[dim])?;
        if norm.groups == 1 {
            return Ok(Self { each: factors, factors: None, norm });
        }
        Ok(Self { each: constant(w, dim / norm.groups, 1.0)?, factors: Some(factors), norm })
    }

    fn forward(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let y = be.rms_norm(x, &self.each, self.norm.eps)?;
        match &self.factors {
            Some(factors) => Ok(be.scale_cols(y, factors)?),
            None => Ok(y),
        }
    }
}

/// Heads with decaying states behind a convolution, gated.
#[derive(Debug)]
pub struct Mamba2<B: Recurrent> {
    in_proj: Linear<B>,
    /// Factors of the columns of what `in_proj` gives.
    factors: Option<B::Weight>,
    conv: Conv<B>,
    dt_bias: B::Tensor,
    a: B::Tensor,
    d: B::Tensor,
    norm: Option<Parts<B>>,
    out_proj: Linear<B>,
    spec: Mamba2Spec,
}

impl<B: Recurrent> Mamba2<B> {
    /// Loads `in_proj`, `conv1d`, `dt_bias`, `A_log`, `D` (one for each head), `norm` if there is one, and `out_proj`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: Mamba2Spec) -> Result<Self> {
        let (inner, widths, heads) = (spec.inner(), spec.widths(), spec.heads);
        let [_, x, b, c, _] = widths;
        // First: what the file has bounds what is allocated.
        let in_proj = Linear::load(w, &[("in_proj", widths.iter().sum())], spec.dim, spec.in_bias)?;
        let factors = match spec.factors {
            Some(factors) => Some(by_column(w, widths, factors)?),
            None => None,
        };
        let conv = [x + b + c, spec.taps];
        Ok(Self {
            in_proj,
            factors,
            conv: Conv::load(&w.at("conv1d"), conv, spec.conv_bias, Some(Activation::Silu))?,
            dt_bias: vector(w, "dt_bias", heads, |x| x)?,
            a: vector(w, "A_log", heads, decay)?,
            d: vector(w, "D", heads, |x| x)?,
            norm: spec.norm.map(|norm| Parts::load(&w.at("norm"), inner, norm)).transpose()?,
            out_proj: Linear::load(w, &[("out_proj", spec.dim)], inner, spec.out_bias)?,
            spec,
        })
    }
}

/// `factors`, each for as many columns as its part is wide.
fn by_column<B: Recurrent>(w: &Weights<'_, B>, widths: [usize; 5], factors: [f32; 5]) -> Result<B::Weight> {
    let values: Vec<f32> = widths.iter().zip(factors).flat_map(|(n, x)| vec![x; *n]).collect();
    w.vector("in_proj", &values)
}

impl<B: Recurrent> Mixer<B> for Mamba2<B> {
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
        let [gate, x_dim, wide, _, heads] = self.spec.widths();
        let mut all = self.in_proj.forward(be, x, None)?;
        if let Some(factors) = &self.factors {
            all = be.scale_cols(all, factors)?;
        }
        let [z, xbc, dt] = be.split_cols(all, [gate, x_dim + 2 * wide, heads])?;
        let (xbc, conv) = self.conv.forward(be, &xbc, &spans(pass, caches, 0)?)?;
        let [x, b, c] = be.split_cols(xbc, [x_dim, wide, wide])?;
        let rule = Rule::Ssd {
            dt: &dt,
            dt_bias: &self.dt_bias,
            a: &self.a,
            d: &self.d,
            limits: self.spec.dt_limits,
        };
        let p = LinearAttention { q: &c, k: &b, v: &x, heads, key_heads: self.spec.groups, rule };
        let (y, scan) = be.linear_attention(&p, &spans(pass, caches, 1)?)?;
        keep(pass, caches, [conv, scan])?;
        let [z, y] = needed(be, pass, [z, y])?;
        let silu = Activation::Silu;
        match &self.norm {
            None => Ok(be.gate(silu, z, &y)?),
            Some(norm) if norm.norm.order == GateOrder::NormFirst => {
                Ok(be.gate(silu, z, &norm.forward(be, &y)?)?)
            }
            Some(norm) => norm.forward(be, &be.gate(silu, z, &y)?),
        }
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.in_proj.bytes(be) + self.conv.bytes(be) + self.out_proj.bytes(be)
    }
}
