//! Groups of small floats under 8-bit scales: mxfp4, mxfp8 and nvfp4. Integer codes are elsewhere.
//!
//! Types from the OCP Microscaling Formats specification 1.0, scales as MLX stores them.

use crate::bitstream;
use crate::codec::Parts;
use crate::{Format, RawRow};

/// The value of each E2M1 code.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The value of each E4M3 code.
static E4M3: [f32; 256] = e4m3_table();

const E2M1_MAX: f32 = 6.0;
const E4M3_MAX: f32 = 448.0;
/// Values of the largest group.
const MAX_GROUP: usize = 32;

/// The value of an E4M3 code (the variant without infinities): bias 7, largest 448, `0x7f` and `0xff` NaN.
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

/// The value of an E8M0 code, `2^(code - 127)`; 255 is infinite, as in MLX, where the specification says NaN.
pub const fn e8m0_to_f32(code: u8) -> f32 {
    // The exponent field of an f32 is this code, but for 2^-127, which is subnormal.
    f32::from_bits(if code == 0 { 1 << 22 } else { (code as u32) << 23 })
}

const fn e4m3_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code as u32 >> 3) & 15, code as u32 & 7);
        let magnitude = if code & 0x7f == 0x7f {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            f32::from_bits(((exponent + 120) << 23) | (mantissa << 20))
        };
        table[code] = if code < 128 { magnitude } else { -magnitude };
        code += 1;
    }
    table
}

/// Values of a row.
pub(crate) fn decode(row: RawRow<'_>, out: &mut [f32]) {
    let RawRow { format, factor, .. } = row;
    let group = format.group();
    let packed = row.codes.chunks_exact(if format == Format::MxFp8 { group } else { group / 2 });
    for ((packed, scale), out) in packed.zip(row.scales).zip(out.chunks_exact_mut(group)) {
        let scale = self::scale(format, *scale, factor);
        if format == Format::MxFp8 {
            for (w, code) in out.iter_mut().zip(packed) {
                *w = scale * E4M3[usize::from(*code)];
            }
        } else {
            for (pair, codes) in out.chunks_exact_mut(2).zip(packed) {
                pair[0] = scale * E2M1[usize::from(codes & 15)];
                pair[1] = scale * E2M1[usize::from(codes >> 4)];
            }
        }
    }
}

/// Codes of a row, one a byte.
pub(crate) fn codes(format: Format, packed: &[u8], out: &mut [u8]) {
    bitstream::unpack(if format == Format::MxFp8 { 8 } else { 4 }, packed, out);
}

/// The scale of a group.
pub(crate) fn scale(format: Format, code: u8, factor: f32) -> f32 {
    if format == Format::NvFp4 { e4m3_to_f32(code) * factor } else { e8m0_to_f32(code) }
}

/// Appends the groups of `values`. Scales of powers of two are the least that reach the largest value.
pub(crate) fn encode(format: Format, values: &[f32], parts: &mut Parts) {
    let mut codes = [0; MAX_GROUP];
    for values in values.chunks_exact(format.group()) {
        let codes = &mut codes[..values.len()];
        let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let code = match format {
            Format::NvFp4 => f32_to_e4m3(largest / E2M1_MAX),
            Format::MxFp8 => f32_to_e8m0(largest / E4M3_MAX),
            _ => f32_to_e8m0(largest / E2M1_MAX),
        };
        let scale = self::scale(format, code, 1.0);
        for (code, x) in codes.iter_mut().zip(values) {
            let x = if scale == 0.0 { 0.0 } else { x / scale };
            *code = if format == Format::MxFp8 { f32_to_e4m3(x) } else { f32_to_e2m1(x) };
        }
        bitstream::pack(if format == Format::MxFp8 { 8 } else { 4 }, codes, &mut parts.codes);
        parts.scales.push(code);
    }
}

/// The least power of two that is not below `x >= 0`; 1 for zero, as MLX has it.
fn f32_to_e8m0(x: f32) -> u8 {
    let (exponent, mantissa) = (x.to_bits() >> 23, x.to_bits() & 0x7f_ffff);
    match (exponent, mantissa) {
        (0, 0) => 127,
        (0, _) => u8::from(mantissa > 1 << 22),
        _ => (exponent + u32::from(mantissa != 0)).min(254) as u8,
    }
}

/// The nearest E4M3 code, ties to even, saturating.
fn f32_to_e4m3(x: f32) -> u8 {
    let magnitude = x.abs().min(E4M3_MAX);
    let code = if magnitude < 1.0 / 64.0 {
        // Subnormals and, by the carry, the least normal: multiples of 2^-9.
        (magnitude * 512.0).round_ties_even() as u32
    } else {
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
        (rounded >> 20) - (120 << 3)
    };
    code as u8 | sign_bit(x, 7)
}

/// The nearest E2M1 code, ties to even, saturating.
fn f32_to_e2m1(x: f32) -> u8 {
    let magnitude = x.abs();
    // Halfway to the next value, which is taken on a tie if its code is even.
    let above = [0.25, 1.25, 2.5, 5.0].iter().filter(|t| magnitude > **t).count();
    let reached = [0.75, 1.75, 3.5].iter().filter(|t| magnitude >= **t).count();
    (above + reached) as u8 | sign_bit(x, 3)
}

fn sign_bit(x: f32, position: u32) -> u8 {
    u8::from(x.is_sign_negative()) << position
}
