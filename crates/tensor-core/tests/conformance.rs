//! What every backend must do: each operation against `f64`, each fusion against the operations it stands for, and
//! operands that do not fit. Written over [`Backend`]; a backend joins by a test that calls [`conformance`].
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use std::ops::Range;

use reference::plain::Plain;
use reference::{Random, Span, activation, attention, close, dot, gated, matrix};
use rillm_quant::{FloatType, Format, RawTensor};
use rillm_tensor_core::cpu::{Cpu, Precision};
use rillm_tensor_core::{
    Activation, AttnParams, AttnSpan, Backend, Batch, Error, Experts, Ids, Input, Keys, KvLayout, Pairing,
    Rope, Sampling,
};

/// How far results may be from `f64`, in parts of the magnitudes that enter them.
#[derive(Clone, Copy)]
struct Tolerance {
    /// Sums and functions of `f32`.
    single: f64,
    /// Products of activations with weights.
    linear: f64,
    /// Attention over the backend's key buffers.
    attention: f64,
    /// Fusions, beside the operations that they stand for.
    fused: f64,
}

/// Rows of activations: the only way into a backend is to embed them.
fn tensor<B: Backend>(be: &B, values: &[f32], cols: usize) -> B::Tensor {
    let t = values.len() / cols;
    let table = be.prepare(&[RawTensor::from_f32(vec![t, cols], values).unwrap()]).unwrap();
    let ids: Vec<u32> = (0..t as u32).collect();
    be.embed(&table, Ids::Host(&ids)).unwrap()
}

fn vector<B: Backend>(be: &B, values: &[f32]) -> B::Weight {
    be.prepare(&[RawTensor::from_f32(vec![values.len()], values).unwrap()]).unwrap()
}

fn values<B: Backend>(be: &B, x: &B::Tensor) -> Vec<f32> {
    let mut out = vec![1.0; 3];
    be.read(x, &mut out).unwrap();
    assert_eq!(out.len(), be.shape(x).iter().product::<usize>());
    out
}

/// All of the suite.
fn conformance<B: Experts>(be: &B, tol: Tolerance) {
    let random = &mut Random(0x2545_f491_4f6c_dd1d);
    moves(be, random);
    embeddings(be, random);
    products(be, random, tol);
    norms(be, random, tol);
    elementwise(be, random, tol);
    rotations(be, random, tol);
    attentions(be, random, tol);
    projections(be, random, tol);
    rotated_keys(be, random, tol);
    sampled(be, random);
    drawn(be, random);
    experts::experts(be, random, tol);
    wrong_shapes(be, random);
    wrong_buffers(be, random);
}

/// Operations that copy: exact in every precision.
fn moves<B: Backend>(be: &B, random: &mut Random) {
    for (t, d) in [(1, 1), (1, 64), (3, 7), (17, 96), (200, 33)] {
        let x = random.values(t * d, 3.0);
        let tx = tensor(be, &x, d);
        assert_eq!(be.shape(&tx), [t, d]);
        assert_eq!(values(be, &tx), x);
        assert_eq!(values(be, &tx.clone()), x, "a copied reference");
        be.submit(&[&tx]).unwrap();
        be.evaluate(&[&tx]).unwrap();
        assert!(be.tensor_bytes(&tx) >= t * d);

        let picked: Vec<usize> = (0..=random.below(2 * t)).map(|_| random.below(t)).collect();
        let wanted: Vec<f32> = picked.iter().flat_map(|r| x[r * d..][..d].to_vec()).collect();
        assert_eq!(values(be, &be.take_rows(&tx, &picked).unwrap()), wanted);
        assert_eq!(be.shape(&be.take_rows(&tx, &[]).unwrap()), [0, d]);
        columns(be, random, &tx, &x);
        writes(be, random, t, d);
    }
}

fn columns<B: Backend>(be: &B, random: &mut Random, tx: &B::Tensor, x: &[f32]) {
    let [t, d] = be.shape(tx);
    let a = random.below(d);
    let widths = [a, d - a, 0];
    let parts = be.split_cols(tx.clone(), widths).unwrap();
    let of =
        |from: usize, to: usize| -> Vec<f32> { x.chunks(d).flat_map(|row| row[from..to].to_vec()).collect() };
    let mut at = 0;
    for (part, width) in parts.iter().zip(widths) {
        assert_eq!((be.shape(part), values(be, part)), ([t, width], of(at, at + width)));
        at += width;
    }
    // A view is an operand like any other, and changing it leaves what it is a view of.
    let doubled = values(be, &be.scale(parts[1].clone(), 2.0).unwrap());
    assert_eq!(doubled, of(a, d).iter().map(|v| v * 2.0).collect::<Vec<_>>());
    assert_eq!(values(be, &be.take_rows(&parts[1], &[t - 1]).unwrap()), of(a, d)[(t - 1) * (d - a)..]);
    assert_eq!(values(be, tx), x);
}

/// Key buffers: small whole numbers, which every precision holds.
fn writes<B: Backend>(be: &B, random: &mut Random, t: usize, d: usize) {
    let x: Vec<f32> = (0..t * d).map(|_| random.below(100) as f32 - 50.0).collect();
    let tx = tensor(be, &x, d);
    let slots = t + 5;
    let mut buffer = be.kv_buffer(slots, d).unwrap();
    assert_eq!(be.shape(&buffer), [slots, d]);
    let (from, at) = (random.below(t), random.below(4));
    be.write_rows(&mut buffer, at, &tx, from..t).unwrap();
    be.write_rows(&mut buffer, 0, &tx, 0..0).unwrap();
    let before = buffer.clone();
    let mut other = be.kv_buffer(slots + 3, d).unwrap();
    be.write_rows(&mut other, 2, &buffer, at..at + t - from).unwrap();
    be.write_rows(&mut buffer, at, &tx, 0..1).unwrap();
    // Attention to one position gives its value: the softmax of one score is 1.
    let seen = |buffer: &B::Tensor, slot: usize| {
        let p = AttnParams { scale: 1.0, ..AttnParams::new(1, 1, d) };
        let q = tensor(be, &vec![0.0; d], d);
        let layout = KvLayout { len: slot + 1, keep: 0, ring: slot + 1 };
        let span = AttnSpan { rows: 0..1, k: buffer, v: buffer, layout, sink: 0, window: Some(1) };
        values(be, &be.attention(&q, &[span], &p, None).unwrap())
    };
    for r in from..t {
        assert_eq!(seen(&before, at + r - from), x[r * d..][..d], "a clone keeps what it was");
        assert_eq!(seen(&other, 2 + r - from), x[r * d..][..d], "between buffers");
    }
    assert_eq!(seen(&buffer, at), x[..d], "what was written last");
    assert!(seen(&other, 0).iter().all(|v| *v == 0.0), "buffers begin as zeros");
}

/// Every format, with a number of columns that its rows can have.
fn formats() -> Vec<(Format, usize)> {
    let mut all = Vec::new();
    for t in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        all.extend([(Format::Float(t), 64), (Format::Float(t), 101)]);
    }
    for bits in [2, 3, 4, 5, 6, 8] {
        for (group, meta) in [(32, FloatType::F16), (64, FloatType::BF16), (128, FloatType::F32)] {
            all.push((Format::Affine { bits, group, meta }, 3 * group));
        }
    }
    all.extend([(Format::MxFp4, 96), (Format::MxFp8, 96), (Format::NvFp4, 80), (Format::NvFp4, 128)]);
    all.extend([Format::Q4_0, Format::Q4_1, Format::Q8_0].map(|f| (f, 160)));
    all.extend([Format::Q5_0, Format::Q5_1].map(|f| (f, 96)));
    all.extend([Format::Q4K, Format::Q5K, Format::Q6K].map(|f| (f, 512)));
    all.push((Format::MxFp4Blocks, 96));
    all
}

fn embeddings<B: Backend>(be: &B, random: &mut Random) {
    for (format, cols) in formats() {
        let raw = matrix(random, format, 37, cols);
        let table = be.prepare(std::slice::from_ref(&raw)).unwrap();
        assert!(be.weight_bytes(&table) > 0);
        let all = raw.decode().unwrap();
        let most = all.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let ids: Vec<u32> = (0..50).map(|_| random.below(37) as u32).collect();
        let got = values(be, &be.embed(&table, Ids::Host(&ids)).unwrap());
        let wanted = ids.iter().flat_map(|id| &all[*id as usize * cols..][..cols]);
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() <= 1e-6 * most, "{format}: {got}, wanted {wanted}");
        }
        assert_eq!(be.shape(&be.embed(&table, Ids::Host(&[])).unwrap()), [0, cols]);
        let error = be.embed(&table, Ids::Host(&[0, 37])).unwrap_err();
        assert!(matches!(error, Error::TokenOutOfRange { token: 37, vocab: 37 }), "{error}");
    }
}

fn products<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    for (format, cols) in formats() {
        for (t, out) in [(1, 1), (1, 64), (2, 17), (5, 100), (33, 16), (70, 37)] {
            let raw = matrix(random, format, out, cols);
            product(be, random, tol, t, &[raw]);
        }
    }
    // Merged projections, of differing heights and formats.
    for t in [1, 3, 40] {
        let affine = |bits| Format::Affine { bits, group: 64, meta: FloatType::F16 };
        let parts = [(affine(4), 48), (affine(6), 7), (Format::Float(FloatType::BF16), 33), (affine(4), 1)];
        let parts = parts.map(|(format, rows)| matrix(random, format, rows, 128));
        product(be, random, tol, t, &parts);
    }
    let [narrow, wide] = [4, 5].map(|cols| matrix(random, Format::Float(FloatType::F32), 3, cols));
    assert!(matches!(be.prepare(&[narrow, wide]), Err(Error::Shape { .. })));
}

/// `linear` of `t` random rows with `parts`, with and without bias.
fn product<B: Backend>(be: &B, random: &mut Random, tol: Tolerance, t: usize, parts: &[RawTensor<'_>]) {
    let (cols, out) = (parts[0].cols(), parts.iter().map(RawTensor::rows).sum::<usize>());
    let label = format!("{}: {t} rows, {out} x {cols}, {}", be.name(), parts[0].format);
    let w: Vec<f32> = parts.iter().flat_map(|p| p.decode().unwrap()).collect();
    let packed = be.prepare(parts).unwrap();
    let (x, b) = (random.values(t * cols, 2.0), random.values(out, 1.0));
    let (tx, bias) = (tensor(be, &x, cols), vector(be, &b));
    let plain = be.linear(&tx, &packed, None).unwrap();
    let biased = be.linear(&tx, &packed, Some(&bias)).unwrap();
    assert_eq!((be.shape(&plain), be.shape(&biased)), ([t, out], [t, out]));
    let (plain, biased) = (values(be, &plain), values(be, &biased));
    for r in 0..t {
        let row = &x[r * cols..][..cols];
        let most = row.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        for o in 0..out {
            let w = &w[o * cols..][..cols];
            let allowed = tol.linear * most * w.iter().map(|w| f64::from(w.abs())).sum::<f64>() + 1e-6;
            let wanted = dot(row, w);
            close(plain[r * out + o], wanted, allowed, &label);
            close(biased[r * out + o], wanted + f64::from(b[o]), allowed, &label);
        }
    }
}

fn norms<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    for (t, heads, n) in [(1, 1, 64), (3, 4, 16), (17, 1, 101), (2, 3, 128), (90, 1, 576)] {
        let d = heads * n;
        let (mut x, w, b) = (random.values(t * d, 2.0), random.values(n, 1.5), random.values(n, 1.0));
        // Values far from zero: the variance is that about the mean.
        x[..n].iter_mut().for_each(|v| *v += 50.0);
        let (tx, tw, tb) = (tensor(be, &x, d), vector(be, &w), vector(be, &b));
        for eps in [1e-6f32, 1e-5, 0.1] {
            let rms = values(be, &be.rms_norm(&tx, &tw, eps).unwrap());
            for (x, got) in x.chunks(n).zip(rms.chunks(n)) {
                let factor = (dot(x, x) / n as f64 + f64::from(eps)).sqrt().recip();
                for ((x, w), got) in x.iter().zip(&w).zip(got) {
                    let wanted = f64::from(*x) * factor * f64::from(*w);
                    close(*got, wanted, tol.single * (1.0 + wanted.abs()), "rms_norm");
                }
            }
            if heads == 1 {
                layer_norms(be, tol, (&tx, &x), (&tw, &w), (&tb, &b), eps);
            }
        }
    }
}

type Both<'a, T> = (&'a T, &'a [f32]);

fn layer_norms<B: Backend>(
    be: &B,
    tol: Tolerance,
    (tx, x): Both<'_, B::Tensor>,
    (tw, w): Both<'_, B::Weight>,
    (tb, b): Both<'_, B::Weight>,
    eps: f32,
) {
    let n = w.len();
    for bias in [None, Some(tb)] {
        let got = values(be, &be.layer_norm(tx, tw, bias, eps).unwrap());
        for (x, got) in x.chunks(n).zip(got.chunks(n)) {
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
            let var = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
            for (i, got) in got.iter().enumerate() {
                let scaled = (f64::from(x[i]) - mean) / (var + f64::from(eps)).sqrt() * f64::from(w[i]);
                let wanted = scaled + bias.map_or(0.0, |_| f64::from(b[i]));
                // The mean is rounded like the values, which are near 50.
                close(*got, wanted, 50.0 * tol.single, "layer_norm");
            }
        }
    }
}

/// Random values, and those where functions saturate.
fn arguments(random: &mut Random, n: usize) -> Vec<f32> {
    let mut x = random.values(n, 6.0);
    let edges = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4, 3e38, -3e38];
    x.iter_mut().zip(edges).for_each(|(x, edge)| *x = edge);
    x
}

const ACTIVATIONS: [Activation; 10] = [
    Activation::Identity,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Relu2,
    Activation::Sigmoid,
    Activation::Clip { limit: 0.7 },
    Activation::XIelu { positive: 0.8, negative: 1.3, slope: 0.5 },
    Activation::ClippedSwish { alpha: 1.702, limit: 1.5 },
];

fn elementwise<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    for (t, d) in [(1, 64), (3, 101), (40, 512)] {
        let (x, y) = (arguments(random, t * d), random.values(t * d, 2.0));
        let (tx, ty) = (tensor(be, &x, d), tensor(be, &y, d));
        let near = |got: &B::Tensor, what: &str, f: &dyn Fn(f64, f64) -> f64| {
            for ((x, y), got) in x.iter().zip(&y).zip(values(be, got)) {
                let wanted = f(f64::from(*x), f64::from(*y));
                // What overflows `f32` may do so.
                if wanted.abs() < 1e38 {
                    close(
                        got,
                        wanted,
                        tol.single * (1.0 + wanted.abs()),
                        &format!("{}: {what} of {x}", be.name()),
                    );
                }
            }
        };
        for act in ACTIVATIONS {
            let name = format!("{act:?}");
            near(&be.activate(act, tx.clone()).unwrap(), &name, &|x, _| activation(act, x));
            near(&be.gate(act, tx.clone(), &ty).unwrap(), &name, &|x, y| gated(act, x, y));
        }
        near(&be.add(tx.clone(), &ty).unwrap(), "add", &|x, y| x + y);
        near(&be.scale(tx.clone(), -0.37).unwrap(), "scale", &|x, _| x * f64::from(-0.37f32));
        near(&be.softcap(tx.clone(), 30.0).unwrap(), "softcap", &|x, _| 30.0 * (x / 30.0).tanh());
        assert_eq!(values(be, &tx), x, "shared operands are left alone");
        assert_eq!(values(be, &ty), y, "borrowed operands are left alone");
        near(&be.add(tx.clone(), &tx).unwrap(), "add to itself", &|x, _| x + x);
    }
}

fn rotations<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    for pairing in [Pairing::Halves, Pairing::Interleaved] {
        for (head_dim, pairs, scale) in
            [(64, 32, 1.0f32), (16, 8, 0.7), (96, 24, 1.2), (10, 1, 1.0), (128, 64, 1.0)]
        {
            let inv_freq = (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect();
            let rope = Rope { head_dim, inv_freq, scale, pairing };
            let mut batch = Batch::default();
            batch.reset(2000);
            for (sequence, (start, t)) in [(0, 3), (1500, 1), (7, 20)].into_iter().enumerate() {
                batch.push(sequence, start, t);
            }
            let d = head_dim * (1 + random.below(5));
            let x = random.values(batch.rows() * d, 2.0);
            let got = values(be, &be.rope(tensor(be, &x, d), &rope, &batch).unwrap());
            for (i, (x, got)) in x.chunks(head_dim).zip(got.chunks(head_dim)).enumerate() {
                let position = batch.positions()[i * head_dim / d];
                for (got, wanted) in got.iter().zip(reference::rotated(x, &rope, position)) {
                    close(*got, wanted, 10.0 * tol.single, "rope");
                }
            }
        }
    }
}

/// Several sequences in one call, with every kind of layout, window, chunk, sink and cap.
fn attentions<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    // Heads, those of keys, widths of keys and values; the last is a small latent with 40 heads.
    let shapes =
        [(1, 1, 64, 64), (4, 2, 16, 24), (9, 3, 64, 64), (8, 1, 80, 80), (2, 2, 256, 256), (40, 1, 40, 32)];
    for (heads, kv_heads, head_dim, v_head_dim) in shapes {
        for (softcap, window, chunk) in [
            (None, None, None),
            (Some(5.0), None, Some(8)),
            (None, Some(9), None),
            (Some(30.0), Some(1), None),
            (None, None, Some(20)),
        ] {
            let plain = AttnParams::new(heads, kv_heads, head_dim);
            let p = AttnParams { v_head_dim, window, chunk, softcap, ..plain };
            let logits = random.values(heads, 3.0);
            let sinks = (random.below(2) == 0).then_some(&logits[..]);
            let weight = sinks.map(|s| vector(be, s));
            let (mut spans, mut rows) = (Vec::new(), 0);
            for t in [1, 5, 1, 70] {
                spans.push(Span::any(random, rows..rows + t, &p));
                rows += t;
            }
            let q = random.values(rows * p.q_dim(), 2.0);
            let buffers: Vec<_> = spans.iter().map(|s| (buffer(be, s, &s.k), buffer(be, s, &s.v))).collect();
            let views: Vec<_> = spans
                .iter()
                .zip(&buffers)
                .map(|(s, (k, v))| {
                    let rows = s.rows.clone();
                    AttnSpan { rows, k, v, layout: s.layout, sink: s.sink, window: s.window }
                })
                .collect();
            let got = be.attention(&tensor(be, &q, p.q_dim()), &views, &p, weight.as_ref()).unwrap();
            assert_eq!(be.shape(&got), [rows, p.out_dim()]);
            let got = values(be, &got);
            for (i, wanted) in attention(&q, &spans, &p, sinks).into_iter().enumerate() {
                close(got[i], wanted, tol.attention, &format!("{}: {p:?}, value {i}", be.name()));
            }
        }
    }
}

/// The rows of `all` that are still stored, in their slots.
fn buffer<B: Backend>(be: &B, span: &Span, all: &[f32]) -> B::Tensor {
    let layout = span.layout;
    let cols = all.len() / layout.len;
    let rows = tensor(be, all, cols);
    let mut buffer = be.kv_buffer(layout.keep + layout.ring, cols).unwrap();
    for p in (0..layout.keep.min(layout.len)).chain(layout.oldest()..layout.len) {
        be.write_rows(&mut buffer, layout.slot(p), &rows, p..p + 1).unwrap();
    }
    buffer
}

/// Projections of rows that are made on the way, against the operations that make them one by one.
fn projections<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    let affine = Format::Affine { bits: 4, group: 32, meta: FloatType::F16 };
    for (format, d) in [(affine, 96), (Format::Float(FloatType::BF16), 101), (Format::Q6K, 256)] {
        for (t, out) in [(1, 64), (7, 17), (50, 33)] {
            let [x, gates] = [d, 2 * d].map(|cols| tensor(be, &random.values(t * cols, 3.0), cols));
            let [w, b] = [0, 1].map(|_| vector(be, &random.values(d, 1.0)));
            let eps = 1e-5;
            let [gate, up] = be.split_cols(gates.clone(), [d; 2]).unwrap();
            let cases = [
                (Input::Rows(&x), x.clone()),
                (Input::RmsNorm { x: &x, w: &w, eps }, be.rms_norm(&x, &w, eps).unwrap()),
                (
                    Input::LayerNorm { x: &x, w: &w, bias: Some(&b), eps },
                    be.layer_norm(&x, &w, Some(&b), eps).unwrap(),
                ),
                (
                    Input::Gated { act: Activation::Silu, gate_up: &gates },
                    be.gate(Activation::Silu, gate, &up).unwrap(),
                ),
            ];
            // Merged parts in two formats.
            let parts = [format, Format::Float(FloatType::F32)].map(|f| matrix(random, f, out, d));
            let (packed, bias) = (be.prepare(&parts).unwrap(), vector(be, &random.values(2 * out, 1.0)));
            let pair = [0, 1].map(|_| matrix(random, format, out, d));
            let pair = be.prepare(&pair).unwrap();
            let residual = random.values(t * 2 * out, 2.0);
            for (input, x) in cases {
                let label = format!("{}: {input:?}, {t} rows, {format}", be.name());
                if let Some(got) = be.project_gated(input, &pair, Some(&bias), Activation::Silu).unwrap() {
                    let both = be.linear(&x, &pair, Some(&bias)).unwrap();
                    let [gate, up] = be.split_cols(both, [out; 2]).unwrap();
                    let wanted = be.gate(Activation::Silu, gate, &up).unwrap();
                    assert_eq!(be.shape(&got), [t, out]);
                    for (got, wanted) in values(be, &got).iter().zip(values(be, &wanted)) {
                        close(*got, f64::from(wanted), tol.fused, &label);
                    }
                }
                let y = be.linear(&x, &packed, Some(&bias)).unwrap();
                let h = tensor(be, &residual, 2 * out);
                let wanted = be.add(h.clone(), &y).unwrap();
                let got = be.project(input, &packed, Some(&bias), Some(h.clone())).unwrap();
                assert_eq!(values(be, &h), residual, "a shared residual is left alone");
                for (got, wanted) in values(be, &got).iter().zip(values(be, &wanted)) {
                    close(*got, f64::from(wanted), tol.fused, &label);
                }
            }
        }
    }
}

/// Keys that are rotated on their way into a buffer, against keys that are rotated first: as attention sees them.
fn rotated_keys<B: Backend>(be: &B, random: &mut Random, tol: Tolerance) {
    for (pairing, pairs) in [(Pairing::Halves, 8), (Pairing::Interleaved, 10), (Pairing::Halves, 5)] {
        let (t, heads, head_dim) = (40, 3, 20);
        let rope = Rope { head_dim, inv_freq: random.values(pairs, 1.0), scale: 0.9, pairing };
        let mut batch = Batch::default();
        batch.reset(t);
        batch.push(0, 700, t);
        let p = AttnParams { scale: 0.1, ..AttnParams::new(heads, heads, head_dim) };
        // Some columns of wider rows, as of a merged projection.
        let wide = tensor(be, &random.values(t * (p.k_dim() + 7), 1.0), p.k_dim() + 7);
        let [_, x] = be.split_cols(wide, [7, p.k_dim()]).unwrap();
        let (rows, at) = (2..t - 1, 3);
        let layout = KvLayout { len: at + rows.len(), keep: 0, ring: t };
        let turned = be.rope(x.clone(), &rope, &batch).unwrap();
        for (rope, turned) in [(Some((&rope, &batch)), &turned), (None, &x)] {
            let [mut k, mut wanted] = [0, 1].map(|_| be.kv_buffer(t, p.k_dim()).unwrap());
            be.write_keys(&mut k, at, Keys { x: &x, rope }, rows.clone()).unwrap();
            be.write_rows(&mut wanted, at, turned, rows.clone()).unwrap();
            let seen = |k: &B::Tensor| {
                let span = AttnSpan { rows: 0..5, k, v: k, layout, sink: 0, window: None };
                values(be, &be.attention(&turned.clone(), &[span], &p, None).unwrap())[..5 * p.q_dim()]
                    .to_vec()
            };
            for (got, wanted) in seen(&k).iter().zip(seen(&wanted)) {
                close(*got, f64::from(wanted), tol.fused, &format!("{}: {rope:?}", be.name()));
            }
        }
    }
}

/// Tokens picked on the device, where the backend does that.
fn sampled<B: Backend>(be: &B, random: &mut Random) {
    let (t, d) = (7, 101);
    let x = random.values(t * d, 2.0);
    if let Some(ids) = be.argmax(&tensor(be, &x, d)).unwrap() {
        let likeliest = |row: &[f32]| (0..d).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let table = random.values(d * 3, 1.0);
        let packed = be.prepare(&[RawTensor::from_f32(vec![d, 3], &table).unwrap()]).unwrap();
        let wanted: Vec<f32> =
            x.chunks(d).flat_map(|row| table[likeliest(row) * 3..][..3].to_vec()).collect();
        assert_eq!(values(be, &be.embed(&packed, Ids::Device(&ids)).unwrap()), wanted);
    }
}

/// Tokens drawn on the device, where the backend does that: within rounding of where the definition puts the point.
fn drawn<B: Backend>(be: &B, random: &mut Random) {
    let (t, d) = (9, 701);
    // Few different values, so that filters meet equal ones.
    let x: Vec<f32> = random.values(t * d, 4.0).iter().map(|x| (x * 8.0).round() / 8.0).collect();
    let mut points: Vec<f32> = random.values(t, 0.5).iter().map(|x| x.abs().min(0.49) * 2.0).collect();
    (points[0], points[1]) = (0.0, 1.0 - f32::EPSILON / 2.0);
    let table: Vec<f32> = (0..d).map(|i| i as f32).collect();
    let table = be.prepare(&[RawTensor::from_f32(vec![d, 1], &table).unwrap()]).unwrap();
    let off = Sampling { temperature: 1.0, tempered: false, top_p: 0.0, min_p: 0.0, top_k: 0 };
    for tempered in [false, true] {
        for how in [
            off,
            Sampling { temperature: 0.3, ..off },
            Sampling { top_k: 1, ..off },
            Sampling { top_k: 40, temperature: 1.7, ..off },
            Sampling { top_p: 0.9, ..off },
            Sampling { top_p: 1e-6, ..off },
            Sampling { min_p: 0.1, temperature: 0.7, ..off },
            Sampling { top_p: 0.8, min_p: 0.02, top_k: 50, temperature: 0.7, ..off },
            Sampling { top_p: 0.95, top_k: 5, temperature: 2.0, ..off },
            Sampling { top_k: d + 1, top_p: 1.0, ..off },
        ] {
            let how = Sampling { tempered, ..how };
            let Some(ids) = be.sample(&tensor(be, &x, d), &how, &points).unwrap() else { return };
            let mut picked = Vec::new();
            be.read_ids(&ids, &mut picked).unwrap();
            let [embedded, wanted] = [Ids::Device(&ids), Ids::Host(&picked)]
                .map(|ids| values(be, &be.embed(&table, ids).unwrap()));
            assert_eq!(embedded, wanted);
            for (i, row) in x.chunks(d).enumerate() {
                let masses = how.masses(row);
                let total: f64 = masses.iter().map(|m| m.1).sum();
                let id = picked[i] as usize;
                let at = masses.iter().position(|m| m.0 == id);
                let at = at.unwrap_or_else(|| panic!("{how:?}: {id} was not to be left"));
                let below: f64 = masses[..at].iter().map(|m| m.1).sum();
                let part = (below / total, (below + masses[at].1) / total);
                let point = f64::from(points[i]);
                assert!(part.0 - 1e-5 <= point && point <= part.1 + 1e-5, "{how:?}: {point} in {part:?}");
            }
        }
    }
    let error = be.sample(&tensor(be, &x, d), &off, &points[1..]).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}

/// Operands that do not fit give [`Error::Shape`].
fn wrong_shapes<B: Backend>(be: &B, random: &mut Random) {
    let x = tensor(be, &random.values(3 * 8, 1.0), 8);
    let y = tensor(be, &random.values(2 * 8, 1.0), 8);
    let z = tensor(be, &random.values(3 * 6, 1.0), 6);
    let w = be.prepare(&[matrix(random, Format::Float(FloatType::F32), 5, 6)]).unwrap();
    let (five, six) = (vector(be, &[1.0; 5]), vector(be, &[1.0; 6]));
    let fails = |what: &str, result: rillm_tensor_core::Result<B::Tensor>| {
        let error = result.map(|t| be.shape(&t)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{what}: {error}");
    };
    fails("linear", be.linear(&x, &w, None));
    fails("linear bias", be.linear(&z, &w, Some(&six)));
    fails("linear by a vector", be.linear(&z, &six, None));
    fails("linear with a matrix as bias", be.linear(&z, &w, Some(&w)));
    fails("embed in a vector", be.embed(&six, Ids::Host(&[0])));
    fails("rms_norm", be.rms_norm(&x, &five, 1e-5));
    fails("rms_norm wider than a row", be.rms_norm(&z, &vector(be, &[1.0; 12]), 1e-5));
    fails("rms_norm by a matrix", be.rms_norm(&z, &w, 1e-5));
    fails("layer_norm", be.layer_norm(&z, &five, None, 1e-5));
    fails("layer_norm bias", be.layer_norm(&z, &six, Some(&five), 1e-5));
    fails("add", be.add(x.clone(), &y));
    fails("add of other columns", be.add(x.clone(), &z));
    fails("gate", be.gate(Activation::Silu, x.clone(), &y));
    fails("project", be.project(Input::Rows(&x), &w, None, None));
    fails("project, residual of other columns", be.project(Input::Rows(&z), &w, None, Some(z.clone())));
    let short = tensor(be, &[1.0; 10], 5);
    fails("project, residual of other rows", be.project(Input::Rows(&z), &w, None, Some(short)));
    fails("project, bias", be.project(Input::Rows(&z), &w, Some(&six), None));
    let norm = |x, w| Input::RmsNorm { x, w, eps: 1e-5 };
    fails("project of a norm", be.project(norm(&z, &five), &w, None, None));
    fails("project of a norm by nothing", be.project(norm(&z, &vector(be, &[])), &w, None, None));
    let norm = |bias| Input::LayerNorm { x: &z, w: &six, bias, eps: 1e-5 };
    fails("project of a norm with a bias", be.project(norm(Some(&five)), &w, None, None));
    let gated = |gate_up| Input::Gated { act: Activation::Silu, gate_up };
    fails("project of a narrow gate", be.project(gated(&x), &w, None, None));
    fails("project of half a gate", be.project(gated(&tensor(be, &[1.0; 13], 13)), &w, None, None));
    fails("take_rows", be.take_rows(&x, &[0, 3]));
    fails("take_rows, far", be.take_rows(&x, &[usize::MAX]));
    fails("split_cols, too few", be.split_cols(x.clone(), [4, 3]).map(|[a, _]| a));
    fails("split_cols, too many", be.split_cols(x.clone(), [4, 5]).map(|[a, _]| a));
    fails("split_cols, overflow", be.split_cols(x.clone(), [usize::MAX, 9]).map(|[a, _]| a));

    let mut batch = Batch::default();
    batch.reset(8);
    batch.push(0, 0, 3);
    let rope =
        |head_dim, pairs| Rope { head_dim, inv_freq: vec![1.0; pairs], scale: 1.0, pairing: Pairing::Halves };
    fails("rope of other rows", be.rope(y.clone(), &rope(4, 2), &batch));
    fails("rope of parts of heads", be.rope(x.clone(), &rope(5, 2), &batch));
    fails("rope of too many pairs", be.rope(x.clone(), &rope(4, 3), &batch));
    fails("rope of empty heads", be.rope(x.clone(), &rope(0, 0), &batch));
}

fn wrong_buffers<B: Backend>(be: &B, random: &mut Random) {
    let x = tensor(be, &random.values(3 * 8, 1.0), 8);
    let (mut buffer, mut narrow) = (be.kv_buffer(4, 8).unwrap(), be.kv_buffer(4, 6).unwrap());
    let wrong = |what: &str, result: rillm_tensor_core::Result<()>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{what}: {error}");
    };
    wrong("rows beyond the buffer", be.write_rows(&mut buffer, 2, &x, 0..3));
    wrong("rows beyond the source", be.write_rows(&mut buffer, 0, &x, 2..4));
    wrong("a row beyond all", be.write_rows(&mut buffer, usize::MAX, &x, 0..3));
    #[allow(clippy::reversed_empty_ranges)]
    wrong("rows that end before they start", be.write_rows(&mut buffer, 0, &x, 3..1));
    wrong("other columns", be.write_rows(&mut narrow, 0, &x, 0..1));
    let rope = Rope { head_dim: 4, inv_freq: vec![1.0; 2], scale: 1.0, pairing: Pairing::Halves };
    let mut batch = Batch::default();
    batch.push(0, 0, 3);
    let keys = Keys { x: &x, rope: Some((&rope, &batch)) };
    wrong("keys beyond the buffer", be.write_keys(&mut buffer, 2, keys, 0..3));
    wrong("keys of other columns", be.write_keys(&mut narrow, 0, keys, 0..1));
    batch.push(1, 0, 1);
    let keys = Keys { x: &x, rope: Some((&rope, &batch)) };
    wrong("keys of other rows than the batch", be.write_keys(&mut buffer, 0, keys, 0..3));
    be.write_rows(&mut buffer, 1, &x, 0..3).unwrap();

    let p = AttnParams { scale: 1.0, ..AttnParams::new(2, 1, 8) };
    let q = tensor(be, &[0.5; 3 * 16], 16);
    let span = |rows, len, ring| {
        let layout = KvLayout { len, keep: 0, ring };
        AttnSpan { rows, k: &buffer, v: &buffer, layout, sink: 0, window: None }
    };
    assert_eq!(be.shape(&be.attention(&q, &[span(0..3, 4, 4)], &p, None).unwrap()), [3, 16]);
    let fails = |what: &str, q: &B::Tensor, span: AttnSpan<'_, B::Tensor>, p: AttnParams| {
        let error = be.attention(q, &[span], &p, None).map(|t| be.shape(&t)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{what}: {error}");
    };
    fails("a buffer shorter than the sequence", &q, span(0..3, 5, 5), p);
    fails("a ring without slots", &q, span(0..3, 4, 0), p);
    fails("more queries than positions", &q, span(0..3, 2, 4), p);
    fails("rows beyond the queries", &q, span(1..4, 4, 4), p);
    fails("narrow queries", &x, span(0..3, 4, 4), p);
    fails("wide keys", &q, span(0..3, 4, 4), AttnParams { kv_heads: 2, ..p });
    fails("no heads of keys", &q, span(0..3, 4, 4), AttnParams { kv_heads: 0, ..p });
    fails("values that are wider", &q, span(0..3, 4, 4), AttnParams { v_head_dim: 9, ..p });
    fails("no values", &q, span(0..3, 4, 4), AttnParams { v_head_dim: 0, ..p });
    let sinks = vector(be, &[0.0; 3]);
    let error = be.attention(&q, &[span(0..3, 4, 4)], &p, Some(&sinks)).map(|t| be.shape(&t)).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "sinks of other heads: {error}");
    fails("values of another width", &q, AttnSpan { v: &narrow, ..span(0..3, 4, 4) }, p);
    assert!(matches!(be.kv_buffer(usize::MAX / 2, 64), Err(Error::OutOfMemory { .. })));
}

const EXACT: Tolerance = Tolerance { single: 3e-6, linear: 1e-6, attention: 1e-5, fused: 0.0 };
/// Activations in 8 bits, half a step of 1/127 off at most, and keys in `f16`.
const FAST: Tolerance = Tolerance { single: 3e-6, linear: 4e-3, attention: 3e-3, fused: 0.0 };

#[test]
fn cpu_exact() {
    for kernels in Cpu::kernel_names() {
        for threads in [1, 3] {
            let cpu = Cpu::builder().kernels(kernels).threads(threads).precision(Precision::Exact);
            conformance(&cpu.build().unwrap(), EXACT);
        }
    }
}

#[test]
fn cpu_fast() {
    for kernels in Cpu::kernel_names() {
        let cpu = Cpu::builder().kernels(kernels).threads(2).precision(Precision::Fast);
        conformance(&cpu.build().unwrap(), FAST);
    }
}

#[test]
fn default_bodies() {
    for (precision, tolerance) in [(Precision::Exact, EXACT), (Precision::Fast, FAST)] {
        conformance(&Plain(Cpu::builder().precision(precision).build().unwrap()), tolerance);
    }
}

#[test]
fn cpu_gates_prompts_at_once() {
    let be = Cpu::new().unwrap();
    let pair = be.prepare(&[0, 1].map(|_| matrix(&mut Random(7), Format::Q8_0, 5, 32))).unwrap();
    let gated = |rows: usize, cols: usize, bias: &[f32]| {
        let (x, bias) = (tensor(&be, &vec![1.0; rows * cols], cols), vector(&be, bias));
        be.project_gated(Input::Rows(&x), &pair, Some(&bias), Activation::Silu)
    };
    assert!(gated(20, 32, &[0.0; 10]).unwrap().is_some(), "a prompt");
    assert!(gated(1, 32, &[0.0; 10]).unwrap().is_none(), "a token");
    for wrong in [gated(20, 64, &[0.0; 10]), gated(20, 32, &[0.0; 5])] {
        assert!(matches!(wrong, Err(Error::Shape { .. })), "{wrong:?}");
    }
}

#[test]
fn cpu_keeps_ids_on_the_host() {
    let cpu = Cpu::builder().threads(1).build().unwrap();
    let x = tensor(&cpu, &[1.0, 2.0], 2);
    let table = cpu.prepare(&[RawTensor::from_f32(vec![2, 2], &[1.0; 4]).unwrap()]).unwrap();
    assert!(matches!(cpu.embed(&table, Ids::Device(&x)), Err(Error::NoDeviceIds)));
    assert!(cpu.argmax(&x).unwrap().is_none());
    assert!(cpu.name().contains("cpu"));
}

#[path = "conformance/experts.rs"]
mod experts;
#[cfg(feature = "mlx")]
#[path = "conformance/mlx.rs"]
mod mlx;
