//! Alternating updates (Baykal et al. 2023): several streams of hidden states, one of which a layer computes with.

use rillm_nn::{Linear, Norm, NormKind, Result, Weights};
use rillm_tensor_core::{Backend, Input};

use super::Spec;

/// What surrounds a layer: the streams are predicted before it and corrected after it.
#[derive(Debug)]
pub(super) struct AltUp<B: Backend> {
    router_norm: Norm<B>,
    router: Linear<B>,
    /// `[streams * streams, streams]`.
    prediction: Vec<f32>,
    /// `[streams, streams]`.
    correction: Vec<f32>,
    output_scale: B::Weight,
    spec: Spec,
}

impl<B: Backend> AltUp<B> {
    pub(super) fn load(w: &Weights<'_, B>, spec: &Spec) -> Result<Self> {
        let n = spec.streams;
        Ok(Self {
            router_norm: w.norm("router_norm", spec.dim, spec.norm)?,
            router: w.linear("modality_router", n, spec.dim)?,
            prediction: w.at("prediction_coefs").values("weight", &[n * n, n])?,
            correction: w.at("correction_coefs").values("weight", &[n, n])?,
            output_scale: w.weight("correct_output_scale", &[spec.dim])?,
            spec: spec.clone(),
        })
    }

    pub(super) fn bytes(&self, be: &B) -> usize {
        self.router.bytes(be)
    }

    /// `stream_i + Σ_j C_ij stream_j` with coefficients of each row's own.
    pub(super) fn predict(&self, be: &B, streams: &[B::Tensor]) -> Result<Vec<B::Tensor>> {
        let n = self.spec.streams;
        let coefs = self.coefficients(be, &streams[self.spec.active], &self.prediction)?;
        let stream = |i: usize| {
            let mut sum = streams[i].clone();
            for (j, stream) in streams.iter().enumerate() {
                let factors: Vec<f32> = coefs.chunks_exact(n * n).map(|c| c[i * n + j]).collect();
                sum = be.add(be.scale_rows(stream.clone(), &factors)?, &sum)?;
            }
            Ok(sum)
        };
        (0..n).map(stream).collect()
    }

    /// `prediction_i + (1 + c_i) (activated - prediction_active)`.
    pub(super) fn correct(
        &self,
        be: &B,
        predictions: Vec<B::Tensor>,
        activated: &B::Tensor,
    ) -> Result<Vec<B::Tensor>> {
        let n = self.spec.streams;
        let coefs = self.coefficients(be, activated, &self.correction)?;
        let back = be.scale(predictions[self.spec.active].clone(), -1.0)?;
        let innovation = be.add(back, activated)?;
        let stream = |(i, prediction): (usize, B::Tensor)| {
            let factors: Vec<f32> = coefs.chunks_exact(n).map(|c| 1.0 + c[i]).collect();
            Ok(be.add(be.scale_rows(innovation.clone(), &factors)?, &prediction)?)
        };
        predictions.into_iter().enumerate().map(stream).collect()
    }

    /// The corrected active stream as the per-layer gate reads it.
    pub(super) fn scaled(&self, be: &B, x: B::Tensor) -> Result<B::Tensor> {
        match self.spec.scaled {
            true => Ok(be.scale_cols(x, &self.output_scale)?),
            false => Ok(x),
        }
    }

    /// `W tanh(router(norm(x) / dim))` for each row of `x`. A few numbers a row: on the host.
    fn coefficients(&self, be: &B, x: &B::Tensor, w: &[f32]) -> Result<Vec<f32>> {
        let n = self.spec.streams;
        let x = be.scale(self.router_norm.forward(be, x)?, 1.0 / self.spec.dim as f32)?;
        let (routed, mut values) = (self.router.forward(be, Input::Rows(&x), None)?, Vec::new());
        be.read(&routed, &mut values)?;
        values.iter_mut().for_each(|x| *x = x.tanh());
        let row = |row: &[f32], modalities: &[f32]| row.iter().zip(modalities).map(|(a, b)| a * b).sum();
        Ok(values.chunks_exact(n).flat_map(|m| w.chunks_exact(n).map(move |r| row(r, m))).collect())
    }
}

/// The learned augmented residual: `x + norm(R L x)` (Menghani et al. 2024).
#[derive(Debug)]
pub(super) struct Laurel<B: Backend> {
    left: Linear<B>,
    right: Linear<B>,
    norm: Norm<B>,
}

impl<B: Backend> Laurel<B> {
    pub(super) fn load(w: &Weights<'_, B>, dim: usize, rank: usize, norm: NormKind) -> Result<Self> {
        Ok(Self {
            left: w.linear("linear_left", rank, dim)?,
            right: w.linear("linear_right", dim, rank)?,
            norm: w.norm("post_laurel_norm", dim, norm)?,
        })
    }

    pub(super) fn forward(&self, be: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let y = self.left.forward(be, Input::Rows(x), None)?;
        let y = self.right.forward(be, Input::Rows(&y), None)?;
        Ok(be.add(self.norm.forward(be, &y)?, x)?)
    }

    pub(super) fn bytes(&self, be: &B) -> usize {
        self.left.bytes(be) + self.right.bytes(be)
    }
}

/// `x` with the root mean square of each row that `like` has.
pub(super) fn match_magnitude<B: Backend>(be: &B, x: B::Tensor, like: &B::Tensor) -> Result<B::Tensor> {
    let [_, d] = be.shape(&x);
    let mean_square = |x: &B::Tensor| -> Result<Vec<f32>> {
        let mut values = Vec::new();
        be.read(x, &mut values)?;
        let rows = values.chunks_exact(d.max(1));
        Ok(rows.map(|row| row.iter().map(|x| x * x).sum::<f32>() / d as f32).collect())
    };
    let (is, want) = (mean_square(&x)?, mean_square(like)?);
    let factors: Vec<f32> =
        is.iter().zip(&want).map(|(is, want)| want.sqrt() / is.max(1e-5).sqrt()).collect();
    Ok(be.scale_rows(x, &factors)?)
}
