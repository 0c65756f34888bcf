//! Changes to the logits before sampling: bias and penalties. Which tokens may be drawn is the sampler's.
//!
//! The formulas and their order are mlx-lm's (`sample_utils.make_logits_processors`): logit bias, repetition,
//! presence, frequency.

use crate::vocabulary::is_tainted;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Changes the logits of the next token.
pub trait LogitsProcessor: Send {
    /// Changes `logits: [vocab]` in place; `history` is the prompt and what was generated so far.
    fn process(&mut self, history: &[u32], logits: &mut [f32]);
}

/// What [`processors`] builds; the defaults change nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorOptions {
    /// Added to the logits of these tokens; `-inf` bans one.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Divides positive and multiplies negative logits of recent tokens; 0 or 1 is off.
    pub repetition_penalty: f32,
    /// How many of the last tokens it looks at.
    pub repetition_context: usize,
    /// Taken from the logits of recent tokens; 0 is off.
    pub presence_penalty: f32,
    /// How many of the last tokens it looks at.
    pub presence_context: usize,
    /// Taken from the logits of recent tokens for each time they occur; 0 is off.
    pub frequency_penalty: f32,
    /// How many of the last tokens it looks at.
    pub frequency_context: usize,
}

/// mlx-lm's default context of the penalties.
const CONTEXT: usize = 20;

impl Default for ProcessorOptions {
    fn default() -> Self {
        ProcessorOptions {
            logit_bias: BTreeMap::new(),
            repetition_penalty: 0.0,
            repetition_context: CONTEXT,
            presence_penalty: 0.0,
            presence_context: CONTEXT,
            frequency_penalty: 0.0,
            frequency_context: CONTEXT,
        }
    }
}

impl ProcessorOptions {
    /// Checks that every value is one the processors can work with.
    ///
    /// # Errors
    /// [`Error::Option`] for a bias that is NaN or +inf, a repetition penalty that is negative or not finite,
    /// and another penalty that is not finite.
    pub fn validate(&self) -> Result<()> {
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| is_tainted(**bias)) {
            let got = format!("{bias} for token {id}");
            return Err(Error::Option { name: "logit_bias", want: "a finite number or -inf", got });
        }
        let repetition = self.repetition_penalty;
        if !(repetition.is_finite() && repetition >= 0.0) {
            let got = repetition.to_string();
            return Err(Error::Option { name: "repetition_penalty", want: "a finite number >= 0", got });
        }
        for (name, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !penalty.is_finite() {
                return Err(Error::Option { name, want: "a finite number", got: penalty.to_string() });
            }
        }
        Ok(())
    }
}

/// The processors that `options` asks for, in mlx-lm's order; none for the defaults.
///
/// # Errors
/// As [`ProcessorOptions::validate`].
pub fn processors(options: &ProcessorOptions) -> Result<Vec<Box<dyn LogitsProcessor>>> {
    options.validate()?;
    let mut chain: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    if !options.logit_bias.is_empty() {
        chain.push(Box::new(LogitBias::new(options.logit_bias.iter().map(|(&id, &bias)| (id, bias)))));
    }
    let penalty = options.repetition_penalty;
    if penalty != 0.0 && penalty != 1.0 {
        chain.push(Box::new(RepetitionPenalty::new(penalty, options.repetition_context)));
    }
    if options.presence_penalty != 0.0 {
        chain.push(Box::new(PresencePenalty::new(options.presence_penalty, options.presence_context)));
    }
    if options.frequency_penalty != 0.0 {
        chain.push(Box::new(FrequencyPenalty::new(options.frequency_penalty, options.frequency_context)));
    }
    Ok(chain)
}

/// Adds a constant to the logits of given tokens.
#[derive(Debug, Clone)]
pub struct LogitBias {
    biases: Vec<(u32, f32)>,
}

impl LogitBias {
    /// Adds each bias to the logit of its token; tokens outside the vocabulary are passed over.
    pub fn new(biases: impl IntoIterator<Item = (u32, f32)>) -> Self {
        LogitBias { biases: biases.into_iter().collect() }
    }
}

impl LogitsProcessor for LogitBias {
    fn process(&mut self, _history: &[u32], logits: &mut [f32]) {
        for &(id, bias) in &self.biases {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }
}

/// Makes recent tokens less likely by a factor (CTRL, arXiv 1909.05858): logits below 0 are multiplied by the
/// penalty, others divided by it, once for each distinct token.
#[derive(Debug, Clone)]
pub struct RepetitionPenalty {
    penalty: f32,
    recent: Recent,
}

impl RepetitionPenalty {
    /// Penalizes the last `context` tokens by the factor `penalty`, which is above 0.
    pub fn new(penalty: f32, context: usize) -> Self {
        RepetitionPenalty { penalty, recent: Recent::new(context) }
    }
}

impl LogitsProcessor for RepetitionPenalty {
    fn process(&mut self, history: &[u32], logits: &mut [f32]) {
        for &id in self.recent.distinct(history) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * self.penalty } else { *logit / self.penalty };
            }
        }
    }
}

/// Takes a constant from the logits of recent tokens, once for each distinct token.
#[derive(Debug, Clone)]
pub struct PresencePenalty {
    penalty: f32,
    recent: Recent,
}

impl PresencePenalty {
    /// Takes `penalty` from the logits of the last `context` tokens.
    pub fn new(penalty: f32, context: usize) -> Self {
        PresencePenalty { penalty, recent: Recent::new(context) }
    }
}

impl LogitsProcessor for PresencePenalty {
    fn process(&mut self, history: &[u32], logits: &mut [f32]) {
        for &id in self.recent.distinct(history) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= self.penalty;
            }
        }
    }
}

/// Takes a constant from the logits of recent tokens for each time they occur.
#[derive(Debug, Clone)]
pub struct FrequencyPenalty {
    penalty: f32,
    context: usize,
}

impl FrequencyPenalty {
    /// Takes `penalty` from a logit for each occurrence of its token among the last `context`.
    pub fn new(penalty: f32, context: usize) -> Self {
        FrequencyPenalty { penalty, context }
    }
}

impl LogitsProcessor for FrequencyPenalty {
    fn process(&mut self, history: &[u32], logits: &mut [f32]) {
        for &id in last(history, self.context) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= self.penalty;
            }
        }
    }
}

/// The distinct tokens among the last ones; keeps its buffer from step to step.
#[derive(Debug, Clone)]
struct Recent {
    context: usize,
    distinct: Vec<u32>,
}

impl Recent {
    fn new(context: usize) -> Self {
        Recent { context, distinct: Vec::new() }
    }

    fn distinct(&mut self, history: &[u32]) -> &[u32] {
        self.distinct.clear();
        self.distinct.extend_from_slice(last(history, self.context));
        self.distinct.sort_unstable();
        self.distinct.dedup();
        &self.distinct
    }
}

fn last(history: &[u32], context: usize) -> &[u32] {
    &history[history.len().saturating_sub(context)..]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        history: Vec<u32>,
        logits: Vec<f32>,
        options: ProcessorOptions,
        processed: Vec<f32>,
    }

    /// Written by tests/vectors/sampling.py from mlx-lm's `make_logits_processors`.
    #[test]
    fn agrees_with_mlx_lm() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../tests/vectors/processors.json")).unwrap();
        assert!(cases.len() >= 8);
        for (i, case) in cases.into_iter().enumerate() {
            let mut logits = case.logits;
            for mut processor in processors(&case.options).unwrap() {
                processor.process(&case.history, &mut logits);
            }
            for (got, want) in logits.iter().zip(&case.processed) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "case {i}: {got} for {want}");
            }
        }
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_passed_over() {
        let options = ProcessorOptions {
            logit_bias: [(1, 1.0), (u32::MAX, 5.0)].into(),
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..Default::default()
        };
        let mut logits = [4.0, 3.0];
        for mut processor in processors(&options).unwrap() {
            processor.process(&[9, 1, u32::MAX, 1], &mut logits);
        }
        assert_eq!(logits, [4.0, (3.0 + 1.0) / 2.0 - 0.5 - 2.0 * 0.25]);
    }

    #[test]
    fn defaults_are_no_processors_and_bad_values_are_errors() {
        assert!(processors(&ProcessorOptions::default()).unwrap().is_empty());
        assert_eq!(serde_json::from_str::<ProcessorOptions>("{}").unwrap(), ProcessorOptions::default());
        let ok = ProcessorOptions::default;
        for (name, bad) in [
            ("logit_bias", ProcessorOptions { logit_bias: [(3, f32::NAN)].into(), ..ok() }),
            ("logit_bias", ProcessorOptions { logit_bias: [(3, f32::INFINITY)].into(), ..ok() }),
            ("repetition_penalty", ProcessorOptions { repetition_penalty: -1.0, ..ok() }),
            ("repetition_penalty", ProcessorOptions { repetition_penalty: f32::NAN, ..ok() }),
            ("presence_penalty", ProcessorOptions { presence_penalty: f32::NAN, ..ok() }),
            ("frequency_penalty", ProcessorOptions { frequency_penalty: f32::INFINITY, ..ok() }),
        ] {
            let got = processors(&bad).err();
            assert!(matches!(got, Some(Error::Option { name: n, .. }) if n == name), "{name}: {got:?}");
        }
    }
}
