//! Frequencies of rotary position embeddings: the plain ones and every published way to stretch them.
//!
//! Formulas: Su et al. 2021 (rope), Chen et al. 2023 (linear), bloc97 2023 (dynamic NTK), Peng et al. 2023
//! (yarn), Ding et al. 2024 (longrope), Llama 3.1's `llama3`. They agree with transformers.

use std::borrow::Cow;
use std::f64::consts::PI;

use rillm_tensor_core::{Pairing, Rope};

/// How frequencies are changed for long contexts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Long wavelengths divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Stretch of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` are short.
        high: f64,
        /// Context of pretraining, in tokens.
        original: f64,
    },
    /// The base grows with the length of the sequence once it is past `max_positions`.
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Context without stretch, in tokens.
        max_positions: usize,
    },
    /// Only the first `rotated` pairs turn, by the frequencies of a whole head, divided by `factor` (gemma4).
    Proportional {
        /// Pairs that turn.
        rotated: usize,
        /// Stretch.
        factor: f64,
    },
    /// The base times `alpha^(d / (d - 2))` (hunyuan).
    NtkAlpha {
        /// Stretch of the base.
        alpha: f64,
    },
    /// A ramp over the pairs from stretched to kept.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Context of pretraining, in tokens.
        original: f64,
        /// Rotations over the original context above which a pair is kept.
        beta_fast: f64,
        /// Rotations below which a pair is stretched fully.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole pairs.
        truncate: bool,
        /// Factor on the rotated values.
        attention_factor: f64,
    },
    /// A divisor for each pair: one set up to `original` tokens, another beyond, as transformers has it. mlx-lm takes the
    /// long ones for any length, so its results differ for short sequences.
    LongRope {
        /// Divisors for sequences of at most `original` tokens.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// Where the sets change, in tokens.
        original: usize,
        /// Factor on the rotated values, of both sets.
        attention_factor: f64,
    },
    /// A divisor for each pair (GGUF's `rope_freqs`).
    Factors(Vec<f64>),
}

/// What a rotary embedding is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Values of a head.
    pub head_dim: usize,
    /// Values of a head that are rotated, from its first; of an odd number, the one after the last too.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How pairs lie in a head.
    pub pairing: Pairing,
    /// Change for long contexts.
    pub scaling: RopeScaling,
}

/// Rotary position embedding whose frequencies may depend on the length of the sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryEmbedding {
    spec: RopeSpec,
    /// Frequencies of short sequences, which are those of all sequences unless `spec.scaling` is by length.
    short: Rope,
    long: Option<Rope>,
}

impl RotaryEmbedding {
    /// Computes the frequencies of `spec`.
    pub fn new(spec: RopeSpec) -> Self {
        let short = spec.rope(0);
        let long = match spec.scaling {
            RopeScaling::LongRope { original, .. } => Some(spec.rope(original + 1)),
            _ => None,
        };
        Self { spec, short, long }
    }

    /// Names the set of frequencies of a sequence of `len` tokens; equal numbers, equal frequencies.
    pub fn set(&self, len: usize) -> usize {
        match self.spec.scaling {
            RopeScaling::LongRope { original, .. } => usize::from(len > original),
            RopeScaling::Dynamic { max_positions, .. } => len.max(max_positions),
            _ => 0,
        }
    }

    /// The frequencies of a sequence of `len` tokens.
    pub fn at(&self, len: usize) -> Cow<'_, Rope> {
        match (&self.spec.scaling, &self.long) {
            (RopeScaling::LongRope { original, .. }, Some(long)) if len > *original => Cow::Borrowed(long),
            (RopeScaling::Dynamic { max_positions, .. }, _) if len > *max_positions => {
                Cow::Owned(self.spec.rope(len))
            }
            _ => Cow::Borrowed(&self.short),
        }
    }
}

impl RopeSpec {
    fn rope(&self, len: usize) -> Rope {
        let inv_freq = (0..self.dims.div_ceil(2)).map(|i| self.inv_freq(i, len) as f32).collect();
        let scale = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        };
        Rope { head_dim: self.head_dim, inv_freq, scale, pairing: self.pairing }
    }

    /// Radians for each position of pair `i` in a sequence of `len` tokens.
    fn inv_freq(&self, i: usize, len: usize) -> f64 {
        let d = self.dims as f64;
        let exponent = 2.0 * i as f64 / d;
        let plain = self.theta.powf(-exponent);
        match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * PI / plain;
                if wavelength > original / low {
                    plain / factor
                } else if wavelength < original / high {
                    plain
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
            RopeScaling::Dynamic { factor, max_positions } => {
                let max = (*max_positions).max(1) as f64;
                let n = len.max(*max_positions) as f64;
                let theta = self.theta * (factor * n / max - (factor - 1.0)).powf(d / (d - 2.0));
                theta.powf(-exponent)
            }
            RopeScaling::Proportional { rotated, factor } => {
                if i < *rotated {
                    plain / factor
                } else {
                    0.0
                }
            }
            RopeScaling::NtkAlpha { alpha } => (self.theta * alpha.powf(d / (d - 2.0))).powf(-exponent),
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                let pair_of =
                    |rotations: f64| d * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(d - 1.0));
                if low == high {
                    high += 0.001;
                }
                let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain / factor * stretched + plain * (1.0 - stretched)
            }
            RopeScaling::LongRope { short, long, original, .. } => {
                let set = if len > *original { long } else { short };
                plain / set.get(i).copied().unwrap_or(1.0)
            }
            RopeScaling::Factors(divisors) => plain / divisors.get(i).copied().unwrap_or(1.0),
        }
    }
}
