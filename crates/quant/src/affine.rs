//! MLX affine groups: `w = scale * q + bias`. The bit stream itself is in `bitstream`.

use crate::bitstream;
use crate::codec::Parts;
use crate::{FloatType, RawRow, float};

/// The largest group.
const MAX_GROUP: usize = 128;

/// What distinguishes one affine format from another.
#[derive(Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) bits: u32,
    pub(crate) group: usize,
    pub(crate) meta: FloatType,
}

/// Values of a row. The product and the sum are rounded one after the other, as MLX's CPU build for
/// x86 does; a fused multiply-add differs only for f32 scales, since `scale * q` is exact for the others.
pub(crate) fn decode(format: Affine, row: RawRow<'_>, out: &mut [f32]) {
    let Affine { bits, group, meta } = format;
    let mut codes = [0; MAX_GROUP];
    let codes = &mut codes[..group];
    let (mut scale, mut bias) = ([0.0], [0.0]);
    let metas = row.scales.chunks_exact(meta.bytes()).zip(row.biases.chunks_exact(meta.bytes()));
    let packed = row.codes.chunks_exact(group / 8 * bits as usize);
    for ((packed, (s, b)), out) in packed.zip(metas).zip(out.chunks_exact_mut(group)) {
        bitstream::unpack(bits, packed, codes);
        float::decode(meta, s, &mut scale);
        float::decode(meta, b, &mut bias);
        for (w, q) in out.iter_mut().zip(&*codes) {
            *w = scale[0] * f32::from(*q) + bias[0];
        }
    }
}

/// Appends the groups of `values` as MLX's CPU quantizer writes them: the codes are those of the f32
/// scale and bias, before these are rounded to the type they are stored in.
pub(crate) fn encode(format: Affine, values: &[f32], parts: &mut Parts) {
    let mut codes = [0; MAX_GROUP];
    for values in values.chunks_exact(format.group) {
        let codes = &mut codes[..values.len()];
        let (scale, bias) = quantize(format.bits, values, codes);
        bitstream::pack(format.bits, codes, &mut parts.codes);
        float::push(format.meta, scale, &mut parts.scales);
        float::push(format.meta, bias, &mut parts.biases);
    }
}

/// Codes, scale and bias of a group. The extreme of larger magnitude is met exactly and the step is
/// adjusted so that zero is too; the step is negative where that extreme is the maximum.
fn quantize(bits: u32, values: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let levels = ((1u32 << bits) - 1) as f32;
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let step = ((max - min) / levels).max(1e-7);
    let (edge, step) = if min.abs() > max.abs() { (min, step) } else { (max, -step) };
    let steps = (edge / step).round_ties_even();
    let (scale, bias) = if steps == 0.0 { (step, 0.0) } else { (edge / steps, edge) };
    for (q, w) in codes.iter_mut().zip(values) {
        *q = ((w - bias) / scale).round_ties_even().clamp(0.0, levels) as u8;
    }
    (scale, bias)
}
