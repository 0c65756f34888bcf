//! Packing against the decoder of `rillm-quant`, for every format. Not the products.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use rillm_quant::{FloatType, Format, RawTensor};

use super::Packed;
use crate::cpu::arena::Arena;
use crate::cpu::kernels::{Kernels, available, best};
use crate::cpu::threads::Threads;

/// Bits without a pattern, the same each time.
pub(crate) struct Noise(pub u64);

impl Noise {
    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32 ^ (self.0 >> 11) as u32
    }

    /// Within `-1..1`.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() as f32 / 2f32.powi(31)) - 1.0
    }
}

/// Every format that can be packed.
pub(crate) fn formats() -> Vec<Format> {
    let floats = [FloatType::F32, FloatType::F16, FloatType::BF16];
    let mut all: Vec<_> = floats.map(Format::Float).into();
    for bits in [2, 3, 4, 5, 6, 8] {
        for (group, meta) in [(32, FloatType::F16), (64, FloatType::BF16), (128, FloatType::F32)] {
            all.push(Format::Affine { bits, group, meta });
        }
    }
    use Format::*;
    all.extend([MxFp4, MxFp8, NvFp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K, MxFp4Blocks]);
    all
}

/// Where half floats (GGML's `d` and `m`) lie in a block, and the block's bytes.
fn halves_of_block(format: Format) -> (&'static [usize], usize) {
    match format {
        Format::Q4_0 => (&[0], 18),
        Format::Q5_0 => (&[0], 22),
        Format::Q8_0 => (&[0], 34),
        Format::Q4_1 => (&[0, 2], 20),
        Format::Q5_1 => (&[0, 2], 24),
        Format::Q4K => (&[0, 2], 144),
        Format::Q5K => (&[0, 2], 176),
        Format::Q6K => (&[208], 210),
        _ => (&[], 1),
    }
}

fn stored(t: FloatType, x: f32) -> Vec<u8> {
    match t {
        FloatType::F32 => x.to_le_bytes().into(),
        FloatType::F16 => half::f16::from_f32(x).to_le_bytes().into(),
        FloatType::BF16 => half::bf16::from_f32(x).to_le_bytes().into(),
    }
}

/// A tensor of `format` with all codes in it and values of about 1.
pub(crate) fn random(format: Format, rows: usize, cols: usize, seed: u64) -> RawTensor<'static> {
    let mut noise = Noise(seed);
    let [codes, scales, biases] = format.row_bytes(cols).unwrap().map(|n| n * rows);
    let mut codes: Vec<u8> = (0..codes).map(|_| noise.bits() as u8).collect();
    let (mut scale_bytes, mut bias_bytes) = (vec![], vec![]);
    match format {
        Format::Float(t) => codes = (0..rows * cols).flat_map(|_| stored(t, noise.float())).collect(),
        Format::Affine { bits, meta, .. } => {
            let step = 2.0 / (1u32 << bits) as f32;
            while scale_bytes.len() < scales {
                scale_bytes.extend(stored(meta, step * noise.float()));
                bias_bytes.extend(stored(meta, noise.float()));
            }
        }
        Format::MxFp8 => {
            codes.iter_mut().filter(|c| **c & 0x7f == 0x7f).for_each(|c| *c ^= 1);
            scale_bytes.extend((0..scales).map(|_| 118 + (noise.bits() % 4) as u8));
        }
        Format::MxFp4 => scale_bytes.extend((0..scales).map(|_| 123 + (noise.bits() % 4) as u8)),
        Format::MxFp4Blocks => {
            codes.iter_mut().step_by(17).for_each(|scale| *scale = 123 + (noise.bits() % 4) as u8);
        }
        Format::NvFp4 => scale_bytes.extend((0..scales).map(|_| (noise.bits() % 0x38) as u8)),
        _ => {}
    }
    let (at, size) = halves_of_block(format);
    for block in codes.chunks_exact_mut(size).filter(|_| !at.is_empty()) {
        for at in at {
            block[*at..at + 2].copy_from_slice(&stored(FloatType::F16, noise.float() / 64.0));
        }
    }
    assert_eq!(bias_bytes.len(), biases);
    let parts = [Cow::Owned(codes), Cow::Owned(scale_bytes), Cow::Owned(bias_bytes)];
    let mut raw = RawTensor::new(format, vec![rows, cols], parts).unwrap();
    if format == Format::NvFp4 {
        raw.factor = 0.37;
    }
    raw
}

#[test]
fn rows_of_every_format_are_decoded_exactly() {
    let threads = Threads::new(2).unwrap();
    for format in formats() {
        for (rows, groups) in [(1, 1), (16, 3), (17, 2), (37, 5), (33, 39)] {
            let cols = format.group() * groups * if format.group() == 1 { 23 } else { 1 };
            let raw = random(format, rows, cols, rows as u64);
            for kernels in available() {
                let packed = Packed::new(&raw, &Arena::default(), kernels, &threads).unwrap();
                assert_eq!([packed.rows(), packed.cols()], [rows, cols]);
                check_rows(&packed, &raw, kernels);
            }
        }
    }
}

fn check_rows(packed: &Packed, raw: &RawTensor<'_>, kernels: &Kernels) {
    let (mut got, mut want) = (vec![0.0; raw.cols()], vec![0.0; raw.cols()]);
    for row in 0..raw.rows() {
        packed.row(row, &mut got);
        raw.decode_row(row, &mut want).unwrap();
        // Equal but for the sign of zero, which integers lack.
        assert_eq!(got, want, "{}: {} {:?} row {row}", kernels.name, raw.format, raw.shape);
    }
}

#[test]
fn packed_size_is_near_the_stored_size() {
    let threads = Threads::new(1).unwrap();
    for format in formats() {
        let cols = 512;
        let packed = Packed::new(&random(format, 32, cols, 1), &Arena::default(), best(), &threads).unwrap();
        let stored: usize = format.row_bytes(cols).unwrap().iter().sum::<usize>() * 32;
        let most = match format {
            // Sub-scales of 6 bits are widened to 8, scales of 8 bits to 16.
            Format::Q4K | Format::Q5K => 1.03,
            Format::NvFp4 => 1.12,
            Format::MxFp4 | Format::MxFp4Blocks => 1.06,
            Format::MxFp8 => 2.0,
            _ => 1.0,
        };
        assert!(packed.bytes() as f64 <= stored as f64 * most, "{format}: {} of {stored}", packed.bytes());
    }
}

#[test]
fn extremes_of_mxfp8_keep_their_values() {
    // 2^-127 times E4M3's subnormals is below what bf16 can tell apart.
    let raw = RawTensor::new(
        Format::MxFp8,
        vec![1, 32],
        [Cow::Owned((0..32).collect()), Cow::Owned(vec![0]), Cow::Owned(vec![])],
    )
    .unwrap();
    let packed = Packed::new(&raw, &Arena::default(), best(), &Threads::new(1).unwrap()).unwrap();
    let mut got = vec![0.0; 32];
    packed.row(0, &mut got);
    assert_eq!(got, raw.decode().unwrap());
}

#[test]
fn fields_that_do_not_fit_are_an_error() {
    let mut raw = random(Format::Q4_0, 4, 64, 1);
    raw.shape = vec![1 << 40, 64];
    assert!(Packed::new(&raw, &Arena::default(), best(), &Threads::new(1).unwrap()).is_err());
    let mut raw = random(Format::Affine { bits: 4, group: 32, meta: FloatType::F16 }, 4, 64, 1);
    raw.biases = Cow::Borrowed(&[]);
    assert!(Packed::new(&raw, &Arena::default(), best(), &Threads::new(1).unwrap()).is_err());
}
