//! Every table against double precision, and against the scalar table bit by bit.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::cpu::kernels::{Kernels, available};

const LENGTHS: [usize; 9] = [1, 3, 15, 16, 17, 64, 100, 576, 2049];

/// Values in `-scale..scale` from a linear congruential generator.
fn values(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..n).map(|_| next()).collect()
}

/// Runs `op` with every table, checks that all give the same bits, and returns the result.
fn by_all(x: &[f32], op: impl Fn(&Kernels, &mut [f32])) -> Vec<f32> {
    let results: Vec<(&str, Vec<f32>)> = available()
        .into_iter()
        .map(|k| {
            let mut x = x.to_vec();
            op(k, &mut x);
            (k.name, x)
        })
        .collect();
    for (name, result) in &results {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(result), bits(&results[0].1), "{name} differs from {}", results[0].0);
    }
    results[0].1.clone()
}

#[track_caller]
fn assert_close(got: &[f32], want: impl IntoIterator<Item = f64>, relative: f64, absolute: f64) {
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= absolute + relative * want.abs(), "{i}: {got} instead of {want}");
    }
}

/// `erfc(x)` for `x >= 0`: the Taylor series of erf, or the continued fraction.
fn erfc(x: f64) -> f64 {
    let c = 2.0 / std::f64::consts::PI.sqrt();
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for k in 1..80 {
            term *= -x * x / f64::from(k);
            sum += term / f64::from(2 * k + 1);
        }
        return 1.0 - c * sum;
    }
    let fraction = (1..200).rev().fold(x, |f, k| x + f64::from(k) / 2.0 / f);
    (-x * x).exp() / fraction * c / 2.0
}

fn phi(x: f64) -> f64 {
    let tail = erfc(x.abs() * std::f64::consts::FRAC_1_SQRT_2) / 2.0;
    if x < 0.0 { tail } else { 1.0 - tail }
}

fn reference(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Identity => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * phi(x),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0) * x.max(0.0),
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

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];

#[test]
fn erfc_agrees_with_published_values() {
    // Abramowitz and Stegun, table 7.1, and W. J. Cody's asymptotics.
    for (x, want) in [(0.5, 0.479_500_122_2), (1.0, 0.157_299_207_1), (2.0, 4.677_734_98e-3)] {
        assert!((erfc(x) / want - 1.0).abs() < 1e-8);
    }
    assert!((erfc(3.0) / 2.209_049_699_858_544e-5 - 1.0).abs() < 1e-12);
}

#[test]
fn activations() {
    for act in ACTIVATIONS {
        for n in LENGTHS {
            let x = values(n, n as u64, 8.0);
            let got = by_all(&x, |k, x| (k.elementwise.activate)(act, x));
            // A few ulp; the tanh form of gelu and silu lose what rounding their large exponents costs.
            assert_close(&got, x.iter().map(|&x| reference(act, x.into())), 1.5e-6, 1e-7);
        }
        let near: Vec<f32> = values(4096, 9, 1.0);
        let got = by_all(&near, |k, x| (k.elementwise.activate)(act, x));
        assert_close(&got, near.iter().map(|&x| reference(act, x.into())), 4e-7, 1e-38);
    }
}

#[test]
fn activations_that_are_not_of_the_form_of_relu() {
    let acts = [
        Activation::Sigmoid,
        Activation::Clip { limit: 1.5 },
        Activation::XIelu { positive: 0.8, negative: 1.3, slope: 0.5 },
        Activation::ClippedSwish { alpha: 1.702, limit: 2.5 },
    ];
    for act in acts {
        for n in LENGTHS {
            let x = values(n, n as u64, 8.0);
            let got = by_all(&x, |k, x| (k.elementwise.activate)(act, x));
            assert_close(&got, x.iter().map(|&x| reference(act, x.into())), 1.5e-6, 3e-7);
        }
        let got = by_all(&[f32::NAN], |k, x| (k.elementwise.activate)(act, x));
        assert!(got[0].is_nan(), "{act:?}");
    }
}

#[test]
fn gelu_is_within_a_few_ulp_in_its_tail() {
    let x: Vec<f32> = (0..13_000).map(|i| -(i as f32) / 1000.0).collect();
    let got = by_all(&x, |k, x| (k.elementwise.activate)(Activation::Gelu, x));
    assert_close(&got, x.iter().map(|&x| reference(Activation::Gelu, x.into())), 6e-7, 1e-37);
}

#[test]
fn activations_of_extremes() {
    for act in ACTIVATIONS {
        let x = [f32::INFINITY, 1e30, -1e30, f32::NAN, 0.0];
        let got = by_all(&x, |k, x| (k.elementwise.activate)(act, x));
        assert_eq!(got[0], f32::INFINITY, "{act:?}");
        assert!(act == Activation::Relu2 || got[1] == 1e30, "{act:?}");
        assert_eq!((got[2], got[4]), (0.0, 0.0), "{act:?}");
        assert!(got[3].is_nan(), "{act:?}");
    }
}

#[test]
fn gates() {
    for act in ACTIVATIONS {
        for n in LENGTHS {
            let (x, up) = (values(n, 1, 4.0), values(n, 2, 4.0));
            let got = by_all(&x, |k, out| (k.elementwise.gate)(act, &x, &up, out));
            let want = x.iter().zip(&up).map(|(&x, &up)| reference(act, x.into()) * f64::from(up));
            assert_close(&got, want, 1.5e-6, 1e-6);
        }
    }
}

#[test]
fn sums_scales_and_caps() {
    for n in LENGTHS {
        let (x, y) = (values(n, 3, 100.0), values(n, 4, 100.0));
        let sum = by_all(&x, |k, x| (k.elementwise.add)(x, &y));
        assert!(sum.iter().zip(x.iter().zip(&y)).all(|(s, (x, y))| *s == x + y));
        let scaled = by_all(&x, |k, x| (k.elementwise.scale)(x, 0.3));
        assert!(scaled.iter().zip(&x).all(|(s, x)| *s == x * 0.3));
        for cap in [1.0f32, 30.0, 50.0] {
            let got = by_all(&x, |k, x| (k.elementwise.softcap)(x, cap));
            let want = x.iter().map(|&x| f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh());
            assert_close(&got, want, 4e-7, 0.0);
        }
    }
    let got =
        by_all(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-20], |k, x| (k.elementwise.softcap)(x, 2.0));
    assert_eq!(got[..2], [2.0, -2.0]);
    assert!(got[2].is_nan() && (got[3] / 1e-20 - 1.0).abs() < 1e-6);
}

#[test]
fn norms() {
    for n in LENGTHS {
        let (x, w, b) = (values(n, 5, 3.0), values(n, 6, 2.0), values(n, 7, 1.0));
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (xd, wd, bd) = (wide(&x), wide(&w), wide(&b));
        let eps = 1e-5f32;

        let got = by_all(&x, |k, out| (k.elementwise.rms_norm)(&x, &w, eps, out));
        let mean = xd.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let inv = 1.0 / (mean + f64::from(eps)).sqrt();
        assert_close(&got, xd.iter().zip(&wd).map(|(x, w)| x * inv * w), 5e-7, 0.0);

        let mean = xd.iter().sum::<f64>() / n as f64;
        let var = xd.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
        let inv = 1.0 / (var + f64::from(eps)).sqrt();
        let want = |i: usize| (xd[i] - mean) * inv * wd[i];
        let got = by_all(&x, |k, out| (k.elementwise.layer_norm)(&x, &w, None, eps, out));
        assert_close(&got, (0..n).map(want), 1e-6, 2e-6);
        let got = by_all(&x, |k, out| (k.elementwise.layer_norm)(&x, &w, Some(&b), eps, out));
        assert_close(&got, (0..n).map(|i| want(i) + bd[i]), 1e-6, 2e-6);
    }
}

#[test]
fn rope_turns_pairs_and_keeps_the_rest() {
    for pairing in [Pairing::Halves, Pairing::Interleaved] {
        for (heads, head_dim, pairs) in [(3, 64, 32), (2, 80, 40), (1, 128, 16), (4, 6, 2), (2, 96, 36)] {
            let x = values(heads * head_dim, 8, 2.0);
            let angles = values(pairs, 9, 3.0);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let got = by_all(&x, |k, out| {
                let turn = RopeTurn { cos: &cos, sin: &sin, head_dim, pairing };
                (k.elementwise.rope)(&x, turn, out);
                let mut halves = vec![f16::NAN; out.len()];
                (k.elementwise.rope_narrow)(&x, turn, &mut halves);
                assert!(halves.iter().zip(&*out).all(|(half, x)| *half == f16::from_f32(*x)), "{}", k.name);
            });
            for (i, &got) in got.iter().enumerate() {
                let (head, at) = (i / head_dim * head_dim, i % head_dim);
                let (pair, is_first, other) = match pairing {
                    _ if at >= 2 * pairs => {
                        assert_eq!(got, x[i]);
                        continue;
                    }
                    Pairing::Halves => (at % pairs, at < pairs, (at + pairs) % (2 * pairs)),
                    Pairing::Interleaved => (at / 2, at % 2 == 0, at ^ 1),
                };
                let [x, y, c, s] = [x[i], x[head + other], cos[pair], sin[pair]].map(f64::from);
                let want = x * c + if is_first { -y * s } else { y * s };
                assert!((f64::from(got) - want).abs() < 4e-7, "{pairing:?} {i}: {got} instead of {want}");
            }
        }
    }
}

#[test]
fn halves_are_the_nearest_and_finite() {
    for n in LENGTHS {
        let mut x = values(n, 10, 100.0);
        let edges = [65504.0, 65519.0, 65520.0, -1e30, f32::INFINITY, f32::NEG_INFINITY, 1e-8, -0.0];
        x.iter_mut().zip(edges).for_each(|(x, edge)| *x = edge);
        for k in available() {
            let mut out = vec![f16::NAN; n + 1];
            (k.elementwise.narrow)(&x, &mut out[..n]);
            for (x, half) in x.iter().zip(&out) {
                let want = f16::from_f32(x.clamp(-65504.0, 65504.0));
                assert_eq!(half.to_bits(), want.to_bits(), "{}: {x}", k.name);
            }
            assert!(out[n].is_nan());
            (k.elementwise.narrow)(&vec![f32::NAN; n], &mut out[..n]);
            assert!(out.iter().all(|x| x.is_nan()), "{}", k.name);
        }
    }
}
