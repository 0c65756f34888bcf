//! Log-probabilities of tokens, from logits. Choosing a token from them is the sampler's.

use crate::{Error, Result};
use std::cmp::Ordering;

/// Lanes of maxima and sums, so that they compile to vector instructions.
const LANES: usize = 16;

/// The token with the highest logit and that logit; the lowest id wins ties.
///
/// # Errors
/// [`Error::NanLogits`] if a logit is NaN or +inf, [`Error::NoCandidates`] if there is none above `-inf`.
pub fn argmax(logits: &[f32]) -> Result<(u32, f32)> {
    // A NaN or +inf turns its lane of `taint` into NaN: 0 * x is 0 for finite x alone, and the masked -inf
    // are lifted to f32::MIN first.
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut taint = [0.0f32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let x = chunk[lane];
            best[lane] = if x > best[lane] { x } else { best[lane] };
            taint[lane] += 0.0 * if x < f32::MIN { f32::MIN } else { x };
        }
    }
    let mut tainted = taint.iter().any(|x| x.is_nan());
    for &x in rest {
        tainted |= is_tainted(x);
        best[0] = best[0].max(x);
    }
    if tainted {
        let index = logits.iter().position(|&x| is_tainted(x)).unwrap_or(0);
        return Err(Error::NanLogits { index });
    }
    let max = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
    match logits.iter().position(|&x| x == max) {
        Some(token) if max > f32::NEG_INFINITY => Ok((token as u32, max)),
        _ => Err(Error::NoCandidates { vocab: logits.len() }),
    }
}

/// Sum of `f(x)` over `values`.
pub(crate) fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(f(chunk[lane]));
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(f(x))).sum::<f64>()
}

/// `e^x` for `x <= 0` with a relative error below 3e-7, and 0 from `x = -87` down. Without
/// branches and calls, so that a pass over a vocabulary compiles to vector instructions.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds a small number to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its product with the exponent is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const LOWEST: f32 = -87.0;

    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2[0] - n * LN_2[1];
    // The series up to r^7 / 7!; |r| <= ln(2) / 2, so the rest is below 6e-9.
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x > LOWEST { series * scale } else { 0.0 }
}

/// No number that a distribution could be made of.
pub(crate) fn is_tainted(x: f32) -> bool {
    x.is_nan() || x == f32::INFINITY
}

/// `ln(sum(exp(logits)))`, the constant that turns logits into log-probabilities.
///
/// # Errors
/// As [`argmax`].
pub fn logsumexp(logits: &[f32]) -> Result<f32> {
    let (_, max) = argmax(logits)?;
    let sum = sum_of(logits, |x| exp(x - max));
    Ok((f64::from(max) + sum.ln()) as f32)
}

/// Turns logits into log-probabilities in place.
///
/// # Errors
/// As [`argmax`]; the logits are then as they were.
pub fn log_softmax(logits: &mut [f32]) -> Result<()> {
    let total = logsumexp(logits)?;
    logits.iter_mut().for_each(|x| *x -= total);
    Ok(())
}

/// Log-probabilities reported with a generated token.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TokenLogprobs {
    /// Natural log-probability of the token that was chosen.
    pub chosen: f32,
    /// The most probable tokens with their log-probabilities, best first; of equal ones the lowest id first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// The log-probability of `chosen` under `logits`, and those of the `top` best tokens (of all, if there
    /// are fewer). A sampler may overwrite its logits: pass those from before it ran.
    ///
    /// # Errors
    /// As [`argmax`], and [`Error::TokenOutOfRange`] if `chosen` has no logit.
    pub fn new(logits: &[f32], chosen: u32, top: usize) -> Result<Self> {
        let total = logsumexp(logits)?;
        let Some(logit) = logits.get(chosen as usize) else {
            return Err(Error::TokenOutOfRange { token: chosen, vocab: logits.len() });
        };
        let mut best = top_logits(logits, top);
        best.iter_mut().for_each(|(_, x)| *x -= total);
        Ok(TokenLogprobs { chosen: logit - total, top: best })
    }
}

/// The `count` highest logits with their ids, best first, by selection and a sort of those alone.
fn top_logits(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, &x)| (id as u32, x)).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| descending(&a.1, &b.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
        all.shrink_to_fit();
    }
    all.sort_unstable_by(order);
    all
}

/// Highest first. For numbers that [`argmax`] has let pass: there is no NaN among them.
pub(crate) fn descending(a: &f32, b: &f32) -> Ordering {
    b.partial_cmp(a).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn argmax_takes_the_lowest_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]).unwrap(), (1, 3.0));
        assert_eq!(argmax(&[-0.0, 0.0]).unwrap().0, 0);
        let mut long = vec![f32::NEG_INFINITY; 100];
        (long[33], long[70], long[99]) = (-5.0, -4.0, -4.0);
        assert_eq!(argmax(&long).unwrap(), (70, -4.0));
        assert_eq!(argmax(&[f32::MIN, f32::NEG_INFINITY]).unwrap().0, 0);
        assert_eq!(argmax(&[f32::MAX; 64]).unwrap().0, 0);
    }

    #[test]
    fn logits_that_are_no_distribution_are_errors() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for index in [0, 15, 16, 39, 40] {
                let mut logits = vec![f32::NEG_INFINITY; 41];
                logits[5] = 1.0;
                logits[index] = bad;
                assert!(matches!(argmax(&logits), Err(Error::NanLogits { index: i }) if i == index));
                assert!(log_softmax(&mut logits).is_err());
            }
        }
        assert!(matches!(argmax(&[]), Err(Error::NoCandidates { vocab: 0 })));
        assert!(matches!(argmax(&[f32::NEG_INFINITY; 40]), Err(Error::NoCandidates { vocab: 40 })));
    }

    #[test]
    fn exp_is_exact_to_single_precision() {
        for i in 0..87_000 {
            let x = i as f32 * -1e-3;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 3e-7, "e^{x}");
        }
        assert_eq!([exp(0.0), exp(-88.0), exp(f32::MIN), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn log_softmax_is_normalized_and_shift_invariant() {
        let mut small = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let mut large = [1000.0, 1001.0, 1002.0, f32::NEG_INFINITY];
        log_softmax(&mut small).unwrap();
        log_softmax(&mut large).unwrap();
        // ln(1 + e + e^2) = 2.407606 (any calculator).
        for (x, want) in small.iter().zip([-2.407606, -1.407606, -0.407606]) {
            assert!((x - want).abs() < 1e-6);
        }
        for (x, want) in large.iter().zip([-2.407606f32, -1.407606, -0.407606]) {
            assert!((x - want).abs() < 1e-4, "1000 in f32 has a step of 6e-5");
        }
        assert_eq!(small[3], f32::NEG_INFINITY);
    }

    #[test]
    fn token_logprobs_rank_the_best() {
        let logits = [1.0, 4.0, 2.0, 4.0, 3.0, 2.0];
        let got = TokenLogprobs::new(&logits, 4, 4).unwrap();
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 4, 2]);
        assert_eq!(got.chosen, got.top[2].1);
        let all = TokenLogprobs::new(&logits, 0, 99).unwrap();
        assert_eq!(all.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 4, 2, 5, 0]);
        let mass: f32 = all.top.iter().map(|t| t.1.exp()).sum();
        assert!((mass - 1.0).abs() < 1e-6);
        assert!(TokenLogprobs::new(&logits, 0, 0).unwrap().top.is_empty());
        let outside = TokenLogprobs::new(&logits, 6, 1);
        assert!(matches!(outside, Err(Error::TokenOutOfRange { token: 6, vocab: 6 })));
    }
}
