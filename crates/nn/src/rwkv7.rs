//! RWKV-7's two branches: time mixing, whose state follows a generalised delta rule, and channel mixing (Peng et al.
//! 2025). Each reads its rows mixed with the row before.

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Backend, Input, LinearAttention, Recurrent, Rule, ShortConv, States};
use smallvec::{SmallVec, smallvec};

use crate::linear::Bias;
use crate::recurrent::{STATE, constant, keep, needed, spans, values, vector};
use crate::{Linear, Mixer, Norm, NormKind, Pass, Result, Weights};

/// Added to the variance of a head of the result, as in mlx-lm.
const EPS: f32 = 64e-5;

/// Added to the square of a key's length; mlx-lm takes a length of at least 1e-7.
const LENGTH_EPS: f32 = 1e-14;

/// Geometry of a [`TimeMix`] layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeMixSpec {
    /// Width of the model, and of all heads.
    pub dim: usize,
    /// Values of a head; divides `dim`.
    pub head_dim: usize,
    /// Rank of what makes decays.
    pub decay_rank: usize,
    /// Rank of what makes in-context learning rates.
    pub rate_rank: usize,
    /// Rank of what makes gates.
    pub gate_rank: usize,
    /// Rank of what mixes values with those of the first layer; `None` in that layer.
    pub value_rank: Option<usize>,
}

/// Geometry of a [`ChannelMix`] layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelMixSpec {
    /// Width of the model.
    pub dim: usize,
    /// Width inside.
    pub hidden: usize,
}

/// `before - x` with the row before: a convolution of two taps, the same for all channels.
#[derive(Debug)]
struct Difference<B: Backend> {
    kernel: B::Tensor,
}

impl<B: Recurrent> Difference<B> {
    fn load(w: &Weights<'_, B>, dim: usize) -> Result<Self> {
        let taps = [vec![1.0; dim], vec![-1.0; dim]].concat();
        Ok(Self { kernel: w.backend().upload(2, dim, &taps)? })
    }

    /// `x: [t, dim]` -> `[t, dim]`, and the latest rows.
    fn forward(
        &self,
        be: &B,
        x: &B::Tensor,
        pass: &Pass<'_, B>,
        caches: &[SequenceCache<B>],
    ) -> Result<(B::Tensor, States<B::Tensor>)> {
        let p = ShortConv { kernel: &self.kernel, bias: None, act: None };
        Ok(be.short_conv(x, &p, &spans(pass, caches, 0)?)?)
    }
}

/// `x + mu difference` with the `mu` of one reader.
fn shifted<B: Backend>(be: &B, x: &B::Tensor, difference: &B::Tensor, mu: &B::Weight) -> Result<B::Tensor> {
    Ok(be.add(be.scale_cols(difference.clone(), mu)?, x)?)
}

/// A product of two thin matrices, with a bias.
#[derive(Debug)]
struct LowRank<B: Backend> {
    down: Linear<B>,
    up: Linear<B>,
}

impl<B: Backend> LowRank<B> {
    /// Loads `{name}.lora.0` and `{name}.lora.2`.
    fn load(w: &Weights<'_, B>, name: &str, [dim, rank]: [usize; 2], bias: Bias) -> Result<Self> {
        let w = w.at(name).at("lora");
        Ok(Self {
            down: Linear::load(&w, &[("0", rank)], dim, Bias::None)?,
            up: Linear::load(&w, &[("2", dim)], rank, bias)?,
        })
    }

    /// With `act` in between.
    fn forward(
        &self,
        be: &B,
        x: &B::Tensor,
        act: impl Fn(B::Tensor) -> rillm_tensor_core::Result<B::Tensor>,
    ) -> Result<B::Tensor> {
        let h = act(self.down.forward(be, Input::Rows(x), None)?)?;
        self.up.forward(be, Input::Rows(&h), None)
    }

    fn bytes(&self, be: &B) -> usize {
        self.down.bytes(be) + self.up.bytes(be)
    }
}

/// What is done to keys: `k / |k|` of each head after a factor, and `k (1 + (rate - 1) mix)`.
#[derive(Debug)]
struct Keys<B: Backend> {
    /// Factor on what is looked up.
    lookup: B::Weight,
    unit: B::Weight,
    /// `mix`, and `1 - mix`.
    mix: [B::Weight; 2],
    head_dim: usize,
}

impl<B: Backend> Keys<B> {
    fn load(w: &Weights<'_, B>, dim: usize, head_dim: usize) -> Result<Self> {
        let mix = values(w, "k_a", dim)?;
        let rest: Vec<f32> = mix.iter().map(|x| 1.0 - x).collect();
        Ok(Self {
            lookup: w.vector("k_k", &values(w, "k_k", dim)?)?,
            unit: constant(w, head_dim, 1.0 / (head_dim as f32).sqrt())?,
            mix: [w.vector("k_a", &mix)?, w.vector("k_a", &rest)?],
            head_dim,
        })
    }

    /// Unit vectors of `k: [t, dim]`.
    fn unit(&self, be: &B, k: &B::Tensor) -> Result<B::Tensor> {
        let k = be.scale_cols(k.clone(), &self.lookup)?;
        Ok(be.rms_norm(&k, &self.unit, LENGTH_EPS / self.head_dim as f32)?)
    }

    /// What is stored of `k`.
    fn stored(&self, be: &B, k: B::Tensor, rate: &B::Tensor) -> Result<B::Tensor> {
        let learned = be.gate(Activation::Identity, rate.clone(), &k)?;
        let [mix, rest] = &self.mix;
        Ok(be.add(be.scale_cols(k, rest)?, &be.scale_cols(learned, mix)?)?)
    }
}

/// What heads give: `norm(y) + (r · (bonus k)) v`, each head by itself.
#[derive(Debug)]
struct HeadOutput<B: Backend> {
    norm: Norm<B>,
    weight: B::Weight,
    bias: B::Tensor,
    /// For each head a matrix all of whose columns are the bonus: it leaves the sum in every value.
    bonus: [B::Tensor; 2],
}

impl<B: Recurrent> HeadOutput<B> {
    fn load(w: &Weights<'_, B>, dim: usize, n: usize) -> Result<Self> {
        let (be, norm) = (w.backend(), w.at("g_norm"));
        let rows = values(w, "r_k", dim)?.into_iter().flat_map(|x| std::iter::repeat_n(x, n));
        Ok(Self {
            norm: w.norm("g_norm", n, NormKind::LayerPlain { eps: EPS })?,
            weight: norm.vector("weight", &values(&norm, "weight", dim)?)?,
            bias: vector(&norm, "bias", dim, |x| x)?,
            bonus: [be.upload(dim, n, &rows.collect::<Vec<_>>())?, be.upload(1, dim, &vec![0.0; dim])?],
        })
    }

    fn forward(&self, be: &B, y: &B::Tensor, [r, k, v]: [B::Tensor; 3]) -> Result<B::Tensor> {
        let y = be.scale_cols(self.norm.forward(be, y)?, &self.weight)?;
        let first: SmallVec<[usize; 8]> = smallvec![0; be.shape(&y)[0]];
        let y = be.add(y, &be.take_rows(&self.bias, &first)?)?;
        let [bonus, zero] = &self.bonus;
        let sums = be.head_linear(&be.gate(Activation::Identity, r, &k)?, bonus, zero)?;
        Ok(be.add(y, &be.gate(Activation::Identity, sums, &v)?)?)
    }
}

/// `r, k, v`, the decay, the rate and the gate, each from rows shifted in its own way.
#[derive(Debug)]
pub struct TimeMix<B: Recurrent> {
    difference: Difference<B>,
    /// Of `r`, `k`, `v`, the decay, the rate and the gate.
    shifts: [B::Weight; 6],
    proj: [Linear<B>; 3],
    decay: LowRank<B>,
    rate: LowRank<B>,
    gate: LowRank<B>,
    value: Option<LowRank<B>>,
    keys: Keys<B>,
    out: HeadOutput<B>,
    out_proj: Linear<B>,
    heads: usize,
}

impl<B: Recurrent> TimeMix<B> {
    /// Loads `r_proj`, `k_proj`, `v_proj`, `o_proj`, `x_r`, `x_k`, `x_v`, `x_w`, `x_a`, `x_g`, `k_k`, `k_a`, `r_k`,
    /// `g_norm`, and both matrices of `w_lora`, `a_lora`, `g_lora` and, but in the first layer, `v_lora`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: TimeMixSpec) -> Result<Self> {
        let TimeMixSpec { dim, head_dim, .. } = spec;
        let low = |name, rank, bias| LowRank::load(w, name, [dim, rank], bias);
        let shift = |leaf| w.vector(leaf, &values(w, leaf, dim)?);
        let proj = |name| w.linear(name, dim, dim);
        Ok(Self {
            proj: [proj("r_proj")?, proj("k_proj")?, proj("v_proj")?],
            out_proj: proj("o_proj")?,
            difference: Difference::load(w, dim)?,
            shifts: [
                shift("x_r")?,
                shift("x_k")?,
                shift("x_v")?,
                shift("x_w")?,
                shift("x_a")?,
                shift("x_g")?,
            ],
            decay: low("w_lora", spec.decay_rank, Bias::Added)?,
            rate: low("a_lora", spec.rate_rank, Bias::Added)?,
            gate: low("g_lora", spec.gate_rank, Bias::None)?,
            value: spec.value_rank.map(|rank| low("v_lora", rank, Bias::Added)).transpose()?,
            keys: Keys::load(w, dim, head_dim)?,
            out: HeadOutput::load(w, dim, head_dim)?,
            heads: dim / head_dim,
        })
    }

    /// The values `v`, made from rows `x`: those of the first layer, or mixed with them.
    fn values(&self, be: &B, v: B::Tensor, x: &B::Tensor, pass: &Pass<'_, B>) -> Result<B::Tensor> {
        let Some(mix) = &self.value else {
            pass.first_values.map(|first| first.replace(Some(v.clone())));
            return Ok(v);
        };
        let first = pass.first_values.and_then(|first| first.borrow().clone());
        let first = first.ok_or_else(|| {
            let (op, want) = ("values of the first layer", be.shape(&v));
            rillm_tensor_core::Error::Shape { op, got: [0, 0], want }
        })?;
        let mix = mix.forward(be, x, Ok)?;
        let apart = be.add(be.scale(v.clone(), -1.0)?, &first)?;
        Ok(be.add(v, &be.gate(Activation::Sigmoid, mix, &apart)?)?)
    }
}

impl<B: Recurrent> Mixer<B> for TimeMix<B> {
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
        let x = x.rows(be)?;
        let (difference, latest) = self.difference.forward(be, &x, pass, caches)?;
        let of = |i: usize| shifted(be, &x, &difference, &self.shifts[i]);
        let (xr, xk, xv, xw, xa, xg) = (of(0)?, of(1)?, of(2)?, of(3)?, of(4)?, of(5)?);
        let [r_proj, k_proj, v_proj] = &self.proj;
        let r = r_proj.forward(be, Input::Rows(&xr), None)?;
        let k = k_proj.forward(be, Input::Rows(&xk), None)?;
        let v = self.values(be, v_proj.forward(be, Input::Rows(&xv), None)?, &xv, pass)?;
        let decay = self.decay.forward(be, &xw, |h| be.softcap(h, 1.0))?;
        let rate = be.activate(Activation::Sigmoid, self.rate.forward(be, &xa, Ok)?)?;
        let unit = self.keys.unit(be, &k)?;
        let k = self.keys.stored(be, k, &rate)?;
        let b = be.gate(Activation::Identity, rate, &unit)?;
        let a = be.scale(unit, -1.0)?;
        let rule = Rule::Wkv7 { decay: &decay, a: &a, b: &b };
        let p = LinearAttention { q: &r, k: &k, v: &v, heads: self.heads, key_heads: self.heads, rule };
        let (y, state) = be.linear_attention(&p, &spans(pass, caches, 1)?)?;
        keep(pass, caches, [latest, state])?;
        let [xg, y, r, k, v] = needed(be, pass, [xg, y, r, k, v])?;
        let gate = self.gate.forward(be, &xg, |h| be.activate(Activation::Sigmoid, h))?;
        Ok(be.gate(Activation::Identity, gate, &self.out.forward(be, &y, [r, k, v])?)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.out_proj.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        let low = [&self.decay, &self.rate, &self.gate].into_iter().chain(&self.value);
        let linear = self.proj.iter().chain([&self.out_proj]);
        low.map(|l| l.bytes(be)).sum::<usize>()
            + linear.map(|l| l.bytes(be)).sum::<usize>()
            + self.shifts.iter().map(|mu| be.weight_bytes(mu)).sum::<usize>()
            + be.tensor_bytes(&self.out.bonus[0])
    }
}

/// `value(relu(key(x))²)` of shifted rows.
#[derive(Debug)]
pub struct ChannelMix<B: Recurrent> {
    difference: Difference<B>,
    shift: B::Weight,
    key: Linear<B>,
    value: Linear<B>,
}

impl<B: Recurrent> ChannelMix<B> {
    /// Loads `key`, `value` and `x_k`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: ChannelMixSpec) -> Result<Self> {
        let ChannelMixSpec { dim, hidden } = spec;
        Ok(Self {
            key: w.linear("key", hidden, dim)?,
            value: w.linear("value", dim, hidden)?,
            difference: Difference::load(w, dim)?,
            shift: w.vector("x_k", &values(w, "x_k", dim)?)?,
        })
    }
}

impl<B: Recurrent> Mixer<B> for ChannelMix<B> {
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
        let x = x.rows(be)?;
        let (difference, latest) = self.difference.forward(be, &x, pass, caches)?;
        keep(pass, caches, [latest])?;
        let [x] = needed(be, pass, [shifted(be, &x, &difference, &self.shift)?])?;
        Ok(be.activate(Activation::Relu2, self.key.forward(be, Input::Rows(&x), None)?)?)
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.value.forward(be, Input::Rows(&h), residual)
    }

    fn bytes(&self, be: &B) -> usize {
        self.key.bytes(be) + self.value.bytes(be) + be.weight_bytes(&self.shift)
    }
}
