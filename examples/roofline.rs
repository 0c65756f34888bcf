//! How fast a model could decode on several machines if reading its weights were all there is to do, and how fast
//! it does here.

mod support;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rillm::LanguageModel;
use rillm::generate::Request;

/// Memory bandwidth that Apple states, in GB/s (10^9 bytes).
const CHIPS: [(&str, f64); 8] = [
    ("Apple M1", 68.0),
    ("Apple M1 Pro", 200.0),
    ("Apple M4 Pro", 273.0),
    ("Apple M5 Pro", 307.0),
    ("Apple M1 Max", 400.0),
    ("Apple M2 Ultra", 800.0),
    ("Apple M3 Ultra", 819.0),
    ("this machine", f64::NAN),
];

const ROUNDS: usize = 5;

/// Compare decoding with the memory bandwidth of Apple's chips and of this machine
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: support::BenchModelArgs,
    /// Tokens to decode in each round
    #[arg(long, default_value_t = 32)]
    gen_tokens: usize,
}

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let lm = args.model.loader()?.load()?;
    let (bytes, device) = (lm.info().weight_bytes as f64, &lm.info().device);
    let (measured, bandwidth) = measure(&lm, args.gen_tokens)?;
    println!("{} on {device}: {:.1} MB of weights for each token", lm.info().model_type, bytes / 1e6);
    println!("\n{:16} {:>10} {:>16} {:>16}", "", "GB/s", "tokens/s at most", "measured");
    for (name, stated) in CHIPS {
        let here = stated.is_nan();
        let Some(read) = (if here { bandwidth } else { Some(stated * 1e9) }) else { continue };
        let most = read / bytes;
        let measured =
            if here { format!("{measured:.1} ({:.0} %)", 100.0 * measured / most) } else { "-".to_owned() };
        println!("{name:16} {:>10.1} {most:>16.1} {measured:>16}", read / 1e9);
    }
    Ok(())
}

/// Tokens a second of decoding one sequence, and bytes a second of reading memory: medians of rounds in turn, as both
/// have to share the machine with whatever else it does.
fn measure(lm: &LanguageModel, tokens: usize) -> Result<(f64, Option<f64>), Box<dyn Error>> {
    let meter = lm.bandwidth()?;
    let (mut decode, mut bandwidth) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut generated = lm.tokens(Request::new([1, 2, 3, 4]).max_tokens(tokens.max(2)))?;
        generated.try_for_each(|token| token.map(drop))?;
        let timing = generated.timing();
        let after = timing.after_first.max(Duration::from_nanos(1));
        decode.push(timing.generated_tokens.saturating_sub(1) as f64 / after.as_secs_f64());
        bandwidth.extend(meter.as_ref().map(|meter| meter.pass()));
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(ROUNDS / 2).copied()
    };
    Ok((median(decode).unwrap_or(0.0), median(bandwidth)))
}
