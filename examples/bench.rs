//! Measures speed on random tokens: prefill, decode, and the share of this machine's read bandwidth.

mod support;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use rillm::generate::{Session, SharedSession, Want, Work, argmax};
use serde_json::json;

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
    /// Repetitions, of which medians are printed
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let lm = args.model.loader()?.context(args.prompt_tokens + args.gen_tokens).load()?;
    let meter = lm.bandwidth()?;
    let [mut ttft, mut prompt, mut generation, mut bandwidth] = [const { Vec::new() }; 4];
    for repeat in 0..args.repeats.max(1) {
        let (first, rest) = measure(args, &mut lm.session(), repeat)?;
        ttft.push(first);
        prompt.push((args.batch * args.prompt_tokens) as f64 / first);
        let tokens = args.batch * args.gen_tokens.saturating_sub(1);
        generation.push(if tokens == 0 { 0.0 } else { tokens as f64 / rest });
        bandwidth.extend(meter.as_ref().map(|m| m.pass()));
    }
    let info = lm.info();
    let (tps, read) = (median(generation), median(bandwidth));
    // A step reads the weights once for the whole batch.
    let share = tps / args.batch as f64 * info.weight_bytes as f64 / read;
    let known = |x: f64| (x.is_finite() && x > 0.0).then_some(x);
    let result = json!({
        "prompt_tps": median(prompt), "generation_tps": tps, "ttft_s": median(ttft),
        "load_s": info.load_time.as_secs_f64(), "peak_rss_bytes": rillm::peak_memory_bytes(),
        "weight_bytes_per_token": info.weight_bytes, "read_bandwidth_bytes_per_s": known(read),
        "floor_share": known(share), "threads": lm.threads(), "device": info.device, "batch": args.batch,
    });
    if args.json {
        println!("{result}");
    } else if let Some(figures) = result.as_object() {
        figures.iter().for_each(|(name, value)| println!("{name:28} {value}"));
    }
    Ok(())
}

/// Prefills a prompt for each sequence and decodes after them; returns the times of both in seconds.
fn measure(args: &Args, session: &mut SharedSession, repeat: usize) -> Result<(f64, f64)> {
    let vocab = session.vocab();
    let sequences: Vec<_> = (0..args.batch).map(|_| session.open()).collect();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64.wrapping_add(repeat as u64);
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % vocab as u64) as u32
    };
    let prompts: Vec<Vec<u32>> =
        sequences.iter().map(|_| (0..args.prompt_tokens).map(|_| random()).collect()).collect();
    let mut logits = Vec::new();
    let mut next = Vec::new();
    let started = Instant::now();
    for (&sequence, prompt) in sequences.iter().zip(&prompts) {
        let mut ahead = prompt.len();
        for tokens in prompt.chunks(512) {
            ahead -= tokens.len();
            let want = if ahead == 0 { Want::Last } else { Want::Nothing };
            session.step(&[Work { sequence, tokens, ahead, want }], &mut logits)?;
        }
        next.push(argmax(&logits)?.0);
    }
    let first = started.elapsed().as_secs_f64();
    for _ in 1..args.gen_tokens {
        let work = |(&sequence, token)| Work {
            sequence,
            tokens: std::slice::from_ref(token),
            ahead: 0,
            want: Want::Last,
        };
        let work: Vec<_> = sequences.iter().zip(&next).map(work).collect();
        session.step(&work, &mut logits)?;
        for (token, row) in next.iter_mut().zip(logits.chunks_exact(vocab)) {
            *token = argmax(row)?.0;
        }
    }
    let rest = started.elapsed().as_secs_f64() - first;
    sequences.into_iter().for_each(|s| session.close(s));
    Ok((first, rest))
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
