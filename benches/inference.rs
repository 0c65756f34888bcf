//! Loading, prefill and decode of a model in the shape of SmolLM2-135M with random weights, and projections alone.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rillm::generate::{Session, Want, Work};
use rillm::quant::{FloatType, Format, RawTensor};
use rillm::tensor::cpu::Cpu;
use rillm::tensor::{Backend, Ids};
use rillm::{LanguageModel, Loader, RandomShape};

const FORMATS: [&str; 3] = ["4:64", "8:64", "mxfp4"];

fn shape(format: &str) -> RandomShape {
    "smollm2-135m".parse::<RandomShape>().unwrap().quantized(format).unwrap()
}

fn model(format: &str) -> LanguageModel {
    Loader::random(shape(format)).load().unwrap()
}

fn load(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    group.bench_function("4:64", |b| b.iter(|| black_box(model("4:64"))));
    group.finish();
}

/// One step of one sequence; the throughput is that of the weights it reads.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for format in FORMATS {
        let lm = model(format);
        group.throughput(Throughput::Bytes(lm.info().weight_bytes as u64));
        group.bench_function(format, |b| {
            let mut session = lm.session();
            let (sequence, mut logits) = (session.open(), Vec::new());
            session
                .step(&[Work { sequence, tokens: &[1; 16], ahead: 0, want: Want::Last }], &mut logits)
                .unwrap();
            b.iter(|| {
                session
                    .step(&[Work { sequence, tokens: &[7], ahead: 0, want: Want::Last }], &mut logits)
                    .unwrap();
                session.truncate(sequence, 16).unwrap();
            });
            session.close(sequence);
        });
    }
    group.finish();
}

/// A prompt of 256 tokens; the throughput is in tokens.
fn prefill(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements(256));
    for format in FORMATS {
        let lm = model(format);
        let tokens: Vec<u32> = (0..256).collect();
        group.bench_function(format, |b| {
            let (mut session, mut logits) = (lm.session(), Vec::new());
            b.iter(|| {
                let sequence = session.open();
                session
                    .step(&[Work { sequence, tokens: &tokens, ahead: 0, want: Want::Last }], &mut logits)
                    .unwrap();
                session.close(sequence);
            });
        });
    }
    group.finish();
}

/// `x @ Wᵀ` for `W: [4096, 2048]` and 1, 8 and 128 rows of `x`, with every table of kernels.
fn linear(c: &mut Criterion) {
    let values: Vec<f32> = (0..4096_u64 * 2048).map(|i| ((i * 7919) % 255) as f32 / 255.0 - 0.5).collect();
    let format = Format::Affine { bits: 4, group: 64, meta: FloatType::F32 };
    let raw = rillm::quant::encode(&values, vec![4096, 2048], format).unwrap();
    let table = RawTensor::from_f32(vec![1, 2048], &values[..2048]).unwrap();
    let mut group = c.benchmark_group("linear 4:64 [4096, 2048]");
    for kernels in Cpu::kernel_names() {
        let cpu = Cpu::builder().kernels(kernels).build().unwrap();
        let (w, table) = (
            cpu.prepare(std::slice::from_ref(&raw)).unwrap(),
            cpu.prepare(std::slice::from_ref(&table)).unwrap(),
        );
        for t in [1, 8, 128] {
            let x = cpu.embed(&table, Ids::Host(&vec![0; t])).unwrap();
            group.throughput(match t {
                1 => Throughput::Bytes(cpu.weight_bytes(&w) as u64),
                _ => Throughput::Elements((t * 4096 * 2048) as u64),
            });
            group.bench_function(BenchmarkId::new(kernels, t), |b| {
                b.iter(|| cpu.linear(&x, &w, None).unwrap())
            });
        }
    }
    group.finish();
}

criterion_group!(benches, load, decode, prefill, linear);
criterion_main!(benches);
