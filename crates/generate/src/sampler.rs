//! Draws the next token from its logits. What changes the logits by what was said before is a processor's.
//!
//! The filters have mlx-lm's formulas (`sample_utils.make_sampler`) and mask in place with `-inf`.

use crate::logprobs::{argmax, descending, exp, sum_of};
use crate::{Error, Result, Rng};
use serde::{Deserialize, Serialize};

/// Chooses the next token.
pub trait Sampler: Send {
    /// The token chosen from `logits: [vocab]`, which the processors have seen. They are never empty, and the
    /// sampler may overwrite them.
    ///
    /// # Errors
    /// [`Error::NanLogits`] if a logit is NaN or +inf, [`Error::NoCandidates`] if there is none above `-inf`.
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32>;
}

/// Always takes the most probable token; the lowest id wins ties.
#[derive(Debug, Clone, Copy, Default)]
pub struct Greedy;

impl Sampler for Greedy {
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        Ok(argmax(logits)?.0)
    }
}

/// When the temperature applies, which decides what the filters see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerOrder {
    /// mlx-lm's: top-p, min-p, XTC, top-k, temperature, draw. The filters see the model's distribution.
    #[default]
    MlxLm,
    /// Temperature, top-k, top-p, min-p, XTC, draw, as transformers orders those of them that it has. The
    /// filters see the tempered distribution.
    TemperatureFirst,
}

/// How [`sampler`] chooses tokens; the defaults are mlx-lm's, which is greedy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerOptions {
    /// Divides the logits; at 0 the most probable token is taken and nothing below matters.
    pub temperature: f32,
    /// Keeps the most probable tokens whose mass reaches this part of the whole; 0 and 1 are off.
    pub top_p: f32,
    /// Keeps tokens at least this times as probable as the best one; 0 is off.
    pub min_p: f32,
    /// How many tokens `min_p` leaves at least.
    pub min_tokens_to_keep: usize,
    /// Keeps this many of the most probable tokens, the lowest ids of equal ones; 0 and anything from the
    /// size of the vocabulary on are off.
    pub top_k: usize,
    /// How likely a step is to exclude top choices (XTC); 0 is off.
    pub xtc_probability: f32,
    /// XTC masks all tokens above this probability but the least probable of them.
    pub xtc_threshold: f32,
    /// Tokens that XTC never masks: the newline and those that end a text.
    pub xtc_exempt: Vec<u32>,
    /// Seed of the draws: the same seed gives the same tokens.
    pub seed: u64,
    /// When the temperature applies.
    pub order: SamplerOrder,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.0,
            top_p: 0.0,
            min_p: 0.0,
            min_tokens_to_keep: 1,
            top_k: 0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            xtc_exempt: Vec::new(),
            seed: 0,
            order: SamplerOrder::MlxLm,
        }
    }
}

impl SamplerOptions {
    /// Checks that every value lies in its range.
    ///
    /// # Errors
    /// [`Error::Option`] for the first that does not.
    pub fn validate(&self) -> Result<()> {
        let wrong = |name, want, got: String| Err(Error::Option { name, want, got });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", "a finite number >= 0", self.temperature.to_string());
        }
        let parts = [("top_p", self.top_p), ("min_p", self.min_p), ("xtc_probability", self.xtc_probability)];
        for (name, value) in parts {
            if !(0.0..=1.0).contains(&value) {
                return wrong(name, "a number from 0 to 1", value.to_string());
            }
        }
        if !(0.0..=0.5).contains(&self.xtc_threshold) {
            return wrong("xtc_threshold", "a number from 0 to 0.5", self.xtc_threshold.to_string());
        }
        if self.min_tokens_to_keep == 0 {
            return wrong("min_tokens_to_keep", "a number >= 1", "0".to_owned());
        }
        Ok(())
    }
}

/// The sampler that `options` asks for: [`Greedy`] at temperature 0, else a [`Chain`].
///
/// # Errors
/// As [`SamplerOptions::validate`].
pub fn sampler(options: SamplerOptions) -> Result<Box<dyn Sampler>> {
    let chain = Chain::new(options)?;
    Ok(if chain.options.temperature == 0.0 { Box::new(Greedy) } else { Box::new(chain) })
}

/// Filters, then a draw from what they leave. Each request has its own: the draws follow from the seed and
/// the number of tokens sampled so far.
#[derive(Debug, Clone)]
pub struct Chain {
    options: SamplerOptions,
    rng: Rng,
    step: u64,
    /// Values that a filter selects from; kept from step to step.
    selected: Vec<f32>,
}

/// Draws of one step.
const CHOICE: u32 = 0;
const XTC: u32 = 1;

impl Chain {
    /// A chain at its first token.
    ///
    /// # Errors
    /// As [`SamplerOptions::validate`].
    pub fn new(mut options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        options.xtc_exempt.sort_unstable();
        let rng = Rng::new(options.seed);
        Ok(Chain { options, rng, step: 0, selected: Vec::new() })
    }

    /// Masks what the filters exclude; the rest becomes relative to the best, whose value is 0.
    ///
    /// Filters look at ratios of probabilities alone, so log-probabilities shifted by a constant do, and the
    /// normalization over the vocabulary is saved.
    fn filter(&mut self, logits: &mut [f32]) -> Result<()> {
        let (_, max) = argmax(logits)?;
        logits.iter_mut().for_each(|x| *x -= max);
        match self.options.order {
            SamplerOrder::MlxLm => {
                self.top_p(logits);
                self.min_p(logits);
                self.xtc(logits);
                self.top_k(logits, self.options.top_k);
            }
            SamplerOrder::TemperatureFirst => {
                logits.iter_mut().for_each(|x| *x /= self.options.temperature);
                self.top_k(logits, self.options.top_k);
                self.top_p(logits);
                self.min_p(logits);
                self.xtc(logits);
            }
        }
        Ok(())
    }

    /// Drops the tokens with a mass of `top_p` or more strictly above them; those as probable as the last
    /// that is kept stay.
    fn top_p(&mut self, logits: &mut [f32]) {
        let p = self.options.top_p;
        if p > 0.0 && p < 1.0 {
            let cut = self.nucleus_cut(logits, f64::from(p) * sum_of(logits, exp));
            logits.iter_mut().filter(|x| **x < cut).for_each(|x| *x = f32::NEG_INFINITY);
        }
    }

    /// The lowest value among the best that reach the mass `limit`. Looks at ever more of the best, because
    /// they mostly are a small part of the vocabulary.
    fn nucleus_cut(&mut self, logits: &[f32], limit: f64) -> f32 {
        let mut count = 64;
        loop {
            self.select_best(logits, count);
            self.selected.sort_unstable_by(descending);
            let mut mass = 0.0;
            for &x in &self.selected {
                mass += f64::from(exp(x));
                if mass >= limit {
                    return x;
                }
            }
            if count >= logits.len() {
                return f32::NEG_INFINITY;
            }
            count *= 8;
        }
    }

    /// Drops the tokens less probable than `min_p` times the best, whose value is still 0 here.
    fn min_p(&mut self, logits: &mut [f32]) {
        if self.options.min_p == 0.0 {
            return;
        }
        let cut = self.options.min_p.ln();
        let kept = logits.iter().filter(|x| **x >= cut).count();
        // Both sets hold the most probable tokens, so the larger one is their union.
        if kept < self.options.min_tokens_to_keep {
            self.top_k(logits, self.options.min_tokens_to_keep);
        } else {
            logits.iter_mut().filter(|x| **x < cut).for_each(|x| *x = f32::NEG_INFINITY);
        }
    }

    /// Excludes top choices: drops the tokens more probable than the least probable one above the threshold.
    fn xtc(&mut self, logits: &mut [f32]) {
        let options = &self.options;
        if self.rng.uniform_f64(self.step, XTC) >= f64::from(options.xtc_probability) {
            return;
        }
        let limit = f64::from(options.xtc_threshold) * sum_of(logits, exp);
        let above = logits.iter().filter(|x| f64::from(exp(**x)) > limit);
        let cut = above.copied().fold(f32::INFINITY, f32::min);
        for (id, x) in logits.iter_mut().enumerate() {
            if *x > cut && options.xtc_exempt.binary_search(&(id as u32)).is_err() {
                *x = f32::NEG_INFINITY;
            }
        }
    }

    /// Keeps the `k` most probable tokens, the lowest ids of equal ones.
    fn top_k(&mut self, logits: &mut [f32], k: usize) {
        if k == 0 || k >= logits.len() {
            return;
        }
        self.select_best(logits, k);
        if k >= self.selected.len() {
            return;
        }
        let (above, &mut cut, _) = self.selected.select_nth_unstable_by(k - 1, descending);
        let mut ties = k - above.iter().filter(|x| **x > cut).count();
        for x in logits {
            let tie = *x == cut && ties > 0;
            ties -= usize::from(tie);
            if *x <= cut && !tie {
                *x = f32::NEG_INFINITY;
            }
        }
    }

    /// Collects all values from some bound on that are not masked, the `count` highest among them.
    fn select_best(&mut self, logits: &[f32], count: usize) {
        let bound = self.lower_bound(logits, count);
        self.selected.clear();
        self.selected.extend(logits.iter().filter(|x| **x >= bound && **x > f32::NEG_INFINITY));
    }

    /// A value that at least `count` values reach, close to the `count`-th highest: the `count`-th highest of
    /// the maxima of groups. It saves selecting from the whole vocabulary.
    fn lower_bound(&mut self, logits: &[f32], count: usize) -> f32 {
        let groups = count.saturating_mul(8).max(256);
        if groups > logits.len() / 2 {
            return f32::NEG_INFINITY;
        }
        let (first, rest) = logits.split_at(groups);
        self.selected.clear();
        self.selected.extend_from_slice(first);
        for row in rest.chunks(groups) {
            for (max, &x) in self.selected.iter_mut().zip(row) {
                *max = if x > *max { x } else { *max };
            }
        }
        *self.selected.select_nth_unstable_by(count - 1, descending).1
    }

    /// Draws by inverting the cumulative distribution in the order of the ids.
    fn draw(&self, logits: &mut [f32]) -> u32 {
        let temperature = match self.options.order {
            SamplerOrder::MlxLm => self.options.temperature,
            SamplerOrder::TemperatureFirst => 1.0,
        };
        // XTC may have masked the best: without a new maximum a low temperature could round all weights to 0.
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter_mut().for_each(|x| *x = exp((*x - max) / temperature));
        let target = self.rng.uniform_f64(self.step, CHOICE) * sum_of(logits, |weight| weight);
        let mut below = 0.0;
        let found = logits.iter().position(|&weight| {
            below += f64::from(weight);
            target < below
        });
        // The two sums round differently, so a target at the very end can miss.
        found.or_else(|| logits.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0) as u32
    }
}

impl Sampler for Chain {
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        if self.options.temperature == 0.0 {
            return Greedy.sample(logits);
        }
        self.filter(logits)?;
        let token = self.draw(logits);
        self.step += 1;
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    //! Against mlx-lm's filters, and against the distribution that is drawn from.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::logprobs::log_softmax;

    #[derive(Deserialize)]
    struct Case {
        options: SamplerOptions,
        logits: Vec<f32>,
        /// What the draw sees; `None` is masked.
        logprobs: Vec<Option<f32>>,
    }

    /// Written by tests/vectors/sampling.py from mlx-lm's `make_sampler`.
    #[test]
    fn filters_agree_with_mlx_lm() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/vectors/filters.json")).unwrap();
        assert!(cases.len() >= 70);
        for case in cases {
            let mut filtered = case.logits.clone();
            Chain::new(case.options.clone()).unwrap().filter(&mut filtered).unwrap();
            let mut logprobs = case.logits;
            if case.options.order == SamplerOrder::TemperatureFirst {
                logprobs.iter_mut().for_each(|x| *x /= case.options.temperature);
            }
            log_softmax(&mut logprobs).unwrap();
            let best = argmax(&logprobs).unwrap().1;
            for (id, want) in case.logprobs.iter().enumerate() {
                let want = want.unwrap_or(f32::NEG_INFINITY);
                let got = filtered[id] + best;
                assert!(
                    got == want || (got - want).abs() < 1e-5,
                    "token {id}: {got} for {want}, {:?}",
                    case.options
                );
            }
        }
    }

    fn options(seed: u64) -> SamplerOptions {
        SamplerOptions { temperature: 1.0, seed, ..Default::default() }
    }

    /// A vocabulary of the size of a real one, with the odd value repeated.
    fn many_logits() -> Vec<f32> {
        let rng = Rng::new(3);
        (0..50_000).map(|i| (rng.uniform_f32(i, 0) * 4000.0).round() / 200.0).collect()
    }

    fn kept(logits: &[f32]) -> Vec<usize> {
        (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn selection_agrees_with_a_full_sort() {
        let logits = many_logits();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        for k in [1, 2, 40, 5000, 49_999, 50_000, 60_000] {
            let mut filtered = logits.clone();
            Chain::new(SamplerOptions { top_k: k, ..options(0) }).unwrap().filter(&mut filtered).unwrap();
            let mut want = order[..k.min(order.len())].to_vec();
            want.sort_unstable();
            assert_eq!(kept(&filtered), want, "top_k {k}");
        }
        let mut logprobs = logits.clone();
        log_softmax(&mut logprobs).unwrap();
        for top_p in [0.001, 0.2, 0.9, 0.9999] {
            let mut filtered = logits.clone();
            Chain::new(SamplerOptions { top_p, ..options(0) }).unwrap().filter(&mut filtered).unwrap();
            let kept = kept(&filtered);
            let mass: f64 = kept.iter().map(|&i| f64::from(logprobs[i]).exp()).sum();
            let lowest = kept.iter().map(|&i| logits[i]).fold(f32::INFINITY, f32::min);
            let without: f64 =
                kept.iter().filter(|&&i| logits[i] > lowest).map(|&i| f64::from(logprobs[i]).exp()).sum();
            assert!(mass >= f64::from(top_p) - 1e-5 && without < f64::from(top_p) + 1e-5, "top_p {top_p}");
            assert_eq!(kept.len(), logits.iter().filter(|x| **x >= lowest).count(), "ties stay together");
        }
    }

    /// Pearson's statistic of `draws` samples against `probabilities`.
    fn chi_square(chain: &mut Chain, logits: &[f32], probabilities: &[f64]) -> f64 {
        let draws = 100_000;
        let mut counts = vec![0u32; logits.len()];
        let mut buffer = Vec::new();
        for _ in 0..draws {
            buffer.clear();
            buffer.extend_from_slice(logits);
            counts[chain.sample(&mut buffer).unwrap() as usize] += 1;
        }
        let mut statistic = 0.0;
        for (&count, &p) in counts.iter().zip(probabilities) {
            let expected = p * f64::from(draws);
            if p == 0.0 {
                assert_eq!(count, 0, "a masked token was drawn");
            } else {
                statistic += (f64::from(count) - expected).powi(2) / expected;
            }
        }
        statistic
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    /// The 99.9% quantiles of chi-square with 7 and 3 degrees of freedom are 24.32 and 16.27.
    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.3, -1.2, 2.0, f32::NEG_INFINITY, 0.9, 1.5, -0.4, 0.0, 1.1];
        let mut chain = Chain::new(SamplerOptions { temperature: 0.8, ..options(42) }).unwrap();
        assert!(chi_square(&mut chain, &logits, &softmax(&logits, 0.8)) < 24.32);

        // The nucleus of 0.75 at temperature 1 is {2, 5, 8, 4}: 0.36 + 0.22 + 0.15 + 0.12.
        let mut chain = Chain::new(SamplerOptions { top_p: 0.75, temperature: 1.5, ..options(43) }).unwrap();
        let nucleus = logits.map(|x| if x > 0.5 { x } else { f32::NEG_INFINITY });
        assert!(chi_square(&mut chain, &logits, &softmax(&nucleus, 1.5)) < 16.27);
    }

    #[test]
    fn xtc_applies_with_its_probability() {
        let logits = [2.0, 1.9, 0.0, -1.0];
        let xtc = SamplerOptions { xtc_probability: 0.25, xtc_threshold: 0.2, ..options(9) };
        let mut chain = Chain::new(xtc.clone()).unwrap();
        // Token 0 is masked in a quarter of the steps.
        let (plain, masked) = (softmax(&logits, 1.0), softmax(&[f32::NEG_INFINITY, 1.9, 0.0, -1.0], 1.0));
        let mixed: Vec<f64> = plain.iter().zip(&masked).map(|(p, m)| 0.75 * p + 0.25 * m).collect();
        assert!(chi_square(&mut chain, &logits, &mixed) < 16.27);

        // A low temperature after the best was masked: the draw falls to the second.
        let mut chain =
            Chain::new(SamplerOptions { xtc_probability: 1.0, temperature: 1e-4, ..xtc.clone() }).unwrap();
        assert_eq!(chain.sample(&mut logits.clone()).unwrap(), 1);
        let exempt =
            SamplerOptions { xtc_probability: 1.0, temperature: 1e-4, xtc_exempt: vec![7, 0], ..xtc };
        assert_eq!(Chain::new(exempt).unwrap().sample(&mut logits.clone()).unwrap(), 0);
    }

    #[test]
    fn a_stream_depends_on_its_seed_alone() {
        let logits = many_logits();
        let stream = |chain: &mut Chain, n: usize| -> Vec<u32> {
            (0..n).map(|_| chain.sample(&mut logits.clone()).unwrap()).collect()
        };
        let new = |seed| Chain::new(options(seed)).unwrap();
        let (alone, other) = (stream(&mut new(1), 12), stream(&mut new(2), 12));
        assert_ne!(alone, other);
        // The same two interleaved, as in a batch that one of them joins late.
        let (mut a, mut b) = (new(1), new(2));
        let mut together = stream(&mut a, 5);
        let mut beside = Vec::new();
        for _ in 0..7 {
            beside.extend(stream(&mut b, 1));
            together.extend(stream(&mut a, 1));
        }
        beside.extend(stream(&mut b, 5));
        assert_eq!((together, beside), (alone, other));
    }

    #[test]
    fn temperature_zero_is_greedy_and_skips_the_filters() {
        let cold =
            SamplerOptions { top_p: 0.1, xtc_probability: 1.0, xtc_threshold: 0.0, ..Default::default() };
        let logits = [1.0, 5.0, 5.0, 2.0];
        for mut greedy in
            [sampler(cold.clone()).unwrap(), Box::new(Chain::new(cold).unwrap()), Box::new(Greedy)]
        {
            assert_eq!(greedy.sample(&mut logits.clone()).unwrap(), 1);
        }
        // Temperatures near 0 must not divide to NaN.
        for order in [SamplerOrder::MlxLm, SamplerOrder::TemperatureFirst] {
            let near = SamplerOptions { temperature: 1e-45, top_p: 0.9, min_p: 0.1, order, ..options(0) };
            assert!([1, 2].contains(&sampler(near).unwrap().sample(&mut logits.clone()).unwrap()));
        }
    }

    #[test]
    fn logits_without_a_choice_are_errors() {
        for options in [options(0), SamplerOptions::default()] {
            let mut sampler = sampler(options).unwrap();
            let nan = sampler.sample(&mut [0.0, 1.0, f32::NAN]);
            assert!(matches!(nan, Err(Error::NanLogits { index: 2 })));
            assert!(matches!(sampler.sample(&mut [0.0, f32::INFINITY]), Err(Error::NanLogits { index: 1 })));
            let masked = sampler.sample(&mut [f32::NEG_INFINITY; 3]);
            assert!(matches!(masked, Err(Error::NoCandidates { vocab: 3 })));
            assert!(matches!(sampler.sample(&mut []), Err(Error::NoCandidates { vocab: 0 })));
            assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, -3.0]).unwrap(), 1);
        }
    }

    #[test]
    fn options_out_of_range_are_errors() {
        let ok = || options(0);
        for (name, bad) in [
            ("temperature", SamplerOptions { temperature: -0.1, ..ok() }),
            ("temperature", SamplerOptions { temperature: f32::NAN, ..ok() }),
            ("temperature", SamplerOptions { temperature: f32::INFINITY, ..ok() }),
            ("top_p", SamplerOptions { top_p: 1.1, ..ok() }),
            ("top_p", SamplerOptions { top_p: f32::NAN, ..ok() }),
            ("min_p", SamplerOptions { min_p: -0.1, ..ok() }),
            ("min_tokens_to_keep", SamplerOptions { min_tokens_to_keep: 0, ..ok() }),
            ("xtc_probability", SamplerOptions { xtc_probability: 2.0, ..ok() }),
            ("xtc_threshold", SamplerOptions { xtc_threshold: 0.6, ..ok() }),
        ] {
            let got = sampler(bad).err();
            assert!(matches!(got, Some(Error::Option { name: n, .. }) if n == name), "{name}: {got:?}");
        }
    }

    #[test]
    fn options_read_from_json_default_to_mlx_lm() {
        assert_eq!(serde_json::from_str::<SamplerOptions>("{}").unwrap(), SamplerOptions::default());
        let read: SamplerOptions =
            serde_json::from_str(r#"{"temperature": 0.7, "top_k": 40, "order": "temperature_first"}"#)
                .unwrap();
        let want = SamplerOptions {
            temperature: 0.7,
            top_k: 40,
            order: SamplerOrder::TemperatureFirst,
            ..Default::default()
        };
        assert_eq!(read, want);
        assert_eq!(
            serde_json::from_str::<SamplerOptions>(&serde_json::to_string(&want).unwrap()).unwrap(),
            want
        );
    }
}
