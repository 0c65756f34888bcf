//! Candle's speed on a GGUF file: MODEL THREADS PROMPT:GEN:BATCH,.. -> one JSON line a case. Threads are set by the
//! environment (`RAYON_NUM_THREADS`); prompts in parts of 512.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, _, cases] = &arguments[..] else { anyhow::bail!("wanted MODEL THREADS CASES") };
    let started = Instant::now();
    let mut file = std::fs::File::open(path)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let load = started.elapsed().as_secs_f64();
    measure(&mut model, 16, 4, 1)?;
    for case in cases.split(',') {
        let numbers: Vec<usize> = case.split(':').map(str::parse).collect::<Result<_, _>>()?;
        let [prompt, generate, batch] = numbers[..] else { anyhow::bail!("wanted PROMPT:GEN:BATCH, got {case}") };
        let (first, rest) = measure(&mut model, prompt, generate - 1, batch)?;
        let prompt_tps = (batch * prompt) as f64 / first;
        let tps = if generate > 1 { (batch * (generate - 1)) as f64 / rest } else { 0.0 };
        let peak = peak_bytes()?;
        println!(
            r#"{{"prompt_tokens":{prompt},"batch":{batch},"prompt_tps":{prompt_tps},"generation_tps":{tps},"load_s":{load},"peak_rss_bytes":{peak}}}"#
        );
    }
    Ok(())
}

/// Prefills `batch` prompts and decodes `steps` tokens after them; returns the seconds of both.
fn measure(model: &mut ModelWeights, prompt: usize, steps: usize, batch: usize) -> Result<(f64, f64)> {
    model.clear_kv_cache();
    let mut seed = 1_u32;
    let mut random = || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        1000 + (seed >> 8) % 30000
    };
    let mut next = Vec::new();
    let started = Instant::now();
    for done in (0..prompt).step_by(512) {
        let tokens: Vec<u32> = (0..batch * 512.min(prompt - done)).map(|_| random()).collect();
        next = feed(model, &tokens, batch, done)?;
    }
    let first = started.elapsed().as_secs_f64();
    for step in 0..steps {
        next = feed(model, &next, batch, prompt + step)?;
    }
    Ok((first, started.elapsed().as_secs_f64() - first))
}

/// The greedy next token of each sequence.
fn feed(model: &mut ModelWeights, tokens: &[u32], batch: usize, position: usize) -> Result<Vec<u32>> {
    let tokens = Tensor::new(tokens, &Device::Cpu)?.reshape((batch, ()))?;
    Ok(model.forward(&tokens, position)?.argmax(D::Minus1)?.to_vec1()?)
}

fn peak_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
