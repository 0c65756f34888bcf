//! A sampler and a logits processor of one's own: Mirostat, and a ban on repeated runs of tokens.
//!
//! `cargo run --release --example custom_sampler -- "Once upon a time"`

mod support;

use std::error::Error;
use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use rillm::generate::{Error as GenerateError, LogitsProcessor, Result, Rng, Sampler, log_softmax};

/// Keeps the surprise of tokens near a target (Mirostat 2.0; Basu et al. 2021, arXiv 2007.14966).
struct Mirostat {
    /// Wanted surprise, `-log2 p`, in bits a token.
    target: f32,
    /// Share of the error that is corrected in a step.
    rate: f32,
    /// Tokens more surprising than this are not drawn.
    most: f32,
    rng: Rng,
    step: u64,
}

impl Mirostat {
    fn new(target: f32, seed: u64) -> Self {
        Self { target, rate: 0.1, most: 2.0 * target, rng: Rng::new(seed), step: 0 }
    }
}

impl Sampler for Mirostat {
    fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        log_softmax(logits)?;
        let bits = |x: f32| -x / std::f32::consts::LN_2;
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The likeliest token may always be drawn.
        let seen = |x: f32| x == best || bits(x) <= self.most;
        let mass: f32 = logits.iter().filter(|x| seen(**x)).map(|x| x.exp()).sum();
        let mut left = mass * self.rng.uniform_f32(self.step, 0);
        let mut candidates = logits.iter().enumerate().filter(|(_, x)| seen(**x));
        let drawn = candidates.find(|(_, x)| {
            left -= x.exp();
            left < 0.0
        });
        // Rounding can leave a little mass: the likeliest token takes it.
        let likeliest = || logits.iter().enumerate().find(|(_, x)| **x == best);
        let (id, logprob) =
            drawn.or_else(likeliest).ok_or(GenerateError::NoCandidates { vocab: logits.len() })?;
        self.most -= self.rate * (bits(*logprob + mass.recip().ln()) - self.target);
        self.step += 1;
        Ok(id as u32)
    }
}

/// Bans the tokens that would repeat a run of `n` tokens, as transformers' `no_repeat_ngram_size`.
struct NoRepeat {
    n: usize,
}

impl LogitsProcessor for NoRepeat {
    fn process(&mut self, history: &[u32], logits: &mut [f32]) {
        let Some(start) = (history.len() + 1).checked_sub(self.n) else { return };
        let latest = &history[start..];
        for run in history.windows(self.n).filter(|run| run[..self.n - 1] == *latest) {
            if let Some(logit) = logits.get_mut(run[self.n - 1] as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Continue a text with Mirostat sampling.
#[derive(Parser)]
struct Args {
    /// The text
    #[arg(default_value = "Once upon a time")]
    prompt: String,
    #[command(flatten)]
    model: support::ModelArgs,
    /// Wanted surprise, in bits a token
    #[arg(long, default_value_t = 3.0)]
    target: f32,
    /// Runs of this many tokens do not repeat
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    no_repeat: u8,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> std::result::Result<(), Box<dyn Error>> {
    let lm = args.model.loader()?.load()?;
    let generation = lm.complete(args.prompt.as_str()).max_tokens(128);
    let generation = generation.sampler(Mirostat::new(args.target, args.seed));
    for piece in generation.processor(NoRepeat { n: usize::from(args.no_repeat) }).stream()? {
        write!(stdout(), "{}", piece?.text)?;
        stdout().flush()?;
    }
    println!();
    Ok(())
}
