//! GGML blocks: scales and codes interleaved in one byte string. Containers (GGUF) are elsewhere.
//!
//! Every format but MXFP4 is read as `w = scale * code + bias` with unsigned codes. That loses nothing: an f16 scale
//! times a 6-bit scale times a code fits the 24 bits of an f32, so the sum is the only rounding.

use half::f16;

use crate::codec::Parts;
use crate::{Format, bitstream, microscaling};

/// Values of the largest block.
const MAX_BLOCK: usize = 256;
/// Scales of the block that has most.
const MAX_META: usize = 16;

/// The blocks of a row of `cols` values.
fn blocks(format: Format, bytes: &[u8], cols: usize) -> std::slice::ChunksExact<'_, u8> {
    let count = (cols / format.group()).max(1);
    bytes.chunks_exact((bytes.len() / count).max(1))
}

/// Values of a row.
pub(crate) fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    if format == Format::MxFp4Blocks {
        return decode_mxfp4(bytes, out);
    }
    let mut codes = [0; MAX_BLOCK];
    let (mut scales, mut biases) = ([0.0; MAX_META], [0.0; MAX_META]);
    let (group, meta) = (format.group(), format.meta_group());
    for (block, out) in blocks(format, bytes, out.len()).zip(out.chunks_exact_mut(group)) {
        self::codes(format, block, &mut codes[..group]);
        block_scales(format, block, &mut scales[..group / meta], &mut biases[..group / meta]);
        let metas = scales.iter().zip(&biases);
        for ((out, codes), (scale, bias)) in
            out.chunks_exact_mut(meta).zip(codes.chunks_exact(meta)).zip(metas)
        {
            for (w, q) in out.iter_mut().zip(codes) {
                *w = scale * f32::from(*q) + bias;
            }
        }
    }
}

/// GGML doubles the elements and halves the scales, so that both are those of the specification.
fn decode_mxfp4(bytes: &[u8], out: &mut [f32]) {
    let mut codes = [0; 32];
    for (block, out) in bytes.as_chunks::<17>().0.iter().zip(out.chunks_exact_mut(32)) {
        nibbles(&block[1..], &mut codes);
        let scale = microscaling::e8m0_to_f32(block[0]);
        for (w, code) in out.iter_mut().zip(codes) {
            *w = scale * microscaling::E2M1[usize::from(code)];
        }
    }
}

/// Codes, two a byte in order, and scales of MXFP4 blocks.
pub(crate) fn apart(bytes: &[u8]) -> [Vec<u8>; 2] {
    let blocks = bytes.as_chunks::<17>().0;
    let (mut packed, mut codes) = (Vec::with_capacity(blocks.len() * 16), [0; 32]);
    for block in blocks {
        nibbles(&block[1..], &mut codes);
        bitstream::pack(4, &codes, &mut packed);
    }
    [packed, blocks.iter().map(|block| block[0]).collect()]
}

/// Codes of a row.
pub(crate) fn codes(format: Format, bytes: &[u8], out: &mut [u8]) {
    match format {
        Format::Q4_0 => each::<18, 32>(bytes, out, |block, out| nibbles(&block[2..], out)),
        Format::Q4_1 => each::<20, 32>(bytes, out, |block, out| nibbles(&block[4..], out)),
        Format::Q5_0 => each::<22, 32>(bytes, out, |block, out| {
            nibbles(&block[6..], out);
            high_bits(&block[2..6], out);
        }),
        Format::Q5_1 => each::<24, 32>(bytes, out, |block, out| {
            nibbles(&block[8..], out);
            high_bits(&block[4..8], out);
        }),
        Format::Q8_0 => each::<34, 32>(bytes, out, |block, out| {
            for (code, q) in out.iter_mut().zip(&block[2..]) {
                *code = q ^ 0x80;
            }
        }),
        Format::Q4K => each::<144, 256>(bytes, out, |block, out| {
            for (packed, out) in block[16..].chunks_exact(32).zip(out.chunks_exact_mut(64)) {
                nibbles(packed, out);
            }
        }),
        Format::Q5K => each::<176, 256>(bytes, out, fives),
        Format::MxFp4Blocks => each::<17, 32>(bytes, out, |block, out| nibbles(&block[1..], out)),
        _ => each::<210, 256>(bytes, out, sixes),
    }
}

/// Calls `decode` with each block and its codes: sizes are known when this is compiled.
#[inline(always)]
fn each<const BYTES: usize, const GROUP: usize>(
    bytes: &[u8],
    out: &mut [u8],
    decode: impl Fn(&[u8; BYTES], &mut [u8; GROUP]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// Scales and biases of a row.
pub(crate) fn scales(format: Format, bytes: &[u8], scales: &mut [f32], biases: &mut [f32]) {
    let count = format.group() / format.meta_group();
    let cols = scales.len() * format.meta_group();
    let metas = scales.chunks_exact_mut(count).zip(biases.chunks_exact_mut(count));
    for (block, (scales, biases)) in blocks(format, bytes, cols).zip(metas) {
        block_scales(format, block, scales, biases);
    }
}

/// The bits of `d` and, where a format has it, `m` of each block of a row; `false` for formats of other scales.
pub(crate) fn scale_bits(format: Format, bytes: &[u8], scales: &mut [u16], biases: &mut [u16]) -> bool {
    match format {
        Format::Q4_0 => halves::<18>(bytes, 0, scales),
        Format::Q5_0 => halves::<22>(bytes, 0, scales),
        Format::Q8_0 => halves::<34>(bytes, 0, scales),
        Format::Q4_1 => {
            halves::<20>(bytes, 0, scales);
            halves::<20>(bytes, 2, biases);
        }
        Format::Q5_1 => {
            halves::<24>(bytes, 0, scales);
            halves::<24>(bytes, 2, biases);
        }
        _ => return false,
    }
    true
}

/// The 16 bits at `at` of each block.
fn halves<const BYTES: usize>(bytes: &[u8], at: usize, out: &mut [u16]) {
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out) {
        *out = u16::from_le_bytes([block[at], block[at + 1]]);
    }
}

/// The low nibbles of all bytes, then the high nibbles.
#[inline(always)]
fn nibbles(packed: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(packed.len());
    for ((byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Adds the fifth bit of 32 codes.
#[inline(always)]
fn high_bits(packed: &[u8], out: &mut [u8; 32]) {
    for (i, codes) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let bits = u32::from(packed[i / 2] >> (4 * (i % 2)) & 15);
        // Bit `i` of four moves to byte `i`: the products don't overlap.
        let spread = (bits * 0x0020_4081) & 0x0101_0101;
        *codes = (u32::from_le_bytes(*codes) | spread << 4).to_le_bytes();
    }
}

/// The 5-bit codes of a Q5_K block `{f16 d; f16 dmin; 12 bytes; 32 bytes of high bits; 128 low nibbles}`.
#[inline(always)]
fn fives(block: &[u8; 176], out: &mut [u8; 256]) {
    let (high, low) = block[16..].split_at(32);
    for (j, (packed, out)) in low.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        nibbles(packed, out);
        let (first, second) = out.split_at_mut(32);
        for ((a, b), h) in first.iter_mut().zip(second).zip(high) {
            let h = h >> (2 * j);
            *a |= (h & 1) << 4;
            *b |= (h & 2) << 3;
        }
    }
}

/// The 6-bit codes of a Q6_K block `{128 low nibbles; 64 high pairs; 16 x i8; f16 d}`: each half of the
/// block is four runs of 32 values.
#[inline(always)]
fn sixes(block: &[u8; 210], out: &mut [u8; 256]) {
    let (low, rest) = block.split_at(128);
    let halves = low.chunks_exact(64).zip(rest[..64].chunks_exact(32));
    for ((low, high), out) in halves.zip(out.chunks_exact_mut(128)) {
        nibbles(low, out);
        for (k, run) in out.chunks_exact_mut(32).enumerate() {
            for (code, h) in run.iter_mut().zip(high) {
                *code |= (h >> (2 * k) & 3) << 4;
            }
        }
    }
}

fn block_scales(format: Format, block: &[u8], scales: &mut [f32], biases: &mut [f32]) {
    let half_at = |i: usize| f16::from_le_bytes([block[i], block[i + 1]]).to_f32();
    match format {
        Format::Q4K | Format::Q5K | Format::Q6K => {
            let SubScales { d, min, scales: s, mins } = sub_scales(format, block);
            let (d, min) = (f16::from_bits(d).to_f32(), f16::from_bits(min).to_f32());
            for (i, (scale, bias)) in scales.iter_mut().zip(biases).enumerate() {
                *scale = d * f32::from(s[i]);
                *bias = if format == Format::Q6K { *scale * -32.0 } else { -(min * f32::from(mins[i])) };
            }
        }
        Format::MxFp4Blocks => (scales[0], biases[0]) = (microscaling::e8m0_to_f32(block[0]), 0.0),
        _ => {
            let d = half_at(0);
            scales[0] = d;
            biases[0] = match format {
                Format::Q4_0 => d * -8.0,
                Format::Q5_0 => d * -16.0,
                Format::Q8_0 => d * -128.0,
                _ => half_at(2),
            };
        }
    }
}

/// The scales of a K-quant's super-block of 256 values as stored: the groups' own integers under common f16 factors.
///
/// A group's scale is `d * scales[g]`; its bias is `-(min * mins[g])`, or in Q6_K, which has neither `min` nor
/// `mins`, -32 times the scale.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SubScales {
    /// Bits of an f16.
    pub d: u16,
    /// Bits of an f16.
    pub min: u16,
    /// Of each of the 16 groups of Q6_K, of the 8 groups of the others.
    pub scales: [i8; 16],
    /// Of each of the 8 groups.
    pub mins: [u8; 8],
}

/// The scales of a block of a K-quant.
fn sub_scales(format: Format, block: &[u8]) -> SubScales {
    let bits_at = |i: usize| u16::from_le_bytes([block[i], block[i + 1]]);
    let mut out = SubScales::default();
    if format == Format::Q6K {
        out.d = bits_at(208);
        out.scales.iter_mut().zip(&block[192..208]).for_each(|(scale, byte)| *scale = *byte as i8);
    } else {
        (out.d, out.min) = (bits_at(0), bits_at(2));
        let pairs = (0..8).map(|j| six_bit_pair(&block[4..16], j));
        for ((scale, min), (s, m)) in out.scales.iter_mut().zip(&mut out.mins).zip(pairs) {
            (*scale, *min) = (s as i8, m);
        }
    }
    out
}

/// The scales of each super-block of a row of K-quants.
pub(crate) fn sub_scales_of(format: Format, bytes: &[u8]) -> impl Iterator<Item = SubScales> {
    bytes.chunks_exact(format.group_bytes()[0]).map(move |block| sub_scales(format, block))
}

/// Scale and minimum `j` of eight in 12 bytes: the first four of each whole in bytes 0..4 and 4..8; of the
/// others the low nibbles in bytes 8..12 and the upper two bits atop the bytes of the first four.
fn six_bit_pair(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        (low & 15 | packed[j - 4] >> 6 << 4, low >> 4 | packed[j] >> 6 << 4)
    }
}

/// Appends the blocks of `values`, the same bytes as ggml's own reference quantizers.
pub(crate) fn encode(format: Format, values: &[f32], parts: &mut Parts) {
    let bytes = &mut parts.codes;
    for values in values.chunks_exact(format.group()) {
        match format {
            Format::Q4_0 => encode_q4_0(values, bytes),
            Format::Q4_1 => encode_q4_1(values, bytes),
            _ => encode_q8_0(values, bytes),
        }
    }
}

/// The value of largest magnitude gets code 0, so that the scale's sign is against its.
fn encode_q4_0(values: &[f32], bytes: &mut Vec<u8>) {
    let extreme = values.iter().fold(0.0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let d = extreme / -8.0;
    let inverse = inverse(d);
    push_half(d, bytes);
    push_nibbles(values, bytes, |x| x * inverse + 8.5);
}

fn encode_q4_1(values: &[f32], bytes: &mut Vec<u8>) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let d = (max - min) / 15.0;
    let inverse = inverse(d);
    push_half(d, bytes);
    push_half(min, bytes);
    push_nibbles(values, bytes, |x| (x - min) * inverse + 0.5);
}

fn encode_q8_0(values: &[f32], bytes: &mut Vec<u8>) {
    let d = values.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
    let inverse = inverse(d);
    push_half(d, bytes);
    bytes.extend(values.iter().map(|x| (x * inverse).round() as i8 as u8));
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn push_half(x: f32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// The whole part of `level(x)`, at most 15, two a byte: values `i` and `i + 16` share byte `i`.
fn push_nibbles(values: &[f32], bytes: &mut Vec<u8>, level: impl Fn(f32) -> f32) {
    let code = |x: f32| (level(x) as u8).min(15);
    let (low, high) = values.split_at(values.len() / 2);
    bytes.extend(low.iter().zip(high).map(|(a, b)| code(*a) | code(*b) << 4));
}
