//! Golden checkpoints and what can be asked of sessions over them, for several test binaries. Not tests.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::path::{Path, PathBuf};

use rillm::generate::{Result, Session, Want, Work};
use rillm::{LanguageModel, Loader};
use safetensors::SafeTensors;

/// The folder of a golden checkpoint.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The folders of all golden checkpoints, in alphabetical order.
pub fn goldens() -> Vec<PathBuf> {
    let all = std::fs::read_dir(golden("")).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<_> = all.filter(|p| p.join("golden.safetensors").exists()).collect();
    folders.sort();
    assert!(folders.len() >= 240, "only {} goldens", folders.len());
    folders
}

pub fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

/// What to hand to [`Loader::new`] for a golden checkpoint.
pub fn source(folder: &Path) -> String {
    let gguf = folder.join("model.gguf");
    let path = if gguf.exists() { &gguf } else { folder };
    path.to_str().unwrap().to_owned()
}

/// The model of a golden checkpoint in exact arithmetic.
pub fn exact(folder: &Path, threads: usize) -> LanguageModel {
    let loader = Loader::new(source(folder)).exact().threads(threads);
    loader.load().unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

fn ids(folder: &Path, tensor: &str) -> Vec<u32> {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(tensor).unwrap().data().to_vec();
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

/// The prompt of a golden checkpoint.
pub fn prompt(folder: &Path) -> Vec<u32> {
    ids(folder, "input_ids")
}

/// The reference's greedy continuation of the prompt.
pub fn greedy_reference(folder: &Path) -> Vec<u32> {
    ids(folder, "greedy")
}

/// How far logits may be from a reference's, in standard deviations of these.
pub const TOLERANCE: f32 = 5e-3;

/// The reference's logits of the prompt.
pub fn reference_logits(folder: &Path) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap().data().to_vec();
    logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// `n` greedy tokens after `ids`, one step each.
pub fn greedy(session: &mut impl Session, ids: &[u32], n: usize) -> Vec<u32> {
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
pub fn distance(got: &[f32], want: &[f32]) -> f32 {
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

/// `n` tokens of a vocabulary of `vocab`, other ones for each `seed`.
pub fn tokens(n: usize, vocab: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * 13 + seed * 31 + 3) % vocab) as u32).collect()
}

/// One step of one sequence.
pub fn feed(s: &mut impl Session, sequence: usize, tokens: &[u32], want: Want) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    s.step(&[Work { sequence, tokens, ahead: 0, want }], &mut logits)?;
    Ok(logits)
}

/// The logits that follow `tokens`, in a new sequence and one pass.
pub fn fresh(s: &mut impl Session, tokens: &[u32]) -> Vec<f32> {
    let sequence = s.open();
    let logits = feed(s, sequence, tokens, Want::Last).unwrap();
    s.close(sequence);
    logits
}

/// The logits of all of `tokens`, in a new sequence, `chunk` tokens at a time.
pub fn score(s: &mut impl Session, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let sequence = s.open();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    let mut ahead = tokens.len();
    for tokens in tokens.chunks(chunk) {
        ahead -= tokens.len();
        s.step(&[Work { sequence, tokens, ahead, want: Want::All }], &mut part).unwrap();
        all.extend_from_slice(&part);
    }
    s.close(sequence);
    all
}

/// Whether two rows of logits have the same bits; NaN equals nothing.
pub fn same(a: &[f32], b: &[f32]) -> bool {
    !a.is_empty() && a == b
}
