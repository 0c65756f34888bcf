//! What layers with a state share: parameters that are no matrices, convolutions, and where states are kept.

use rillm_kvcache::{ArraysCache, CacheKind, SequenceCache};
use rillm_tensor_core::{Activation, Backend, Recurrent, ShortConv, StateSpan, States};
use smallvec::SmallVec;

use crate::linear::Bias;
use crate::{Error, Pass, Result, Weights};

/// What a layer with a state keeps.
pub(crate) const STATE: CacheKind = CacheKind::State { checkpoints: CHECKPOINTS };

/// Ends of prompts that can be gone back to: those of a conversation's latest turns.
const CHECKPOINTS: usize = 2;

/// Parameter `leaf` of `n` values, each as `of` says, as a row.
pub(crate) fn vector<B: Backend>(
    w: &Weights<'_, B>,
    leaf: &str,
    n: usize,
    of: impl Fn(f32) -> f32,
) -> Result<B::Tensor> {
    let values: Vec<f32> = values(w, leaf, n)?.into_iter().map(of).collect();
    Ok(w.backend().upload(1, n, &values)?)
}

/// Parameter `leaf` of `n` values, stored as a vector, by head or with axes of length 1.
pub(crate) fn values<B: Backend>(w: &Weights<'_, B>, leaf: &str, n: usize) -> Result<Vec<f32>> {
    let missing = || Error::MissingWeight { name: w.name(leaf) };
    match w.has_shape(leaf, &[n]) {
        true => w.values(leaf, &[n]),
        false => w.opt_values(leaf, n)?.ok_or_else(missing),
    }
}

/// Decays `-exp(A_log)` from their logarithms.
pub(crate) fn decay(log: f32) -> f32 {
    -log.exp()
}

/// A norm's factors that are the same for `n` values.
pub(crate) fn constant<B: Backend>(w: &Weights<'_, B>, n: usize, value: f32) -> Result<B::Weight> {
    w.vector("norm", &vec![value; n])
}

/// A depthwise causal convolution.
#[derive(Debug)]
pub(crate) struct Conv<B: Backend> {
    kernel: B::Tensor,
    bias: Option<B::Tensor>,
    act: Option<Activation>,
}

impl<B: Recurrent> Conv<B> {
    /// Loads `weight` and, if `bias` says so, `bias` of `c` channels and `k` taps.
    pub(crate) fn load(
        w: &Weights<'_, B>,
        [c, k]: [usize; 2],
        bias: Bias,
        act: Option<Activation>,
    ) -> Result<Self> {
        Ok(Self {
            kernel: w.backend().upload(k, c, &turned(&taps(w, c, k)?, c, k))?,
            bias: match bias {
                Bias::None => None,
                Bias::Added => Some(vector(w, "bias", c, |x| x)?),
            },
            act,
        })
    }

    /// Loads several, of `c` channels each, as one; or `conv1d`, if they are stored as one.
    pub(crate) fn of_parts(
        w: &Weights<'_, B>,
        names: &[&str],
        [c, k]: [usize; 2],
        act: Option<Activation>,
    ) -> Result<Self> {
        let (all, one, mut values) = (names.len() * c, w.at("conv1d"), Vec::new());
        if [vec![all, 1, k], vec![all, k, 1]].iter().any(|shape| one.has_shape("weight", shape)) {
            return Self::load(&one, [all, k], Bias::None, act);
        }
        for name in names {
            values.extend(taps(&w.at(name), c, k)?);
        }
        Ok(Self { kernel: w.backend().upload(k, all, &turned(&values, all, k))?, bias: None, act })
    }

    /// `x: [t, c]` -> `[t, c]`, and the states that tensor `index` of the layer's cache becomes.
    pub(crate) fn forward(
        &self,
        be: &B,
        x: &B::Tensor,
        spans: &[StateSpan<'_, B::Tensor>],
    ) -> Result<(B::Tensor, States<B::Tensor>)> {
        let p = ShortConv { kernel: &self.kernel, bias: self.bias.as_ref(), act: self.act };
        Ok(be.short_conv(x, &p, spans)?)
    }

    pub(crate) fn bytes(&self, be: &B) -> usize {
        be.tensor_bytes(&self.kernel) + self.bias.as_ref().map_or(0, |b| be.tensor_bytes(b))
    }
}

/// The taps of `c` channels, `[c, k]`. transformers stores `[c, 1, k]`, MLX `[c, k, 1]`, GGUF `[c, k]`.
fn taps<B: Backend>(w: &Weights<'_, B>, c: usize, k: usize) -> Result<Vec<f32>> {
    let shapes: [&[usize]; 2] = [&[c, k, 1], &[c, k]];
    let stored = shapes.into_iter().find(|shape| w.has_shape("weight", shape));
    w.values("weight", stored.unwrap_or(&[c, 1, k]))
}

/// `[c, k]` as `[k, c]`.
fn turned(values: &[f32], c: usize, k: usize) -> Vec<f32> {
    (0..k).flat_map(|tap| (0..c).map(move |i| values[i * k + tap])).collect()
}

/// The spans of a pass, each with tensor `index` of its sequence's state.
pub(crate) fn spans<'a, B: Backend>(
    pass: &Pass<'_, B>,
    caches: &'a [SequenceCache<B>],
    index: usize,
) -> Result<SmallVec<[StateSpan<'a, B::Tensor>; 4]>> {
    let of = |span: &rillm_tensor_core::Span| {
        let state = caches[span.sequence].state(pass.slot)?.array(index);
        Ok(StateSpan { rows: span.rows.clone(), state })
    };
    pass.batch.spans().iter().map(of).collect()
}

/// Keeps the states of all spans after a pass: `states[i]` are tensors `i`.
pub(crate) fn keep<B: Backend, const N: usize>(
    pass: &Pass<'_, B>,
    caches: &mut [SequenceCache<B>],
    states: [States<B::Tensor>; N],
) -> Result<()> {
    let mut states = states.map(States::into_iter);
    for span in pass.batch.spans() {
        let arrays = states.iter_mut().filter_map(Iterator::next).collect();
        let cache: &mut ArraysCache<B> = caches[span.sequence].state_mut(pass.slot)?;
        cache.append(span.rows.len(), arrays);
    }
    Ok(())
}

/// The rows of each of `xs` that the pass needs.
pub(crate) fn needed<B: Backend, const N: usize>(
    be: &B,
    pass: &Pass<'_, B>,
    mut xs: [B::Tensor; N],
) -> Result<[B::Tensor; N]> {
    if let Some(tail) = pass.tail {
        for x in &mut xs {
            *x = be.take_rows(x, &tail.rows)?;
        }
    }
    Ok(xs)
}
