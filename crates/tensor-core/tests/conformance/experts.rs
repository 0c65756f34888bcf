//! Experts and heads: every way of choosing, every format, few rows and many.

use super::*;
use reference::routing::choose;
use rillm_tensor_core::{Experts, GroupScore, Groups, Routing, Score, Weigh};

/// Softmax over all, its part of the chosen.
const PLAIN: Routing = Routing {
    top_k: 2,
    score: Score::Softmax,
    groups: None,
    normalize: Some(0.0),
    scale: 1.0,
    weigh: Weigh::Results,
};

/// Ways of choosing among 12.
fn routings() -> Vec<Routing> {
    let groups = |count, chosen, by| Some(Groups { count, chosen, by });
    vec![
        PLAIN,
        Routing { top_k: 1, normalize: None, ..PLAIN },
        Routing { top_k: 12, scale: 0.5, ..PLAIN },
        Routing { top_k: 4, score: Score::Chosen, normalize: None, ..PLAIN },
        Routing { top_k: 3, score: Score::Sigmoid, normalize: Some(1e-20), scale: 2.5, ..PLAIN },
        Routing { score: Score::Sigmoid, groups: groups(4, 2, GroupScore::TwoGreatest), ..PLAIN },
        Routing {
            top_k: 5,
            groups: groups(3, 2, GroupScore::Greatest),
            normalize: None,
            scale: 3.0,
            ..PLAIN
        },
        Routing { score: Score::SparseMixer { jitter: 0.1 }, normalize: None, ..PLAIN },
        Routing { top_k: 1, score: Score::Sigmoid, normalize: None, weigh: Weigh::Inputs, ..PLAIN },
        Routing { top_k: 3, score: Score::Sigmoid, normalize: None, weigh: Weigh::Inputs, ..PLAIN },
    ]
}

const EXPERTS: usize = 12;

pub fn experts<B: Experts>(be: &B, random: &mut Random, tol: Tolerance) {
    for (i, how) in routings().into_iter().enumerate() {
        for t in [1, 3, 90] {
            let (format, cols) = formats()[(3 * i + t) % formats().len()];
            mixture(be, random, tol, (&how, t, format, cols));
        }
    }
    for (format, cols) in formats() {
        for t in [1, 40] {
            mixture(be, random, tol, (&PLAIN, t, format, cols));
            heads(be, random, tol, (t, format, cols));
        }
    }
    joined(be, random);
    wrong(be, random);
}

fn joined<B: Experts>(be: &B, random: &mut Random) {
    for (t, heads, m, n) in [(1, 1, 5, 3), (4, 3, 2, 7), (90, 4, 64, 16)] {
        let (a, b) = (random.values(t * heads * m, 1.0), random.values(t * heads * n, 1.0));
        let [ta, tb] = [(&a, m), (&b, n)].map(|(x, d)| tensor(be, x, heads * d));
        let pairs = a.chunks(m).zip(b.chunks(n));
        let wanted: Vec<f32> = pairs.flat_map(|(a, b)| [a, b].concat()).collect();
        let got = be.join_heads(&ta, &tb, heads).unwrap();
        assert_eq!((be.shape(&got), values(be, &got)), ([t, heads * (m + n)], wanted));
        let error = be.join_heads(&ta, &tb, heads + 99).map(|t| be.shape(&t)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}

/// Spread, product with bias, sum with residual.
fn mixture<B: Experts>(
    be: &B,
    random: &mut Random,
    tol: Tolerance,
    (how, t, format, cols): (&Routing, usize, Format, usize),
) {
    let label = format!("{}: {t} rows, {format}, {how:?}", be.name());
    // Two merged matrices for each expert, as of gate and up.
    let heights = [19, 16];
    let out = heights[0] + heights[1];
    let raw: Vec<_> = (0..EXPERTS).map(|_| heights.map(|h| matrix(random, format, h, cols))).collect();
    let w: Vec<Vec<f32>> =
        raw.iter().map(|parts| parts.iter().flat_map(|p| p.decode().unwrap()).collect()).collect();
    let packed = be.stack(raw.iter().map(|parts| be.prepare(parts).unwrap()).collect()).unwrap();
    let biases: Vec<Vec<f32>> = (0..EXPERTS).map(|_| random.values(out, 1.0)).collect();
    let bias = be.stack(biases.iter().map(|b| vector(be, b)).collect()).unwrap();
    let (x, h) = (random.values(t * cols, 2.0), random.values(t * out, 2.0));
    let (logits, correction) = (random.values(t * EXPERTS, 2.0), random.values(EXPERTS, 0.3));
    let correction = matches!(how.score, Score::Softmax | Score::Sigmoid).then_some(&correction[..]);
    let corrected = correction.map(|c| vector(be, c));
    let factors: Vec<f32> = random.values(EXPERTS, 0.3).into_iter().map(|x| 1.0 + x).collect();
    let factors = (how.score == Score::Softmax).then_some(&factors[..]);
    let packed_factors = factors.map(|f| vector(be, f));
    let logits_rows = tensor(be, &logits, EXPERTS);
    let routes = be.route(&logits_rows, corrected.as_ref(), packed_factors.as_ref(), how).unwrap();
    let pairs = be.spread(&tensor(be, &x, cols), &routes).unwrap();
    assert_eq!(be.shape(&pairs), [t * how.top_k, cols]);
    let y = be.linear_experts(Input::Rows(&pairs), &packed, Some(&bias), &routes).unwrap();
    assert_eq!(be.shape(&y), [t * how.top_k, out]);
    let residual = tensor(be, &h, out);
    let got = values(be, &be.combine(y.clone(), &routes, Some(residual.clone())).unwrap());
    let alone = values(be, &be.combine(y, &routes, None).unwrap());
    assert_eq!(values(be, &residual), h, "a shared residual is left alone");
    for i in 0..t {
        let row = &x[i * cols..][..cols];
        let most = row.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        let chosen = choose(&logits[i * EXPERTS..][..EXPERTS], correction, how);
        for o in 0..out {
            let (mut wanted, mut allowed) = (0.0, 1e-6);
            for &(e, weight) in &chosen {
                let weight = weight * factors.map_or(1.0, |f| f64::from(f[e]));
                let w = &w[e][o * cols..][..cols];
                let [before, after] = match how.weigh {
                    Weigh::Results => [1.0, weight],
                    Weigh::Inputs => [weight, 1.0],
                };
                wanted += after * (before * dot(row, w) + f64::from(biases[e][o]));
                let size = most * w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
                allowed += tol.linear * weight * size + 1e-6 * weight * (1.0 + size);
            }
            close(alone[i * out + o], wanted, allowed, &label);
            close(got[i * out + o], wanted + f64::from(h[i * out + o]), allowed, &label);
        }
    }
    gated_experts(be, random, tol, (&routes, t * how.top_k));
}

/// A product of what a gate opens, against the gate first.
fn gated_experts<B: Experts>(
    be: &B,
    random: &mut Random,
    tol: Tolerance,
    (routes, pairs): (&B::Routes, usize),
) {
    let act = Activation::ClippedSwish { alpha: 1.702, limit: 1.5 };
    let affine = Format::Affine { bits: 4, group: 32, meta: FloatType::F16 };
    let matrices = (0..EXPERTS).map(|_| be.prepare(&[matrix(random, affine, 21, 64)]).unwrap());
    let w = be.stack(matrices.collect()).unwrap();
    let gate_up = tensor(be, &random.values(pairs * 128, 2.0), 128);
    let [gate, up] = be.split_cols(gate_up.clone(), [64, 64]).unwrap();
    let opened = be.gate(act, gate, &up).unwrap();
    let gated = Input::Gated { act, gate_up: &gate_up };
    let got = values(be, &be.linear_experts(gated, &w, None, routes).unwrap());
    let wanted = values(be, &be.linear_experts(Input::Rows(&opened), &w, None, routes).unwrap());
    for (got, wanted) in got.iter().zip(&wanted) {
        close(*got, f64::from(*wanted), tol.fused, &format!("{}: gated experts", be.name()));
    }
}

fn heads<B: Experts>(be: &B, random: &mut Random, tol: Tolerance, (t, format, cols): (usize, Format, usize)) {
    let (n, out) = (3, 18);
    let raw: Vec<_> = (0..n).map(|_| matrix(random, format, out, cols)).collect();
    let w: Vec<Vec<f32>> = raw.iter().map(|m| m.decode().unwrap()).collect();
    let prepared = raw.iter().map(|m| be.prepare(std::slice::from_ref(m)).unwrap());
    let packed = be.stack(prepared.collect()).unwrap();
    let x = random.values(t * n * cols, 2.0);
    let y = be.linear_heads(&tensor(be, &x, n * cols), &packed).unwrap();
    assert_eq!(be.shape(&y), [t, n * out]);
    for (i, got) in values(be, &y).into_iter().enumerate() {
        let (row, head, o) = (i / (n * out), i / out % n, i % out);
        let (x, w) = (&x[(row * n + head) * cols..][..cols], &w[head][o * cols..][..cols]);
        let most = x.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        let allowed = tol.linear * most * w.iter().map(|w| f64::from(w.abs())).sum::<f64>() + 1e-6;
        close(got, dot(x, w), allowed, &format!("{}: heads, {t} rows, {format}", be.name()));
    }
}

fn wrong<B: Experts>(be: &B, random: &mut Random) {
    let x = tensor(be, &random.values(3 * 8, 1.0), 8);
    let logits = tensor(be, &random.values(3 * 4, 1.0), 4);
    let plain = |rows| matrix(random, Format::Float(FloatType::F32), rows, 8);
    let [a, b, c, d, wide] = [5, 5, 5, 5, 6].map(plain).map(|m| be.prepare(&[m]).unwrap());
    let is_shape =
        |what: &str, error: Error| assert!(matches!(error, Error::Shape { .. }), "{what}: {error}");
    is_shape("experts of different heights", be.stack(vec![a, wide]).unwrap_err());
    is_shape("no experts", be.stack(Vec::new()).unwrap_err());
    let three = be.stack(vec![b, c, d]).unwrap();
    let how = PLAIN;
    is_shape(
        "more than there are",
        be.route(&logits, None, None, &Routing { top_k: 5, ..how }).map(drop).unwrap_err(),
    );
    is_shape("none", be.route(&logits, None, None, &Routing { top_k: 0, ..how }).map(drop).unwrap_err());
    let groups = |count, chosen| Some(Groups { count, chosen, by: GroupScore::Greatest });
    for groups in [groups(3, 1), groups(4, 1), groups(2, 3), groups(0, 0)] {
        is_shape("groups", be.route(&logits, None, None, &Routing { groups, ..how }).map(drop).unwrap_err());
    }
    let bias = vector(be, &[0.0; 3]);
    is_shape("bias", be.route(&logits, Some(&bias), None, &how).map(drop).unwrap_err());
    is_shape("factors", be.route(&logits, None, Some(&bias), &how).map(drop).unwrap_err());
    let routes = be.route(&logits, None, None, &how).unwrap();
    is_shape("rows", be.spread(&tensor(be, &[0.0; 8], 8), &routes).map(drop).unwrap_err());
    let pairs = be.spread(&x, &routes).unwrap();
    let product = |x, w| be.linear_experts(Input::Rows(x), w, None, &routes).map(drop);
    is_shape("other experts than routes", product(&pairs, &three).unwrap_err());
    is_shape("rows that are no pairs", product(&x, &three).unwrap_err());
    is_shape("no stack", product(&pairs, &bias).unwrap_err());
    is_shape("sum of what are no pairs", be.combine(x.clone(), &routes, None).map(drop).unwrap_err());
    let other = be.combine(pairs, &routes, Some(logits)).map(drop);
    is_shape("residual of other columns", other.unwrap_err());
    is_shape("heads of other widths", be.linear_heads(&x, &three).map(drop).unwrap_err());
    is_shape("heads of no stack", be.linear_heads(&x, &bias).map(drop).unwrap_err());
    is_shape("linear by a stack", be.linear(&x, &three, None).map(drop).unwrap_err());
}

/// Exact arithmetic: a row's bits do not depend on the rows beside it or on threads.
#[test]
fn bits_of_a_row_are_its_own() {
    let affine = Format::Affine { bits: 4, group: 32, meta: FloatType::F16 };
    let mut first: Option<Vec<u32>> = None;
    for threads in [1, 3] {
        let random = &mut Random(11);
        let be = Cpu::builder().threads(threads).precision(Precision::Exact).build().unwrap();
        let matrices = (0..EXPERTS).map(|_| be.prepare(&[matrix(random, affine, 33, 96)]).unwrap());
        let w = be.stack(matrices.collect()).unwrap();
        let (t, x, logits) = (50, random.values(50 * 96, 1.0), random.values(50 * EXPERTS, 2.0));
        let run = |rows: Range<usize>| -> Vec<u32> {
            let part = |all: &[f32], cols: usize| tensor(&be, &all[rows.start * cols..rows.end * cols], cols);
            let routes = be.route(&part(&logits, EXPERTS), None, None, &PLAIN).unwrap();
            let pairs = be.spread(&part(&x, 96), &routes).unwrap();
            let y = be.linear_experts(Input::Rows(&pairs), &w, None, &routes).unwrap();
            values(&be, &be.combine(y, &routes, None).unwrap()).iter().map(|x| x.to_bits()).collect()
        };
        let whole = run(0..t);
        assert_eq!(*first.get_or_insert_with(|| whole.clone()), whole, "{threads} threads");
        let by_one: Vec<u32> = (0..t).flat_map(|i| run(i..i + 1)).collect();
        assert_eq!(by_one, whole);
    }
}
