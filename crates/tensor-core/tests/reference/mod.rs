//! Random operands, and what operations mean in `f64`. Not tests.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

pub mod plain;
pub mod routing;

use std::ops::Range;

use rillm_quant::{Format, RawTensor, encode};
use rillm_tensor_core::{Activation, AttnParams, KvLayout, Pairing, Rope};

/// Marsaglia's xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// `n` values in `-scale..scale`.
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| ((self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale).collect()
    }
}

/// A matrix of `rows` rows of random values in `format`.
pub fn matrix(random: &mut Random, format: Format, rows: usize, cols: usize) -> RawTensor<'static> {
    let values = random.values(rows * cols, 1.0);
    match encode(&values, vec![rows, cols], format) {
        Ok(raw) => raw,
        // Formats that are only read: random codes under small scales.
        Err(_) => {
            let n = format.row_bytes(cols).unwrap()[0] * rows;
            if format == Format::MxFp4Blocks {
                return mxfp4_blocks(&encode(&values, vec![rows, cols], Format::MxFp4).unwrap());
            }
            let mut codes: Vec<u8> = (0..n).map(|_| random.next() as u8).collect();
            let (block, scales): (usize, &[usize]) = match format {
                Format::Q5_0 => (22, &[0]),
                Format::Q5_1 => (24, &[0, 2]),
                Format::Q4K => (144, &[0, 2]),
                Format::Q5K => (176, &[0, 2]),
                Format::Q6K => (210, &[208]),
                other => panic!("{other}: no random bytes"),
            };
            for block in codes.chunks_mut(block) {
                for at in scales {
                    // An f16 between 2^-11 and 2^-10.
                    block[*at + 1] = 0x10 | block[*at + 1] & 0x83;
                }
            }
            RawTensor::new(format, vec![rows, cols], [codes.into(), vec![].into(), vec![].into()]).unwrap()
        }
    }
}

/// An mxfp4 matrix in GGML's order: the scale, then codes `i` and `i + 16` of a block in byte `i`.
fn mxfp4_blocks(raw: &RawTensor<'_>) -> RawTensor<'static> {
    let mut blocks = Vec::new();
    for (codes, scale) in raw.codes.chunks(16).zip(raw.scales.iter()) {
        let code = |i: usize| codes[i / 2] >> (i % 2 * 4) & 15;
        blocks.push(*scale);
        blocks.extend((0..16).map(|i| code(i) | code(i + 16) << 4));
    }
    RawTensor::new(Format::MxFp4Blocks, raw.shape.clone(), [blocks.into(), vec![].into(), vec![].into()])
        .unwrap()
}

#[track_caller]
pub fn close(got: f32, wanted: f64, allowed: f64, what: &str) {
    let difference = (f64::from(got) - wanted).abs();
    assert!(difference <= allowed, "{what}: {got}, wanted {wanted}: {difference:e} is more than {allowed:e}");
}

pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

pub fn activation(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Identity => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Clip { limit } => x.clamp(-f64::from(limit), limit.into()),
        Activation::XIelu { positive, negative, slope } => {
            let curve =
                if x > 0.0 { f64::from(positive) * x * x } else { f64::from(negative) * (x.exp_m1() - x) };
            curve + f64::from(slope) * x
        }
        Activation::ClippedSwish { alpha, limit } => {
            let x = x.min(limit.into());
            x / (1.0 + (-x * f64::from(alpha)).exp())
        }
    }
}

/// A gate `x` and what it opens.
pub fn gated(act: Activation, x: f64, y: f64) -> f64 {
    let opened = match act {
        Activation::ClippedSwish { limit, .. } => y.clamp(-f64::from(limit), limit.into()) + 1.0,
        _ => y,
    };
    activation(act, x) * opened
}

/// Head `x` at `position`.
pub fn rotated(x: &[f32], rope: &Rope, position: u32) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let pairs = rope.inv_freq.len();
    for (i, f) in rope.inv_freq.iter().enumerate() {
        let (a, b) = match rope.pairing {
            Pairing::Halves => (i, i + pairs),
            Pairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = f64::from(position as f32 * f).sin_cos();
        let (u, v) = (out[a], out[b]);
        out[a] = f64::from(rope.scale) * (u * cos - v * sin);
        out[b] = f64::from(rope.scale) * (v * cos + u * sin);
    }
    out
}

/// `x Φ(x)`, by the series of Φ near 0 and its continued fraction far from it (Abramowitz and Stegun 26.2.10 and
/// 26.2.14).
fn gelu(x: f64) -> f64 {
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let a = x.abs();
    if a > 40.0 {
        return x.max(0.0);
    }
    if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= a * a / (2 * n + 1) as f64;
            sum += term;
        }
        return x * (0.5 + x.signum() * density * sum);
    }
    let fraction = (1..200).rev().fold(a, |f, n| a + f64::from(n) / f);
    let tail = density / fraction;
    if x > 0.0 { x * (1.0 - tail) } else { x * tail }
}

/// A sequence whose latest rows query it.
pub struct Span {
    pub rows: Range<usize>,
    /// Keys and values of all positions, those that were overwritten included.
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub layout: KvLayout,
    pub sink: usize,
    pub window: Option<usize>,
}

impl Span {
    /// A sequence of random length in a plain buffer or a ring, as the caches make them.
    pub fn any(random: &mut Random, rows: Range<usize>, p: &AttnParams) -> Self {
        let t = rows.len();
        let len = t + [0, 1, 40, 300][random.below(4)];
        let (layout, sink, window) = match random.below(3) {
            0 => (KvLayout { len, keep: 0, ring: len + random.below(40) }, 0, None),
            kind => {
                let (window, keep) = (1 + random.below(60), if kind == 1 { 0 } else { random.below(5) });
                let ring = window + t + random.below(10);
                (KvLayout { len, keep, ring }, keep, Some(window))
            }
        };
        let (k, v) = (random.values(len * p.k_dim(), 1.5), random.values(len * p.v_dim(), 1.5));
        Self { rows, k, v, layout, sink, window }
    }
}

/// Causal attention by definition.
pub fn attention(q: &[f32], spans: &[Span], p: &AttnParams, sinks: Option<&[f32]>) -> Vec<f64> {
    let (d, q_dim, v_dim) = (p.head_dim, p.q_dim(), p.v_head_dim);
    let mut out = vec![0.0; q.len() / q_dim * p.out_dim()];
    for span in spans {
        for (i, row) in span.rows.clone().enumerate() {
            let position = span.layout.len - span.rows.len() + i;
            let within = |w: Option<usize>, p: usize| w.is_none_or(|w| position - p < w);
            let chunk = |s: usize| p.chunk.is_none_or(|c| s / c == position / c);
            let seen: Vec<usize> = (0..=position)
                .filter(|s| *s < span.sink || (within(p.window, *s) && within(span.window, *s) && chunk(*s)))
                .collect();
            for head in 0..p.heads {
                let kv = head / (p.heads / p.kv_heads);
                let query = &q[row * q_dim + head * d..][..d];
                let score = |s: &usize| {
                    let x = dot(query, &span.k[s * p.k_dim() + kv * d..][..d]) * f64::from(p.scale);
                    p.softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh())
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|x| (x - most).exp()).sum();
                let total = total + sinks.map_or(0.0, |s| (f64::from(s[head]) - most).exp());
                for (s, x) in seen.iter().zip(&scores) {
                    let weight = (x - most).exp() / total;
                    for j in 0..v_dim {
                        let value = span.v[s * p.v_dim() + kv * v_dim + j];
                        out[row * p.out_dim() + head * v_dim + j] += weight * f64::from(value);
                    }
                }
            }
        }
    }
    out
}
