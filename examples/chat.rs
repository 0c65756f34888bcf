//! A chat in the terminal that keeps its cache: each turn runs only the tokens that the turn before has not seen.
//!
//! `cargo run --release --example chat`; lines come from stdin, answers go to stdout, everything else to stderr.

mod support;

use std::error::Error;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::process::ExitCode;

use clap::Parser;
use rillm::generate::Session;
use rillm::{LanguageModel, Message, SamplerOptions};

/// Chat with a model. /reset starts over, /exit or the end of the input ends.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: support::ModelArgs,
    /// What the model is told before the first message
    #[arg(long)]
    system: Option<String>,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Temperature; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temp: f32,
    /// Keeps the likeliest tokens of this mass
    #[arg(long, default_value_t = 0.0)]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let lm = args.model.loader()?.load()?;
    // One sequence for the whole conversation: what its cache has in common with the next prompt is not run again.
    let mut session = lm.session();
    let sequence = session.open();
    let start = || args.system.as_deref().map(Message::system).into_iter().collect::<Vec<_>>();
    let mut messages = start();
    let terminal = stdin().is_terminal();
    loop {
        if terminal {
            eprint!("> ");
            stderr().flush()?;
        }
        let mut line = String::new();
        if stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/reset" => {
                messages = start();
                session.truncate(sequence, 0)?;
            }
            text => {
                messages.push(Message::user(text));
                match answer(&lm, sequence, &messages, args) {
                    Ok(text) => messages.push(Message::assistant(text)),
                    // A person can go on, with /reset if the conversation has outgrown the context.
                    Err(error) if terminal => {
                        eprintln!("{error}");
                        messages.pop();
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// Writes the answer as it comes, and returns it.
fn answer(
    lm: &LanguageModel,
    sequence: usize,
    messages: &[Message],
    args: &Args,
) -> Result<String, Box<dyn Error>> {
    let sampling =
        SamplerOptions { temperature: args.temp, top_p: args.top_p, seed: args.seed, ..Default::default() };
    let generation = lm.chat(messages).sequence(sequence).max_tokens(args.max_tokens).sampling(sampling);
    let mut stream = generation.stream()?;
    let (mut text, mut out) = (String::new(), stdout());
    for piece in &mut stream {
        let piece = piece?.text;
        write!(out, "{piece}")?;
        out.flush()?;
        text.push_str(&piece);
    }
    writeln!(out)?;
    let s = stream.statistics();
    let (prompt, cached, rate) = (s.prompt_tokens, s.cached_tokens, s.generation_tps);
    eprintln!(
        "[{prompt} tokens of prompt, {cached} of them cached; {} generated, {rate:.1} a second]",
        s.generated_tokens
    );
    Ok(text)
}
