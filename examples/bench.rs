//! Measures speed on random tokens: prefill, decode, and the share of this machine's read bandwidth.

mod support;

use std::error::Error;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use clap::Parser;
use rillm::LanguageModel;
use rillm::generate::{Draw, Rng, Session, Want, Work};
use rillm::tensor::Sampling;
use serde_json::{Value, json};

/// Measure prefill and decode
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: support::BenchModelArgs,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to generate after it
    #[arg(long, default_value_t = 128)]
    gen_tokens: usize,
    /// Sequences at a time
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Several measurements with one model instead: PROMPT:GEN:BATCH,..
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["prompt_tokens", "gen_tokens", "batch"])]
    cases: Vec<Case>,
    /// Repetitions, of which medians are printed
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Draw tokens (temperature 0.7, of the best 40 with 0.9 of the mass) instead of taking the likeliest
    #[arg(long)]
    draw: bool,
    /// Print one JSON object a measurement
    #[arg(long)]
    json: bool,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What to measure: tokens of each prompt, tokens to generate after it, and sequences at a time.
#[derive(Clone, Copy)]
struct Case {
    prompt: usize,
    generate: usize,
    batch: usize,
}

impl FromStr for Case {
    type Err = Box<dyn Error + Send + Sync>;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let numbers: Vec<usize> = text.split(':').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [prompt, generate, batch] = numbers[..] else {
            return Err(format!("wanted PROMPT:GEN:BATCH, got {text}").into());
        };
        Ok(Self { prompt, generate, batch })
    }
}

/// What the repetitions of a case took.
#[derive(Clone, Default)]
struct Times {
    first: Vec<f64>,
    rest: Vec<f64>,
    /// Of the host while it decodes: handing over work, and waiting.
    submitting: Vec<f64>,
    waiting: Vec<f64>,
    peak_rss: Option<u64>,
}

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let mut cases = args.cases.clone();
    if cases.is_empty() {
        cases.push(Case { prompt: args.prompt_tokens, generate: args.gen_tokens, batch: args.batch });
    }
    let longest = cases.iter().map(|case| case.prompt + case.generate).max().unwrap_or(0);
    let lm = args.model.loader()?.context(longest.max(32)).load()?;
    let load_rss = rillm::peak_memory_bytes();
    // Pages and caches that the first tokens touch are not what is measured.
    measure(args, Case { prompt: 16, generate: 5, batch: 1 }, &lm, 0)?;
    let mut times = vec![Times::default(); cases.len()];
    let (mut meter, mut bandwidth) = (None, Vec::new());
    for repeat in 0..args.repeats.max(1) {
        for (&case, times) in cases.iter().zip(&mut times) {
            let [first, rest, submitting, waiting] = measure(args, case, &lm, repeat)?;
            times.first.push(first);
            times.rest.push(rest);
            times.submitting.push(submitting);
            times.waiting.push(waiting);
            times.peak_rss = times.peak_rss.or_else(rillm::peak_memory_bytes);
        }
        // Its buffer is as large as the weights: it must not count as the model's memory.
        if repeat == 0 {
            meter = lm.bandwidth()?;
        }
        bandwidth.extend(meter.as_ref().map(|m| m.pass()));
    }
    let (info, read) = (lm.info(), median(bandwidth));
    for (case, times) in cases.iter().zip(times) {
        let ttft = median(times.first);
        let tokens = case.batch * case.generate.saturating_sub(1);
        let known = |x: f64| (x.is_finite() && x > 0.0).then_some(x);
        // Microseconds of a step.
        let step = |seconds: f64| known(seconds * 1e6 / case.generate.saturating_sub(1).max(1) as f64);
        let (rest, submitting, waiting) =
            (median(times.rest), median(times.submitting), median(times.waiting));
        let building = if submitting > 0.0 { rest - submitting - waiting } else { 0.0 };
        let tps = if tokens == 0 { 0.0 } else { tokens as f64 / rest };
        // A step reads the weights once for the whole batch.
        let share = tps / case.batch as f64 * info.weight_bytes as f64 / read;
        print(
            args,
            &json!({
                "prompt_tokens": case.prompt, "prompt_tps": (case.batch * case.prompt) as f64 / ttft,
                "generation_tps": tps, "ttft_s": ttft, "load_s": info.load_time.as_secs_f64(),
                "load_rss_bytes": load_rss, "peak_rss_bytes": times.peak_rss,
                "weight_bytes_per_token": info.weight_bytes, "read_bandwidth_bytes_per_s": known(read),
                "floor_share": known(share), "step_building_us": step(building),
                "step_submitting_us": step(submitting), "step_waiting_us": step(waiting),
                "device_peak_bytes": lm.device_usage().map(|usage| usage.peak_bytes), "threads": lm.threads(), "device": info.device, "batch": case.batch,
            }),
        );
    }
    Ok(())
}

fn print(args: &Args, result: &Value) {
    if args.json {
        println!("{result}");
    } else if let Some(figures) = result.as_object() {
        figures.iter().for_each(|(name, value)| println!("{name:28} {value}"));
    }
}

/// Prefills a prompt for each sequence and decodes after them; returns the times of both in seconds, and how much of the
/// latter the host spent on handing work to a device and on waiting for it.
fn measure(args: &Args, case: Case, lm: &LanguageModel, repeat: usize) -> Result<[f64; 4]> {
    let how = Sampling { temperature: 0.7, tempered: true, top_p: 0.9, min_p: 0.0, top_k: 40 };
    let want = |step, sequence: usize| match args.draw {
        true => Want::Draw(Draw { how, rng: Rng::new(sequence as u64), step }),
        false => Want::Last,
    };
    let session = &mut lm.session();
    let vocab = session.vocab();
    let sequences: Vec<_> = (0..case.batch).map(|_| session.open()).collect();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64.wrapping_add(repeat as u64);
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % vocab as u64) as u32
    };
    let prompts: Vec<Vec<u32>> =
        sequences.iter().map(|_| (0..case.prompt).map(|_| random()).collect()).collect();
    let (mut logits, mut picked, mut next) = (Vec::new(), Vec::new(), Vec::new());
    let started = Instant::now();
    for (&sequence, prompt) in sequences.iter().zip(&prompts) {
        let mut ahead = prompt.len();
        for tokens in prompt.chunks(512) {
            ahead -= tokens.len();
            match ahead {
                0 => {
                    let want = want(0, sequence);
                    session.step_picking(&[Work { sequence, tokens, ahead, want }], &mut picked)?;
                }
                _ => session.step(&[Work { sequence, tokens, ahead, want: Want::Nothing }], &mut logits)?,
            }
        }
        next.append(&mut picked);
    }
    let first = started.elapsed().as_secs_f64();
    let before = lm.device_usage().unwrap_or_default();
    for step in 1..case.generate {
        let work = |(&sequence, token)| Work {
            sequence,
            tokens: std::slice::from_ref(token),
            ahead: 0,
            want: want(step as u64, sequence),
        };
        let work: Vec<_> = sequences.iter().zip(&next).map(work).collect();
        session.step_picking(&work, &mut picked)?;
        next.clone_from(&picked);
    }
    let rest = started.elapsed().as_secs_f64() - first;
    let after = lm.device_usage().unwrap_or_default();
    sequences.into_iter().for_each(|s| session.close(s));
    Ok([first, rest, after.submitting_s - before.submitting_s, after.waiting_s - before.waiting_s])
}

/// The middle of `values`, NaN if there are none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
