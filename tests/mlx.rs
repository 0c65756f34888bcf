//! The MLX backend against the references: every checkpoint of `tests/golden`, in exact arithmetic. With the feature
//! `mlx` only; `MLX_DEVICE=mlx-gpu` runs it on a graphics card.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use rillm::{Device, Error, LanguageModel, Loader};

use support::{
    TOLERANCE, distance, goldens, greedy, greedy_reference, name, prompt, reference_logits, score, source,
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
        let name = name(folder);
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
    }
    assert!(wrong.is_empty(), "{} failures of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}
