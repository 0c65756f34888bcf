//! What a product reads: rows of activations, or rows made from them one at a time. No threads, no memory.

use super::kernels::elementwise::Elementwise;
use super::rows::Rows;
use crate::Activation;

/// Rows, and what is done to them. Widths have been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// Nothing.
    Rows(Rows<'a>),
    /// Each run of `w.len()` values is divided by its root mean square.
    RmsNorm { x: Rows<'a>, w: &'a [f32], eps: f32 },
    /// Each run of `w.len()` values is normalised by its mean and variance.
    LayerNorm { x: Rows<'a>, w: &'a [f32], bias: Option<&'a [f32]>, eps: f32 },
    /// `act(gate) * up`, of equal shapes.
    Gated { act: Activation, gate: Rows<'a>, up: Rows<'a> },
}

impl<'a> Source<'a> {
    /// The matrices that rows are made from.
    pub(crate) fn reads(&self) -> [Rows<'a>; 2] {
        match *self {
            Self::Rows(x) | Self::RmsNorm { x, .. } | Self::LayerNorm { x, .. } => [x, x],
            Self::Gated { gate, up, .. } => [gate, up],
        }
    }

    /// Rows `rows`, which exist.
    pub(crate) fn part(&self, rows: std::ops::Range<usize>) -> Self {
        match *self {
            Self::Rows(x) => Self::Rows(x.part(rows)),
            Self::RmsNorm { x, w, eps } => Self::RmsNorm { x: x.part(rows), w, eps },
            Self::LayerNorm { x, w, bias, eps } => Self::LayerNorm { x: x.part(rows), w, bias, eps },
            Self::Gated { act, gate, up } => {
                Self::Gated { act, gate: gate.part(rows.clone()), up: up.part(rows) }
            }
        }
    }

    /// Rows, and values of each.
    pub(crate) fn shape(&self) -> [usize; 2] {
        let [x, _] = self.reads();
        [x.rows, x.cols]
    }

    /// Writes row `i`.
    pub(crate) fn make(&self, kernels: &Elementwise, i: usize, out: &mut [f32]) {
        match *self {
            Self::Rows(x) => out.copy_from_slice(x.row(i)),
            Self::RmsNorm { x, w, eps } => {
                let runs = x.row(i).chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len()));
                runs.for_each(|(x, out)| (kernels.rms_norm)(x, w, eps, out));
            }
            Self::LayerNorm { x, w, bias, eps } => {
                let runs = x.row(i).chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len()));
                runs.for_each(|(x, out)| (kernels.layer_norm)(x, w, bias, eps, out));
            }
            Self::Gated { act, gate, up } => (kernels.gate)(act, gate.row(i), up.row(i), out),
        }
    }
}
