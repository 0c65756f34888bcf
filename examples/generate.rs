//! Generates text from a prompt: the main job. Text goes to stdout, everything else to stderr.

mod support;

use std::error::Error;
use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use indicatif::ProgressBar;
use rillm::generate::ProcessorOptions;
use rillm::{Completion, Generation, LanguageModel, SamplerOptions};
use serde_json::Value;

/// Generate text from a prompt
#[derive(Parser)]
struct Args {
    /// What to ask the model
    #[arg(default_value = "Why is the sky blue?")]
    prompt: String,
    #[command(flatten)]
    model: support::ModelArgs,
    /// The most tokens to generate
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Temperature; 0 picks the likeliest token [default: 0]
    #[arg(long)]
    temp: Option<f32>,
    /// Keep the likeliest tokens of this mass
    #[arg(long)]
    top_p: Option<f32>,
    /// Keep so many of the likeliest tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Keep tokens at least this likely, relative to the likeliest
    #[arg(long)]
    min_p: Option<f32>,
    /// Seed of the random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue the prompt as it is, without chat template
    #[arg(long)]
    raw: bool,
    /// Go on past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Take temperature, top-p and so on from the model's generation_config.json where no option says
    #[arg(long)]
    use_generation_config: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let lm = args.model.loader()?.load()?;
    let bar = ProgressBar::no_length().with_message("reading the prompt");
    let shown = bar.clone();
    let mut stream = generation(args, &lm)?
        .on_progress(move |p| {
            shown.set_length(p.total as u64);
            shown.set_position(p.done as u64);
            if p.done == p.total {
                shown.finish_and_clear();
            }
        })
        .stream()?;
    let mut done = Completion::default();
    for piece in &mut stream {
        let piece = piece?;
        done.tokens.extend(piece.token.map(|t| t.id));
        if args.json {
            done.text.push_str(&piece.text);
        } else {
            write!(stdout(), "{}", piece.text)?;
            stdout().flush()?;
        }
    }
    done.finish_reason = stream.finish_reason();
    done.statistics = stream.statistics();
    if args.json {
        println!("{}", serde_json::to_string(&done)?);
    } else {
        println!();
    }
    let s = done.statistics;
    if !lm.info().left_out.is_empty() {
        eprintln!("left out: {}", lm.info().left_out.join(", "));
    }
    eprintln!("{} on {}, loaded in {:.2} s", lm.info().model_type, lm.info().device, s.load_s);
    eprintln!(
        "prompt: {} tokens, {:.1} tokens/s, first token after {:.3} s",
        s.prompt_tokens, s.prompt_tps, s.ttft_s
    );
    let bytes = s.weight_bytes_per_token as f64 / 1e6;
    let peak = s.peak_memory_bytes.map_or_else(|| "unknown".into(), |b| format!("{:.0} MB", b as f64 / 1e6));
    eprintln!(
        "generation: {} tokens, {:.1} tokens/s, {bytes:.1} MB of weights a token, peak memory {peak}",
        s.generated_tokens, s.generation_tps
    );
    if let Some(d) = s.device {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let (active, peak, cached) = (mb(d.active_bytes), mb(d.peak_bytes), mb(d.cached_bytes));
        eprintln!("MLX: {active:.0} MB in use, {peak:.0} MB at most, {cached:.0} MB kept for reuse");
    }
    Ok(())
}

fn generation(args: &Args, lm: &LanguageModel) -> Result<Generation, Box<dyn Error>> {
    let config = if args.use_generation_config { lm.generation_config() } else { None };
    let number = |key: &str| config.and_then(|c| c.get(key)).and_then(Value::as_f64).map(|x| x as f32);
    let sampled = config.is_none_or(|c| c.get("do_sample").and_then(Value::as_bool).unwrap_or(true));
    let sampling = SamplerOptions {
        temperature: args.temp.or(number("temperature").filter(|_| sampled)).unwrap_or(0.0),
        top_p: args.top_p.or(number("top_p")).unwrap_or(0.0),
        top_k: args.top_k.or(number("top_k").map(|k| k as usize)).unwrap_or(0),
        min_p: args.min_p.or(number("min_p")).unwrap_or(0.0),
        seed: args.seed,
        ..SamplerOptions::default()
    };
    let repetition_penalty = number("repetition_penalty").unwrap_or(1.0);
    let penalties = ProcessorOptions { repetition_penalty, ..ProcessorOptions::default() };
    let g = if args.raw { lm.complete(args.prompt.as_str()) } else { lm.chat(args.prompt.as_str()) };
    let g = g.max_tokens(args.max_tokens).sampling(sampling).penalties(penalties);
    Ok(if args.ignore_eos { g.ignore_eos() } else { g })
}
