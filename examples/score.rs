//! Scores text or tokens: perplexity, logits, and greedy continuations, to compare with other implementations.

mod support;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rillm::generate::{Session, SharedSession, Special, Want, Work, argmax, logsumexp};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;

/// Perplexity, logits and greedy tokens of a model
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: support::ModelArgs,
    /// Text to score
    #[arg(long, conflicts_with = "tokens", required_unless_present = "tokens")]
    text: Option<PathBuf>,
    /// Tokens to score: a safetensors file with `input_ids`, i64 [t]
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// Tokens of a window of text [default: 2048, or what the model was made for]
    #[arg(long)]
    context: Option<usize>,
    /// Write `logits`, f32 [t, vocab], and `greedy`, i64 [n], to this safetensors file
    #[arg(long)]
    logits: Option<PathBuf>,
    /// Continue all tokens by so many, greedily, end tokens ignored
    #[arg(long)]
    greedy: Option<usize>,
    /// Tokens of one forward pass
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    support::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let loader = args.model.loader()?;
    if let Some(path) = &args.tokens {
        let ids = read_tokens(path)?;
        // What was asked for is computed, also beyond what the model was made for.
        let lm = loader.context(ids.len() + args.greedy.unwrap_or(0) + 1).load()?;
        return tokens(args, &mut lm.session(), &ids);
    }
    let Some(path) = &args.text else { return Err("neither --text nor --tokens".into()) };
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let lm = loader.load()?;
    let (tokenizer, mut session) = (lm.tokenizer()?, lm.session());
    let ids = tokenizer.encode(&text, Special::Skip)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let window = args.context.unwrap_or(2048).min(lm.info().context).max(2) - usize::from(bos.is_some());
    let (mut nll, mut scored) = (0.0, 0);
    for ids in ids.chunks(window) {
        let ids: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
        nll += negative_log_likelihood(&mut session, &ids, args.chunk, |_| Ok(()))?;
        scored += ids.len() - 1;
    }
    report(args, nll, scored, None)
}

/// Scores `ids` in one window, keeps logits if they are to be written, and continues.
fn tokens(args: &Args, session: &mut SharedSession, ids: &[u32]) -> Result<()> {
    let mut logits = Vec::new();
    let nll = negative_log_likelihood(session, ids, args.chunk, |rows| {
        if args.logits.is_some() {
            logits.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
        }
        Ok(())
    })?;
    let greedy = args.greedy.map(|n| continuation(session, ids, args.chunk, n)).transpose()?;
    if let Some(path) = &args.logits {
        let greedy: Option<Vec<u8>> =
            greedy.as_ref().map(|g| g.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect());
        let mut tensors =
            vec![("logits", TensorView::new(Dtype::F32, vec![ids.len(), session.vocab()], &logits)?)];
        if let Some(bytes) = &greedy {
            tensors.push(("greedy", TensorView::new(Dtype::I64, vec![bytes.len() / 8], bytes)?));
        }
        safetensors::serialize_to_file(tensors, None, path)?;
    }
    report(args, nll, ids.len() - 1, greedy)
}

/// Runs `ids` in a fresh cache, `chunk` at a time, and sums -ln p of every token but the first.
fn negative_log_likelihood(
    session: &mut SharedSession,
    ids: &[u32],
    chunk: usize,
    mut each: impl FnMut(&[f32]) -> Result<()>,
) -> Result<f64> {
    let (sequence, vocab) = (session.open(), session.vocab());
    let (mut nll, mut at, mut logits) = (0.0, 0, Vec::new());
    for tokens in ids.chunks(chunk.max(1)) {
        let ahead = ids.len() - at - tokens.len();
        session.step(&[Work { sequence, tokens, ahead, want: Want::All }], &mut logits)?;
        for row in logits.chunks_exact(vocab) {
            at += 1;
            if let Some(next) = ids.get(at) {
                nll += f64::from(logsumexp(row)? - row[*next as usize]);
            }
        }
        each(&logits)?;
    }
    session.close(sequence);
    Ok(nll)
}

/// The likeliest `n` tokens after `ids`, each through the cache.
fn continuation(session: &mut SharedSession, ids: &[u32], chunk: usize, n: usize) -> Result<Vec<u32>> {
    let (sequence, mut out, mut logits) = (session.open(), Vec::new(), Vec::new());
    let mut left = ids.len();
    for tokens in ids.chunks(chunk.max(1)) {
        left -= tokens.len();
        session.step(&[Work { sequence, tokens, ahead: left, want: Want::Last }], &mut logits)?;
    }
    while out.len() < n {
        let (id, _) = argmax(&logits)?;
        out.push(id);
        if out.len() < n {
            session.step(&[Work { sequence, tokens: &[id], ahead: 0, want: Want::Last }], &mut logits)?;
        }
    }
    session.close(sequence);
    Ok(out)
}

fn report(args: &Args, nll: f64, tokens: usize, greedy: Option<Vec<u32>>) -> Result<()> {
    let perplexity = (nll / tokens.max(1) as f64).exp();
    if args.json {
        println!("{}", json!({ "perplexity": perplexity, "nll": nll, "tokens": tokens, "greedy": greedy }));
        return Ok(());
    }
    println!("perplexity {perplexity:.4} (nll {nll:.3} over {tokens} tokens)");
    if let Some(greedy) = greedy.filter(|_| args.logits.is_none()) {
        println!("{}", greedy.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn read_tokens(path: &PathBuf) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    let ids = file.tensor("input_ids").map_err(|e| format!("{}: {e}", path.display()))?;
    if ids.dtype() != Dtype::I64 || ids.data().is_empty() {
        return Err(format!(
            "{}: input_ids: wanted i64 [t], got {:?} {:?}",
            path.display(),
            ids.dtype(),
            ids.shape()
        )
        .into());
    }
    let id = |b: &[u8; 8]| u32::try_from(i64::from_le_bytes(*b));
    Ok(ids.data().as_chunks::<8>().0.iter().map(id).collect::<std::result::Result<_, _>>()?)
}
