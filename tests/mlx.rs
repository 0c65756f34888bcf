//! The MLX backend against the references: every checkpoint of `tests/golden`, in exact arithmetic. With the feature
//! `mlx` only; `MLX_DEVICE=mlx-gpu` runs it on a graphics card.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use rillm::generate::{Generator, Request};
use rillm::models::Registry;
use rillm::tensor::cpu::Precision;
use rillm::tensor::mlx::{Mlx, MlxCounts};
use rillm::{Device, Error, LanguageModel, Loader};

use support::{
    TOLERANCE, distance, golden, goldens, greedy, greedy_reference, name, prompt, reference_logits, score,
    source,
};

fn load(folder: &Path) -> Result<LanguageModel, Error> {
    let device = std::env::var("MLX_DEVICE").unwrap_or("mlx".into());
    Loader::new(source(folder)).device(device.parse::<Device>().unwrap()).exact().load()
}

#[test]
fn logits_and_tokens_are_those_of_the_references() {
    let folders = goldens();
    let mut wrong = Vec::new();
    for folder in &folders {
        let (name, before) = (name(folder), wrong.len());
        let (ids, logits, tokens) = (prompt(folder), reference_logits(folder), greedy_reference(folder));
        let lm = match load(folder) {
            Ok(lm) => lm,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut session = lm.session();
        for chunk in [usize::MAX, 7, 1] {
            let d = distance(&score(&mut session, &ids, chunk), &logits);
            if d.is_nan() || d > TOLERANCE {
                wrong.push(format!("{name}: chunk {chunk}: {d} standard deviations"));
            }
        }
        let got = greedy(&mut session, &ids, tokens.len());
        if got != tokens {
            wrong.push(format!("{name}: greedy {got:?}, wanted {tokens:?}"));
        }
        // With --nocapture a run that is cut off has told how far it came.
        eprintln!("{name}: {}", if wrong.len() == before { "ok" } else { "BAD" });
    }
    assert!(wrong.is_empty(), "{} failures of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}

/// A prompt of 24 tokens in chunks of 10, then 8 tokens: each chunk but the last is computed at once, and each step is
/// submitted before the token of the step before is read. Layers with a state wait for nothing either.
#[test]
fn a_generation_asks_mlx_to_compute_once_a_chunk_and_once_a_step() {
    for name in ["llama", "mamba", "mamba2", "qwen3-next", "kimi-linear", "rwkv7", "recurrent-gemma"] {
        asks_once(name);
    }
}

fn asks_once(name: &str) {
    let (give, take) = std::sync::mpsc::channel();
    let make = move || {
        let mlx = Mlx::builder().precision(Precision::Exact).build()?;
        give.send(mlx.clone()).unwrap();
        Ok(mlx)
    };
    let lm = Loader::new(source(&golden(name))).load_on_thread(make, Registry::default()).unwrap();
    let mlx = take.recv().unwrap();
    let before = mlx.counts();
    let request = Request::new(support::tokens(24, lm.info().vocab, 3)).max_tokens(8);
    let made: Vec<_> = Generator::new(lm.session(), request).unwrap().prefill_chunk(10).collect();
    assert_eq!(made.iter().filter(|token| token.is_ok()).count(), 8);
    let MlxCounts { evals, submits, .. } = mlx.counts();
    assert_eq!(evals - before.evals, 2, "{name}: chunks that nobody waits for");
    // The prompt's last pass, one ahead of it, and one ahead of each step.
    assert_eq!(submits - before.submits, 2 + 7, "{name}");
}
