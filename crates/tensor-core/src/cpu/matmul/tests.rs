//! `linear` against sums in f64, for every format, table, batch and number of threads. Not the packing.
#![allow(clippy::unwrap_used)]

use rillm_quant::{FloatType, Format};

use super::tiled;
use super::{Context, Epilogue, Precision, Residual, Scratch, gated, gates, linear};
use crate::Activation;
use crate::cpu::arena::Arena;
use crate::cpu::kernels::tiles::reference::TILED;
use crate::cpu::kernels::{Kernels, available, best, by_name};
use crate::cpu::packed::Packed;
use crate::cpu::packed::tests::{Noise, formats, random};
use crate::cpu::rows::{Rows, RowsMut};
use crate::cpu::source::Source;
use crate::cpu::threads::Threads;

struct Case {
    parts: Vec<Packed>,
    /// Decoded rows of all parts.
    weights: Vec<Vec<f32>>,
    bias: Vec<f32>,
    x: Vec<f32>,
    cols: usize,
}

const T: usize = 41;

/// The tables of this processor, and one whose tiles are plain code.
fn tables() -> impl Iterator<Item = &'static Kernels> {
    available().into_iter().chain([&TILED])
}

impl Case {
    fn new(formats: &[Format], rows: usize, cols: usize) -> Self {
        let threads = Threads::new(1).unwrap();
        let (mut parts, mut weights) = (vec![], vec![]);
        for (i, format) in formats.iter().enumerate() {
            let raw = random(*format, rows + i, cols, 5 + i as u64);
            weights.extend(raw.decode().unwrap().chunks(cols).map(<[f32]>::to_vec));
            parts.push(Packed::new(&raw, &Arena::default(), best(), &threads).unwrap());
        }
        let mut noise = Noise(9);
        let bias = weights.iter().map(|_| noise.float()).collect();
        let x = (0..T * cols).map(|i| noise.float() * if i % 97 == 0 { 8.0 } else { 1.0 }).collect();
        Self { parts, weights, bias, x, cols }
    }

    /// Rows `first .. first + t` of the result.
    fn run(
        &self,
        kernels: &'static Kernels,
        precision: Precision,
        threads: usize,
        rows: [usize; 2],
    ) -> Vec<f32> {
        let [first, t] = rows;
        let (threads, scratch) = (Threads::new(threads).unwrap(), Scratch::default());
        let ctx = Context { kernels, threads: &threads, precision, scratch: &scratch };
        let x = Rows { data: &self.x[first * self.cols..], rows: t, cols: self.cols, stride: self.cols };
        let (width, stride) = (self.weights.len(), self.weights.len() + 3);
        let mut data = vec![f32::NAN; t * stride];
        let out = RowsMut { data: &mut data, rows: t, cols: width, stride };
        let epilogue = Epilogue { bias: Some(&self.bias), residual: Residual::None };
        linear(&ctx, &Source::Rows(x), &self.parts, epilogue, out).unwrap();
        assert!(
            data.chunks(stride).all(|row| row[width..].iter().all(|x| x.is_nan())),
            "gaps are left alone"
        );
        data.chunks(stride).flat_map(|row| row[..width].to_vec()).collect()
    }

    /// The result in f64 and, for each value, the sum of its terms' magnitudes.
    fn reference(&self) -> Vec<(f64, f64)> {
        let mut out = vec![];
        for x in self.x.chunks(self.cols) {
            for (w, b) in self.weights.iter().zip(&self.bias) {
                let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), term| (s + term, a + term.abs()));
                out.push((sum + f64::from(*b), size + f64::from(b.abs())));
            }
        }
        out
    }
}

fn cols_of(format: Format) -> Vec<usize> {
    match format.group() {
        1 => vec![1, 16, 33, 160],
        256 => vec![256, 768],
        group => vec![group, group * 5],
    }
}

#[test]
fn exact_is_the_sum_of_the_products() {
    for kernels in available() {
        for format in formats() {
            for cols in cols_of(format) {
                let case = Case::new(&[format], 19, cols);
                let got = case.run(kernels, Precision::Exact, 2, [0, T]);
                for (y, (sum, size)) in got.iter().zip(case.reference()) {
                    // Four chains of cols / 4 roundings, of which few are against us.
                    let bound = size * f64::from(f32::EPSILON) * (2.0 + cols as f64 / 16.0);
                    assert!(
                        (f64::from(*y) - sum).abs() <= bound,
                        "{} {format} {cols}: {y}, {sum}",
                        kernels.name
                    );
                }
            }
        }
    }
}

#[test]
fn exact_is_the_same_for_any_batch_and_threads_and_table() {
    for format in formats() {
        let cols = *cols_of(format).last().unwrap();
        let case = Case::new(&[format, format], 37, cols);
        let want = case.run(best(), Precision::Exact, 1, [0, T]);
        let width = case.weights.len();
        for kernels in available() {
            for threads in 1..=3 {
                assert_eq!(case.run(kernels, Precision::Exact, threads, [0, T]), want, "{format}");
            }
            for t in [1, 2, 3, 5, 8, 17] {
                let got = case.run(kernels, Precision::Exact, 1, [3, t]);
                assert_eq!(got, want[3 * width..][..t * width], "{} {format}, {t} tokens", kernels.name);
            }
        }
    }
}

#[test]
fn a_gated_pair_is_the_gate_of_the_results_of_both() {
    const TOKENS: usize = 75;
    let act = Activation::Silu;
    for format in formats() {
        let (rows, cols) = (37, *cols_of(format).last().unwrap());
        let mut case = Case::new(&[format], rows, cols);
        let opened = random(format, rows, cols, 77);
        case.weights.extend(opened.decode().unwrap().chunks(cols).map(<[f32]>::to_vec));
        let one = Threads::new(1).unwrap();
        case.parts.push(Packed::new(&opened, &Arena::default(), best(), &one).unwrap());
        let mut noise = Noise(4);
        case.bias = (0..2 * rows).map(|_| noise.float()).collect();
        case.x = (0..TOKENS * cols).map(|_| noise.float()).collect();
        for (kernels, precision) in
            tables().flat_map(|kernels| [(kernels, Precision::Fast), (kernels, Precision::Exact)])
        {
            for (threads, t) in [(2, TOKENS), (1, 17), (3, 9)] {
                let both = case.run(kernels, precision, threads, [0, t]);
                let mut want = vec![0.0; t * rows];
                for (both, want) in both.chunks(2 * rows).zip(want.chunks_mut(rows)) {
                    (kernels.elementwise.gate)(act, &both[..rows], &both[rows..], want);
                }
                let (threads, scratch) = (Threads::new(threads).unwrap(), Scratch::default());
                let ctx = Context { kernels, threads: &threads, precision, scratch: &scratch };
                let x = Rows { data: &case.x, rows: t, cols, stride: cols };
                let mut got = vec![f32::NAN; t * rows];
                let out = RowsMut { data: &mut got, rows: t, cols: rows, stride: rows };
                let parts = &case.parts[..];
                assert!(gates(parts, t) && !gates(parts, 1) && !gates(&parts[1..], t));
                gated(&ctx, &Source::Rows(x), (parts, act), Some(&case.bias), out).unwrap();
                assert_eq!(got, want, "{} {format} {precision:?}, {t} tokens", kernels.name);
            }
        }
    }
}

#[test]
fn fast_is_within_the_rounding_of_activations() {
    for kernels in tables() {
        for format in formats() {
            for cols in cols_of(format) {
                let case = Case::new(&[format], 19, cols);
                let reference = case.reference();
                let got = case.run(kernels, Precision::Fast, 2, [0, T]);
                for (i, (y, (sum, size))) in got.iter().zip(&reference).enumerate() {
                    // Half a step of each activation, times its weight; bf16 has steps of 2^-8.
                    let (x, w) = (&case.x[i / 19 * cols..][..cols], &case.weights[i % 19]);
                    let steps = x.chunks(32).zip(w.chunks(32)).map(|(x, w)| {
                        let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                        f64::from(amax) / 254.0 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
                    });
                    let bound = match format {
                        Format::Float(FloatType::F32 | FloatType::F16) => 0.0,
                        _ if kernels.tiles.is_some() => size / 256.0,
                        Format::Float(FloatType::BF16) | Format::MxFp8 => size / 256.0,
                        _ => steps.sum::<f64>(),
                    };
                    let bound = bound + 1e-5 * (size + 1.0);
                    assert!(
                        (f64::from(*y) - sum).abs() <= bound,
                        "{} {format} {cols}: {y}, {sum}",
                        kernels.name
                    );
                }
                // Many tokens may take another way; the bits depend on which, and on nothing else.
                let alone: Vec<f32> =
                    (0..T).flat_map(|t| case.run(kernels, Precision::Fast, 1, [t, 1])).collect();
                for t in [2, 3, 5, 8, 15, 23, 24, 30] {
                    let some = case.run(kernels, Precision::Fast, 3, [1, t]);
                    let want = if t < tiled::FROM { &alone } else { &got };
                    assert_eq!(some, want[19..][..t * 19], "{} {format}, {t} tokens", kernels.name);
                }
                if kernels.tiles.is_none() {
                    assert_eq!(alone, got, "{} {format}", kernels.name);
                }
            }
        }
    }
}

#[test]
fn residuals_are_added_in_place() {
    let case = Case::new(&[Format::Q4_0, Format::Q8_0], 29, 96);
    let width = case.weights.len();
    for kernels in tables() {
        let want = case.run(kernels, Precision::Fast, 1, [0, T]);
        let (threads, scratch) = (Threads::new(2).unwrap(), Scratch::default());
        let ctx = Context { kernels, threads: &threads, precision: Precision::Fast, scratch: &scratch };
        let x = Rows { data: &case.x, rows: T, cols: 96, stride: 96 };
        let mut data: Vec<f32> = (0..T * width).map(|i| (i % 13) as f32).collect();
        let out = RowsMut { data: &mut data, rows: T, cols: width, stride: width };
        let epilogue = Epilogue { bias: Some(&case.bias), residual: Residual::InPlace };
        linear(&ctx, &Source::Rows(x), &case.parts, epilogue, out).unwrap();
        for (i, (y, want)) in data.iter().zip(&want).enumerate() {
            assert_eq!(*y, want + (i % 13) as f32, "{} at {i}", kernels.name);
        }
    }
}

#[test]
fn parts_of_different_formats_stand_side_by_side() {
    let affine = Format::Affine { bits: 4, group: 64, meta: FloatType::BF16 };
    let mixed = [affine, Format::Float(FloatType::BF16), Format::Q6K, Format::Float(FloatType::F16)];
    let case = Case::new(&mixed, 30, 256);
    for (y, (sum, size)) in case.run(best(), Precision::Fast, 2, [0, T]).iter().zip(case.reference()) {
        assert!((f64::from(*y) - sum).abs() <= size / 64.0, "{y}, {sum}");
    }
}

#[test]
fn a_large_product_is_cut_without_a_seam() {
    let format = Format::Affine { bits: 4, group: 64, meta: FloatType::F16 };
    let case = Case::new(&[format], 520, 8192);
    for kernels in [by_name("avx512-amx"), by_name("avx2"), Some(best())].into_iter().flatten() {
        let got = case.run(kernels, Precision::Fast, 2, [0, T]);
        for (i, t) in [0, 8, 17].iter().enumerate() {
            let some = case.run(kernels, Precision::Fast, 1 + i, [*t, tiled::FROM]);
            assert_eq!(some, got[t * 520..][..520 * tiled::FROM]);
        }
    }
}

#[test]
fn nan_and_infinity_are_not_lost() {
    let format = Format::Affine { bits: 4, group: 32, meta: FloatType::F16 };
    for kernels in tables() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::new(&[format], 3, 64);
            case.x[40] = bad;
            for t in [1, tiled::FROM] {
                let got = case.run(kernels, Precision::Fast, 1, [0, t]);
                assert!(got[..3].iter().all(|y| !y.is_finite()), "{} {bad}: {got:?}", kernels.name);
            }
        }
        let mut case = Case::new(&[format], 3, 64);
        case.x.fill(1e-44);
        case.bias.fill(0.0);
        let got = case.run(kernels, Precision::Fast, 1, [0, 1]);
        assert!(got.iter().all(|y| y.abs() < 1e-41), "{}: {got:?}", kernels.name);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let case = Case::new(&[Format::Float(FloatType::F32)], 5, 32);
    let (threads, scratch) = (Threads::new(1).unwrap(), Scratch::default());
    let ctx = Context { kernels: best(), threads: &threads, precision: Precision::Fast, scratch: &scratch };
    let x = Rows { data: &case.x, rows: 2, cols: 32, stride: 32 };
    let mut data = [0.0; 10];
    let mut try_with = |x: Rows<'_>, bias: Option<&[f32]>, cols: usize| {
        let out = RowsMut { data: &mut data, rows: 2, cols, stride: cols };
        let epilogue = Epilogue { bias, residual: Residual::None };
        linear(&ctx, &Source::Rows(x), &case.parts, epilogue, out).is_ok()
    };
    assert!(try_with(x, None, 5));
    assert!(!try_with(x, None, 4));
    assert!(!try_with(x, Some(&[0.0; 4]), 5));
    assert!(!try_with(Rows { cols: 31, ..x }, None, 5));
    assert!(!try_with(Rows { data: &case.x[..63], ..x }, None, 5));
}
