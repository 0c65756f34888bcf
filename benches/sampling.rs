//! Picking a token from the logits of a vocabulary: greedily, through the filters, with log-probabilities.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rillm::generate::{Rng, SamplerOptions, TokenLogprobs, argmax, sampler};

/// Vocabularies of SmolLM2 and of Llama 3.
const VOCABS: [usize; 2] = [49_152, 128_256];

/// Logits as models give them: about normal with a standard deviation of 2.5, and a few that stand out.
fn logits(vocab: usize) -> Vec<f32> {
    let rng = Rng::new(7);
    let normal = |i: usize| (0..12).map(|d| rng.uniform_f32(i as u64, d)).sum::<f32>() - 6.0;
    let mut logits: Vec<f32> = (0..vocab).map(|i| 2.5 * normal(i)).collect();
    for i in 0..20 {
        logits[vocab / 3 + 977 * i] = 15.0 - 0.4 * i as f32;
    }
    logits
}

/// Runs `f` on fresh copies of `logits`, which it may overwrite; copying is not counted.
fn on_copies(n: u64, logits: &[f32], mut f: impl FnMut(&mut [f32])) -> Duration {
    let (mut copy, mut total) = (logits.to_vec(), Duration::ZERO);
    for _ in 0..n {
        copy.copy_from_slice(logits);
        let started = Instant::now();
        f(black_box(&mut copy));
        total += started.elapsed();
    }
    total
}

fn sampling(c: &mut Criterion) {
    let drawn = || SamplerOptions { temperature: 0.8, ..Default::default() };
    let chains = [
        ("greedy", SamplerOptions::default()),
        ("temperature", drawn()),
        ("top-k 40", SamplerOptions { top_k: 40, ..drawn() }),
        ("top-p 0.9", SamplerOptions { top_p: 0.9, ..drawn() }),
        ("min-p 0.05", SamplerOptions { min_p: 0.05, ..drawn() }),
        ("top-k 40, top-p 0.9, min-p 0.05", SamplerOptions { top_k: 40, top_p: 0.9, min_p: 0.05, ..drawn() }),
    ];
    let mut group = c.benchmark_group("sampling");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    for vocab in VOCABS {
        let logits = logits(vocab);
        group.throughput(Throughput::Elements(vocab as u64));
        for (name, options) in &chains {
            let mut sampler = sampler(options.clone()).unwrap();
            group.bench_function(BenchmarkId::new(*name, vocab), |b| {
                b.iter_custom(|n| {
                    on_copies(n, &logits, |logits| {
                        black_box(sampler.sample(logits).unwrap());
                    })
                })
            });
        }
        // A flat distribution, whose nucleus is most of the vocabulary.
        let flat: Vec<f32> = logits.iter().map(|x| 0.1 * x).collect();
        let mut sampler = sampler(SamplerOptions { top_p: 0.9, ..drawn() }).unwrap();
        group.bench_function(BenchmarkId::new("top-p 0.9 of flat logits", vocab), |b| {
            b.iter_custom(|n| {
                on_copies(n, &flat, |logits| {
                    black_box(sampler.sample(logits).unwrap());
                })
            })
        });
        let token = argmax(&logits).unwrap().0;
        for top in [0, 10] {
            group.bench_function(BenchmarkId::new(format!("logprobs, best {top}"), vocab), |b| {
                b.iter(|| TokenLogprobs::new(black_box(&logits), token, top).unwrap())
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sampling);
criterion_main!(benches);
