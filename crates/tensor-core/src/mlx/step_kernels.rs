//! What the kernels of `cuda/step.cu` take over: layers with a state, where each sequence has one token. Each says no by
//! returning `None`, and the operations run one by one.

use std::ffi::CString;
use std::sync::LazyLock;

use mlx_rs::Dtype;
use smallvec::SmallVec;

use super::cuda::{Call, Constant, Launch, run, sources};
use super::recurrent::{after, before};
use super::{Mlx, MlxTensor, dim, exception};
use crate::recurrent::AttentionDims;
use crate::{Activation, LinearAttention, Result, Rule, ShortConv, StateSpan, States};

static RECUR: LazyLock<[CString; 2]> =
    LazyLock::new(|| sources("step", include_str!("cuda/step.cu"), include_str!("cuda/recur_body.cu")));
static CONVOLVE: LazyLock<[CString; 2]> =
    LazyLock::new(|| sources("step", include_str!("cuda/step.cu"), include_str!("cuda/convolve_body.cu")));

/// A token of each of some sequences through linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recur {
    dtype: Dtype,
    sequences: usize,
    rule: i32,
    heads: usize,
    key_heads: usize,
    key_dim: usize,
    value_dim: usize,
    decays: usize,
    /// The bits of two `f32`.
    limits: [u32; 2],
    /// Parameters that the rule has.
    parameters: usize,
}

/// A row of each of some sequences through a short convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Convolve {
    dtype: Dtype,
    sequences: usize,
    channels: usize,
    taps: usize,
    silu: bool,
    bias: bool,
}

impl Mlx {
    /// [`Recurrent::linear_attention`](crate::Recurrent::linear_attention) of one row of each span, in one kernel.
    pub(super) fn fused_recurrence(
        &self,
        p: &LinearAttention<'_, MlxTensor>,
        spans: &[StateSpan<'_, MlxTensor>],
        dims: AttentionDims,
    ) -> Result<Option<(MlxTensor, States<MlxTensor>)>> {
        if !self.0.has_kernels || !(1..=Recur::KEY).contains(&dims.key_dim) || dims.value_dim == 0 {
            return Ok(None);
        }
        let (rule, limits): (_, [f32; 2]) = match &p.rule {
            Rule::Constant { .. } => (0, [0.0; 2]),
            Rule::Ssd { limits, .. } => (1, *limits),
            Rule::Delta { .. } => (2, [0.0; 2]),
            Rule::Wkv7 { .. } => (3, [0.0; 2]),
        };
        let parameters: SmallVec<[&MlxTensor; 4]> = match &p.rule {
            Rule::Constant { decay } => SmallVec::from_slice(&[*decay]),
            Rule::Ssd { dt, dt_bias, a, d, .. } => SmallVec::from_slice(&[*dt, dt_bias, a, d]),
            Rule::Delta { gate, dt_bias, a, beta } => SmallVec::from_slice(&[*gate, dt_bias, a, beta]),
            Rule::Wkv7 { decay, a, b } => SmallVec::from_slice(&[*decay, a, b]),
        };
        let dtype = p.v.array(self)?.dtype();
        let what = Recur {
            dtype,
            sequences: spans.len(),
            rule,
            heads: dims.heads,
            key_heads: dims.key_heads,
            key_dim: dims.key_dim,
            value_dim: dims.value_dim,
            decays: dims.decays,
            limits: limits.map(f32::to_bits),
            parameters: parameters.len(),
        };
        let [rows, cols] = dims.state();
        let mut inputs: SmallVec<[_; 8]> = SmallVec::new();
        inputs.push(before(self, spans, &[dim(rows)?, dim(cols)?])?);
        for x in [p.q, p.k, p.v] {
            inputs.push(x.array(self)?.as_dtype(dtype).map_err(exception)?);
        }
        for x in parameters {
            inputs.push(x.array(self)?.into_owned());
        }
        let [y, next] = run(&self.0.kernels.recur, what, Recur::launch, inputs.iter())?;
        Ok(Some((y.into(), after(&next, spans.len(), dims.state())?)))
    }

    /// [`Recurrent::short_conv`](crate::Recurrent::short_conv) of one row of each span, in one kernel.
    pub(super) fn fused_convolution(
        &self,
        x: &MlxTensor,
        p: &ShortConv<'_, MlxTensor>,
        spans: &[StateSpan<'_, MlxTensor>],
        [channels, taps]: [usize; 2],
    ) -> Result<Option<(MlxTensor, States<MlxTensor>)>> {
        let silu = match p.act {
            None | Some(Activation::Identity) => false,
            Some(Activation::Silu) => true,
            Some(_) => return Ok(None),
        };
        if !self.0.has_kernels || taps < 2 || channels == 0 {
            return Ok(None);
        }
        let x = x.array(self)?;
        let what = Convolve {
            dtype: x.dtype(),
            sequences: spans.len(),
            channels,
            taps,
            silu,
            bias: p.bias.is_some(),
        };
        let kept = before(self, spans, &[dim(taps - 1)?, dim(channels)?])?;
        let kernel = p.kernel.array(self)?;
        let bias = p.bias.map(|bias| bias.array(self)).transpose()?;
        let inputs = [&*x, &kept, &*kernel].into_iter().chain(bias.as_deref());
        let [y, next] = run(&self.0.kernels.convolve, what, Convolve::launch, inputs)?;
        Ok(Some((y.into(), after(&next, spans.len(), [taps - 1, channels])?)))
    }
}

impl Recur {
    /// Values of a key at most: a block keeps five numbers for each in shared memory.
    const KEY: usize = 1024;
    const GROUPS: usize = 16;
    const COLUMNS: usize = 32;

    fn launch(self) -> Result<Launch> {
        let int = |n: usize| dim(n).map(Constant::Int);
        let [header, body] = &*RECUR;
        let mut constants = vec![
            (c"T", Constant::Type(self.dtype)),
            (c"RULE", Constant::Int(self.rule)),
            (c"HEADS", int(self.heads)?),
            (c"KEY_HEADS", int(self.key_heads)?),
            (c"N", int(self.key_dim)?),
            (c"M", int(self.value_dim)?),
            (c"DECAYS", int(self.decays)?),
            (c"LEAST", Constant::Int(self.limits[0] as i32)),
            (c"MOST", Constant::Int(self.limits[1] as i32)),
            (c"GROUPS", int(Self::GROUPS)?),
            (c"COLUMNS", int(Self::COLUMNS)?),
        ];
        let mut inputs = vec![c"state", c"q", c"k", c"v"];
        for (i, name) in [c"p1", c"p2", c"p3", c"p4"].into_iter().enumerate() {
            if i < self.parameters {
                inputs.push(name);
            } else {
                constants.push((name, Constant::Null("float")));
            }
        }
        let (n, [rows, cols]) = (dim(self.sequences)?, [self.heads * self.key_dim, self.value_dim]);
        Launch::new(&Call {
            name: c"recur",
            inputs: &inputs,
            header,
            body,
            shared_memory: 0,
            threads: Self::GROUPS * Self::COLUMNS,
            blocks: [self.sequences * self.heads, self.value_dim.div_ceil(Self::COLUMNS)],
            out: &[
                (c"out", &[n, dim(self.heads * self.value_dim)?], self.dtype),
                (c"next", &[n, dim(rows)?, dim(cols)?], Dtype::Float32),
            ],
            constants: &constants,
        })
    }
}

impl Convolve {
    const THREADS: usize = 256;

    fn launch(self) -> Result<Launch> {
        let [header, body] = &*CONVOLVE;
        let mut constants = vec![
            (c"T", Constant::Type(self.dtype)),
            (c"CHANNELS", Constant::Int(dim(self.channels)?)),
            (c"TAPS", Constant::Int(dim(self.taps)?)),
            (c"SILU", Constant::Bool(self.silu)),
        ];
        let mut inputs = vec![c"x", c"kept", c"kernel"];
        if self.bias {
            inputs.push(c"bias");
        } else {
            constants.push((c"bias", Constant::Null("float")));
        }
        let (n, channels) = (dim(self.sequences)?, dim(self.channels)?);
        Launch::new(&Call {
            name: c"convolve",
            inputs: &inputs,
            header,
            body,
            shared_memory: 0,
            threads: Self::THREADS,
            blocks: [self.channels.div_ceil(Self::THREADS), self.sequences],
            out: &[
                (c"out", &[n, channels], self.dtype),
                (c"next", &[n, dim(self.taps - 1)?, channels], Dtype::Float32),
            ],
            constants: &constants,
        })
    }
}
