//! Plain values: f32, f16 and bf16 bytes to and from f32. No codes, no scales.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::FloatType;

/// Values from their bytes, which need no alignment: `out.len() * t.bytes()` bytes.
pub(crate) fn decode(t: FloatType, bytes: &[u8], out: &mut [f32]) {
    match t {
        FloatType::F32 => {
            for (b, x) in bytes.chunks_exact(4).zip(out) {
                *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        FloatType::F16 => {
            // Slices at a time, because one value at a time asks for the CPU's features each time.
            let mut buffer = [f16::ZERO; 64];
            for (bytes, out) in bytes.chunks(128).zip(out.chunks_mut(64)) {
                let halves = &mut buffer[..out.len()];
                for (b, h) in bytes.chunks_exact(2).zip(&mut *halves) {
                    *h = f16::from_le_bytes([b[0], b[1]]);
                }
                halves.convert_to_f32_slice(out);
            }
        }
        FloatType::BF16 => {
            for (b, x) in bytes.chunks_exact(2).zip(out) {
                *x = f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]]));
            }
        }
    }
}

/// Appends one value, rounded to nearest, ties to even.
pub(crate) fn push(t: FloatType, x: f32, bytes: &mut Vec<u8>) {
    match t {
        FloatType::F32 => bytes.extend_from_slice(&x.to_le_bytes()),
        FloatType::F16 => bytes.extend_from_slice(&f16::from_f32(x).to_le_bytes()),
        FloatType::BF16 => bytes.extend_from_slice(&bf16::from_f32(x).to_le_bytes()),
    }
}
