//! Every checkpoint of `tests/golden` against the logits and greedy tokens of its reference.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use rillm::generate::{Session, Want};
use safetensors::SafeTensors;

use support::{exact, feed, goldens, greedy_reference, name, prompt, score};

/// Of the logits' standard deviation.
const TOLERANCE: f32 = 5e-3;

fn reference_logits(folder: &Path) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap().data().to_vec();
    logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn greedy(session: &mut impl Session, ids: &[u32], n: usize) -> Vec<u32> {
    let sequence = session.open();
    let mut out: Vec<u32> = Vec::new();
    while out.len() < n {
        let logits = match out.last() {
            None => feed(session, sequence, ids, Want::Last),
            Some(id) => feed(session, sequence, &[*id], Want::Last),
        };
        out.push(rillm::generate::argmax(&logits.unwrap()).unwrap().0);
    }
    session.close(sequence);
    out
}

/// The largest difference, in standard deviations of `want`.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let mean = want.iter().sum::<f32>() / want.len() as f32;
    let var = want.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / want.len() as f32;
    let most = got
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m: f32, d| if d > m || d.is_nan() { d } else { m });
    most / var.sqrt()
}

#[test]
fn logits_and_tokens_are_those_of_the_references() {
    let folders = goldens();
    assert!(folders.len() >= 100, "only {} goldens", folders.len());
    let mut wrong = Vec::new();
    for folder in &folders {
        let name = name(folder);
        let (ids, logits, tokens) = (prompt(folder), reference_logits(folder), greedy_reference(folder));
        let Ok(lm) = std::panic::catch_unwind(|| exact(folder, 2)) else {
            wrong.push(format!("{name}: does not load"));
            continue;
        };
        let mut session = lm.session();
        let whole = score(&mut session, &ids, usize::MAX);
        for chunk in [usize::MAX, 7, 1] {
            let got = score(&mut session, &ids, chunk);
            let d = distance(&got, &logits);
            if d.is_nan() || d > TOLERANCE {
                wrong.push(format!("{name}: chunk {chunk}: {d} standard deviations"));
            }
            if got != whole {
                wrong.push(format!("{name}: chunk {chunk}: other bits than in one chunk"));
            }
        }
        let got = greedy(&mut session, &ids, tokens.len());
        if got != tokens {
            wrong.push(format!("{name}: greedy {got:?}, wanted {tokens:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} failures of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}
