//! Every checkpoint of `tests/golden` against the logits and greedy tokens of its reference.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};

use rillm::generate::{Session, Want, Work};
use rillm::{LanguageModel, Loader};
use safetensors::SafeTensors;

/// Of the logits' standard deviation.
const TOLERANCE: f32 = 5e-3;

struct Golden {
    input_ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("golden.safetensors").exists())
        .collect();
    folders.sort();
    folders
}

fn golden(folder: &Path) -> Golden {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    };
    let logits = file.tensor("logits").unwrap().data().to_vec();
    Golden {
        input_ids: ids("input_ids"),
        logits: logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        greedy: ids("greedy"),
    }
}

fn load(folder: &Path) -> LanguageModel {
    let gguf = folder.join("model.gguf");
    let source = if gguf.exists() { gguf } else { folder.to_owned() };
    Loader::new(source.to_str().unwrap())
        .exact()
        .threads(2)
        .load()
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

/// Logits of all of `ids`, `chunk` tokens at a time.
fn score(session: &mut impl Session, ids: &[u32], chunk: usize) -> Vec<f32> {
    let sequence = session.open();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    let mut left = ids.len();
    for tokens in ids.chunks(chunk) {
        left -= tokens.len();
        session.step(&[Work { sequence, tokens, ahead: left, want: Want::All }], &mut part).unwrap();
        all.extend_from_slice(&part);
    }
    session.close(sequence);
    all
}

fn argmax(row: &[f32]) -> u32 {
    rillm::generate::argmax(row).unwrap().0
}

fn greedy(session: &mut impl Session, ids: &[u32], n: usize) -> Vec<u32> {
    let sequence = session.open();
    let mut logits = Vec::new();
    let mut out = Vec::new();
    let mut tokens = ids.to_vec();
    while out.len() < n {
        session.step(&[Work { sequence, tokens: &tokens, ahead: 0, want: Want::Last }], &mut logits).unwrap();
        out.push(argmax(&logits));
        tokens = vec![*out.last().unwrap()];
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
    let folders = folders();
    assert!(folders.len() >= 100, "only {} goldens", folders.len());
    let mut wrong = Vec::new();
    for folder in &folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let want = golden(folder);
        let lm = std::panic::catch_unwind(|| load(folder));
        let Ok(lm) = lm else {
            wrong.push(format!("{name}: does not load"));
            continue;
        };
        let mut session = lm.session();
        let whole = score(&mut session, &want.input_ids, usize::MAX);
        for chunk in [usize::MAX, 7, 1] {
            let got = score(&mut session, &want.input_ids, chunk);
            let d = distance(&got, &want.logits);
            if d.is_nan() || d > TOLERANCE {
                wrong.push(format!("{name}: chunk {chunk}: {d} standard deviations"));
            }
            if got != whole {
                wrong.push(format!("{name}: chunk {chunk}: other bits than in one chunk"));
            }
        }
        let got = greedy(&mut session, &want.input_ids, want.greedy.len());
        if got != want.greedy {
            wrong.push(format!("{name}: greedy {got:?}, wanted {:?}", want.greedy));
        }
    }
    assert!(wrong.is_empty(), "{} failures of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}
