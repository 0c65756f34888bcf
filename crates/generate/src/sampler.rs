//! Draws the next token from its logits. What changes the logits by what was said before is a processor's.
//!
//! The filters have mlx-lm's formulas (`sample_utils.make_sampler`). Each keeps a list of candidates, which mostly is
//! a small part of the vocabulary.

use crate::candidates::{Candidates, Scores};
use crate::vocabulary::{argmax, argmax_and_peaks, block, exp, sums_of};
use crate::{Draw, Error, Result, Rng, Want};
use rillm_tensor_core::Sampling;
use serde::{Deserialize, Serialize};

/// Chooses the next token.
pub trait Sampler: Send {
    /// The token chosen from `logits: [vocab]`, which the processors have seen. They are never empty, and the
    /// sampler may overwrite them.
    ///
    /// # Errors
    /// [`Error::NanLogits`] if a logit is NaN or +inf, [`Error::NoCandidates`] if there is none above `-inf`.
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32>;

    /// What [`Session::step_picking`](crate::Session::step_picking) may pick in its place where nothing else wants the
    /// logits; `None` if it has to see them itself.
    fn want(&self) -> Option<Want> {
        None
    }

    /// Notes that a session picked in its place.
    fn picked(&mut self) {}
}

/// Always takes the most probable token; the lowest id wins ties.
#[derive(Debug, Clone, Copy, Default)]
pub struct Greedy;

impl Sampler for Greedy {
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        Ok(argmax(logits)?.0)
    }

    /// The most probable token.
    fn want(&self) -> Option<Want> {
        Some(Want::Last)
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
    candidates: Candidates,
    /// Masses of the vocabulary's blocks, where it is drawn from whole; kept from step to step.
    masses: Vec<f64>,
}

/// The draw of a step that XTC has; [`Chain::CHOICE`] is the other.
const XTC: u32 = 1;
/// Tokens among which a nucleus is looked for first.
const FEW: usize = 64;

impl Chain {
    /// The draw of a step that picks the token.
    pub(crate) const CHOICE: u32 = 0;

    /// A chain at its first token.
    ///
    /// # Errors
    /// As [`SamplerOptions::validate`].
    pub fn new(mut options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        options.xtc_exempt.sort_unstable();
        let rng = Rng::new(options.seed);
        Ok(Chain { options, rng, step: 0, candidates: Candidates::default(), masses: Vec::new() })
    }

    /// Finds the candidates among `logits`.
    ///
    /// Filters look at ratios of probabilities alone, so log-probabilities shifted by a constant do, and the
    /// normalization over the vocabulary is saved: the best token's is 0.
    fn filter(&mut self, logits: &[f32]) -> Result<f32> {
        let (_, max) = argmax_and_peaks(logits, &mut self.candidates.peaks)?;
        self.candidates.listed = false;
        let temperature = self.options.temperature;
        match self.options.order {
            SamplerOrder::MlxLm => {
                let all = Scores { logits, value: move |x| x - max };
                self.top_p(&all);
                self.min_p(&all);
                self.xtc(&all);
                self.candidates.keep_best(self.options.top_k, &all);
            }
            SamplerOrder::TemperatureFirst => {
                let all = Scores { logits, value: move |x| (x - max) / temperature };
                self.candidates.keep_best(self.options.top_k, &all);
                self.top_p(&all);
                self.min_p(&all);
                self.xtc(&all);
            }
        }
        Ok(max)
    }

    /// Drops the tokens with a mass of `top_p` or more strictly above them; those as probable as the last
    /// that is kept stay.
    fn top_p(&mut self, all: &Scores<'_, impl Fn(f32) -> f32>) {
        let p = f64::from(self.options.top_p);
        if p == 0.0 || p == 1.0 {
            return;
        }
        let total = self.candidates.mass(all);
        if !self.candidates.listed {
            // Mostly a few tokens are enough.
            let floor = self.candidates.floor_of_best(FEW, all);
            self.candidates.list(floor, all);
            if self.candidates.mass(all) < p * total {
                // All tokens below the floor together have less than the mass beyond the nucleus, so none of them
                // is in it; the margin is for rounding.
                let floor = ((1.0 - p) * total / all.logits.len() as f64).ln() - 0.01;
                self.candidates.listed = false;
                self.candidates.list(floor as f32, all);
            }
        }
        self.candidates.keep_nucleus(p * total);
    }

    /// Drops the tokens less probable than `min_p` times the best, whose value is still 0 here.
    fn min_p(&mut self, all: &Scores<'_, impl Fn(f32) -> f32>) {
        if self.options.min_p == 0.0 {
            return;
        }
        let (cut, least) = (self.options.min_p.ln(), self.options.min_tokens_to_keep);
        let floor = self.candidates.floor_of_best(least, all);
        self.candidates.list(cut.min(floor), all);
        // Both sets hold the most probable tokens, so the larger one is their union.
        if self.candidates.list.iter().filter(|c| c.1 >= cut).count() < least {
            self.candidates.keep_best(least, all);
        } else {
            self.candidates.list.retain(|c| c.1 >= cut);
        }
    }

    /// Excludes top choices: drops the tokens more probable than the least probable one above the threshold.
    fn xtc(&mut self, all: &Scores<'_, impl Fn(f32) -> f32>) {
        let options = &self.options;
        if self.rng.uniform_f64(self.step, XTC) >= f64::from(options.xtc_probability) {
            return;
        }
        let limit = f64::from(options.xtc_threshold) * self.candidates.mass(all);
        self.candidates.list(f32::NEG_INFINITY, all);
        let list = &mut self.candidates.list;
        let above = list.iter().map(|c| c.1).filter(|x| f64::from(exp(*x)) > limit);
        let cut = above.fold(f32::INFINITY, f32::min);
        list.retain(|(id, x)| *x <= cut || options.xtc_exempt.binary_search(id).is_ok());
    }

    /// A chain that makes draws like `draw`.
    pub(crate) fn plain(draw: &Draw) -> Self {
        let (options, rng) = (SamplerOptions::default(), draw.rng);
        Chain { options, rng, step: 0, candidates: Candidates::default(), masses: Vec::new() }
    }

    /// Makes `draw` from `logits: [vocab]`, whatever this chain drew before.
    pub(crate) fn draw(&mut self, draw: &Draw, logits: &mut [f32]) -> Result<u32> {
        let Sampling { temperature, tempered, top_p, min_p, top_k } = draw.how;
        let order = if tempered { SamplerOrder::TemperatureFirst } else { SamplerOrder::MlxLm };
        self.options = SamplerOptions { temperature, top_p, min_p, top_k, order, ..Default::default() };
        (self.rng, self.step) = (draw.rng, draw.step);
        self.sample(logits)
    }

    /// Draws by inverting the cumulative distribution in the order of the ids. `max` is the best logit.
    fn invert(&mut self, logits: &[f32], max: f32) -> u32 {
        let (order, temperature) = (self.options.order, self.options.temperature);
        let point = self.rng.uniform_f64(self.step, Self::CHOICE);
        if !self.candidates.listed {
            // In either order the temperature divides what is left of the shifted logits.
            let weight = move |x| exp((x - max) / temperature);
            let target = point * sums_of(logits, weight, &mut self.masses);
            let (chosen, below) = invert(target, 0.0, self.masses.iter().copied());
            let (first, block) = block(logits, chosen);
            let weights = block.iter().map(|x| f64::from(weight(*x)));
            return (first + invert(target, below, weights).0) as u32;
        }
        let temperature = if order == SamplerOrder::MlxLm { temperature } else { 1.0 };
        let list = &mut self.candidates.list;
        // XTC may have dropped the best: without a new maximum a low temperature could round all weights to 0.
        let max = list.iter().map(|c| c.1).fold(f32::NEG_INFINITY, f32::max);
        list.iter_mut().for_each(|c| c.1 = exp((c.1 - max) / temperature));
        let target = point * list.iter().map(|c| f64::from(c.1)).sum::<f64>();
        let (chosen, _) = invert(target, 0.0, list.iter().map(|c| f64::from(c.1)));
        list.get(chosen).map_or(0, |c| c.0)
    }
}

/// Where `weights`, added to `below` one by one, exceed `target`, and the sum before that. Sums that round differently
/// can miss a target at the very end: that is the last weight above 0.
fn invert(target: f64, below: f64, weights: impl Iterator<Item = f64>) -> (usize, f64) {
    let (mut sum, mut last) = (below, (0, below));
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = (i, sum);
        }
        sum += weight;
        if target < sum {
            break;
        }
    }
    last
}

impl Sampler for Chain {
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        if self.options.temperature == 0.0 {
            return Greedy.sample(logits);
        }
        let max = self.filter(logits)?;
        let token = self.invert(logits, max);
        self.step += 1;
        Ok(token)
    }

    /// A draw, unless there is something that sessions don't know.
    fn want(&self) -> Option<Want> {
        let SamplerOptions { temperature, top_p, min_p, top_k, order, .. } = self.options;
        if temperature == 0.0 {
            return Greedy.want();
        }
        let tempered = order == SamplerOrder::TemperatureFirst;
        let how = Sampling { temperature, tempered, top_p, min_p, top_k };
        let is_known = self.options.xtc_probability == 0.0 && self.options.min_tokens_to_keep == 1;
        is_known.then_some(Want::Draw(Draw { how, rng: self.rng, step: self.step }))
    }

    fn picked(&mut self) {
        self.step += 1;
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

    /// The values that the filters leave, `-inf` those that they drop.
    fn filtered(options: SamplerOptions, logits: &[f32]) -> Vec<f32> {
        let mut chain = Chain::new(options).unwrap();
        let max = chain.filter(logits).unwrap();
        let tempered = chain.options.order == SamplerOrder::TemperatureFirst;
        let temperature = if tempered { chain.options.temperature } else { 1.0 };
        chain.candidates.list(f32::NEG_INFINITY, &Scores { logits, value: |x| (x - max) / temperature });
        let mut filtered = vec![f32::NEG_INFINITY; logits.len()];
        chain.candidates.list.iter().for_each(|&(id, x)| filtered[id as usize] = x);
        filtered
    }

    /// Written by tests/vectors/sampling.py from mlx-lm's `make_sampler`.
    #[test]
    fn filters_agree_with_mlx_lm() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/vectors/filters.json")).unwrap();
        assert!(cases.len() >= 70);
        for case in cases {
            let filtered = filtered(case.options.clone(), &case.logits);
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
            let filtered = filtered(SamplerOptions { top_k: k, ..options(0) }, &logits);
            let mut want = order[..k.min(order.len())].to_vec();
            want.sort_unstable();
            assert_eq!(kept(&filtered), want, "top_k {k}");
        }
        let mut logprobs = logits.clone();
        log_softmax(&mut logprobs).unwrap();
        for top_p in [0.001, 0.2, 0.9, 0.9999] {
            let filtered = filtered(SamplerOptions { top_p, ..options(0) }, &logits);
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
