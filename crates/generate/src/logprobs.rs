//! Log-probabilities of tokens, from logits. Choosing a token from them is the sampler's.

use crate::vocabulary::{argmax, argmax_and_peaks, descending, exp, list_from, reached_by, sum_of};
use crate::{Error, Result};

/// `ln(sum(exp(logits)))`, the constant that turns logits into log-probabilities.
///
/// # Errors
/// As [`argmax`].
pub fn logsumexp(logits: &[f32]) -> Result<f32> {
    let (_, max) = argmax(logits)?;
    Ok(logsumexp_below(max, logits))
}

/// [`logsumexp`] of logits whose highest is `max`.
fn logsumexp_below(max: f32, logits: &[f32]) -> f32 {
    let sum = sum_of(logits, |x| exp(x - max));
    (f64::from(max) + sum.ln()) as f32
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
        let mut peaks = Vec::new();
        let (_, max) = if top > 0 { argmax_and_peaks(logits, &mut peaks) } else { argmax(logits) }?;
        let total = logsumexp_below(max, logits);
        let Some(logit) = logits.get(chosen as usize) else {
            return Err(Error::TokenOutOfRange { token: chosen, vocab: logits.len() });
        };
        let mut best = top_logits(logits, &peaks, top);
        best.iter_mut().for_each(|(_, x)| *x -= total);
        Ok(TokenLogprobs { chosen: logit - total, top: best })
    }
}

/// The `count` highest logits with their ids, best first, by selection and a sort of those alone; `-inf` come last.
fn top_logits(logits: &[f32], peaks: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let floor = reached_by(count, peaks, &mut Vec::new());
    let mut all = Vec::new();
    if floor > f32::NEG_INFINITY {
        list_from(floor, logits, peaks, |x| x, &mut all);
    } else {
        all.extend(logits.iter().enumerate().map(|(id, &x)| (id as u32, x)));
    }
    let order = |a: &(u32, f32), b: &(u32, f32)| descending(&a.1, &b.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
        all.shrink_to_fit();
    }
    all.sort_unstable_by(order);
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
