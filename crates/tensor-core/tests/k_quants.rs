//! K-quants against their decoded values, on every table: the same bits in exact mode, near them in the fast one. Other
//! formats are in `conformance.rs`.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use half::f16;
use rillm_quant::{Format, RawTensor};
use rillm_tensor_core::cpu::{Cpu, Precision};
use rillm_tensor_core::{Backend, Ids};

const ROWS: usize = 37;
const COLS: usize = 768;

/// A matrix of random codes and sub-scales of either sign, under super-scales `d` and, where the format has it, `min`.
fn random(format: Format, [d, min]: [f32; 2]) -> RawTensor<'static> {
    let mut seed = 7u64;
    let [bytes, ..] = format.row_bytes(COLS).unwrap();
    let mut codes: Vec<u8> = (0..ROWS * bytes)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 56) as u8
        })
        .collect();
    let halves: &[(usize, f32)] = if format == Format::Q6K { &[(208, d)] } else { &[(0, d), (2, min)] };
    for (i, block) in codes.chunks_exact_mut(bytes * 256 / COLS).enumerate() {
        for (at, x) in halves {
            let x = f16::from_f32(x * (1.0 + (i % 7) as f32 / 8.0));
            block[*at..at + 2].copy_from_slice(&x.to_le_bytes());
        }
    }
    RawTensor::new(format, vec![ROWS, COLS], [codes.into(), Cow::Borrowed(&[]), Cow::Borrowed(&[])]).unwrap()
}

/// `x @ wᵀ` for tokens of a fixed pattern.
fn product(be: &Cpu, w: &RawTensor<'_>, tokens: usize) -> Vec<f32> {
    let x: Vec<f32> = (0..tokens * COLS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    // The only way into a backend is to embed.
    let table = be.prepare(&[RawTensor::from_f32(vec![tokens, COLS], &x).unwrap()]).unwrap();
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let x = be.embed(&table, Ids::Host(&ids)).unwrap();
    let y = be.linear(&x, &be.prepare(std::slice::from_ref(w)).unwrap(), None).unwrap();
    let mut out = Vec::new();
    be.read(&y, &mut out).unwrap();
    out
}

#[test]
fn exact_products_are_those_of_the_decoded_values() {
    for format in [Format::Q4K, Format::Q5K, Format::Q6K] {
        for d in [[0.001, 0.02], [-0.003, 0.5], [6e-8, -6e-8], [30000.0, 1.0]] {
            let raw = random(format, d);
            let decoded = RawTensor::from_f32(vec![ROWS, COLS], &raw.decode().unwrap()).unwrap();
            for name in Cpu::kernel_names() {
                let be = Cpu::builder().threads(1).precision(Precision::Exact).kernels(name).build().unwrap();
                for tokens in [1, 2, 3, 7] {
                    let (got, want) = (product(&be, &raw, tokens), product(&be, &decoded, tokens));
                    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert_eq!(bits(got), bits(want), "{format}, {name}, {tokens} tokens, {d:?}");
                }
            }
        }
    }
}

#[test]
fn fast_products_are_near() {
    for format in [Format::Q4K, Format::Q5K, Format::Q6K] {
        let raw = random(format, [0.001, 0.02]);
        let values = raw.decode().unwrap();
        for name in Cpu::kernel_names() {
            let of = |p| Cpu::builder().threads(2).precision(p).kernels(name).build().unwrap();
            for tokens in [1, 5, 16] {
                let got = product(&of(Precision::Fast), &raw, tokens);
                let want = product(&of(Precision::Exact), &raw, tokens);
                // Activations of at most 2 are off by at most half a step of 2 / 127.
                for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                    let row = &values[i % ROWS * COLS..][..COLS];
                    let bound = row.iter().map(|w| w.abs()).sum::<f32>() / 127.0;
                    assert!((a - b).abs() <= bound, "{format}, {name}: {a} instead of {b}");
                }
            }
        }
    }
}

#[test]
fn the_packed_size_is_the_stored_size() {
    let be = Cpu::new().unwrap();
    for (format, most) in [(Format::Q4K, 1.028), (Format::Q5K, 1.023), (Format::Q6K, 1.0)] {
        let mut raw = random(format, [1.0, 1.0]);
        raw.shape = vec![32, COLS];
        let stored = format.row_bytes(COLS).unwrap()[0] * 32;
        raw.codes.to_mut().truncate(stored);
        let packed = be.weight_bytes(&be.prepare(&[raw]).unwrap());
        assert!(packed as f64 <= stored as f64 * most, "{format}: {packed} of {stored}");
    }
}
