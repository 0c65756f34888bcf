//! Rearranges stored rows into blocks: the writing half of `packed.rs`, which says how a block lies. Formats' bytes
//! are read by `rillm-quant`.

use half::bf16;
use rillm_quant::{FloatType, Format, RawRow, RawTensor, SubScales};
use smallvec::SmallVec;

use super::{Codes, Layout, Meta, SUPER_UNITS, UNIT};
use crate::Result;
use crate::cpu::kernels::Kernels;
use crate::cpu::kernels::rearrange::{Rows, STRIP, Strip};
use crate::cpu::kernels::vector::LANES;

/// Groups of a strip, at most.
const GROUPS: usize = STRIP / 16;

/// Fills zeroed block `block` of `raw`.
pub(super) fn pack_block(
    raw: &RawTensor<'_>,
    layout: &Layout,
    kernels: &Kernels,
    block: usize,
    bytes: &mut [u8],
) -> Result<()> {
    let rows = block * LANES..raw.rows().min((block + 1) * LANES);
    let rows = rows.map(|row| raw.row(row)).collect::<Result<SmallVec<[_; LANES]>, _>>()?;
    let mut strip = Rows([[0; STRIP]; LANES]);
    let (columns, planes): (_, &[u32]) = match layout.codes {
        // Words: a column of f32, two of the others.
        Codes::Float(t) => (STRIP / t.bytes(), &[8]),
        codes => (STRIP, codes.planes()),
    };
    let row_bytes = rows.first().map_or(0, |row| row.bytes().len());
    let next = raw.codes.chunks(row_bytes.max(1) * LANES).nth(block + 1).unwrap_or_default();
    let mut ahead = next.chunks(next.len().div_ceil(raw.cols().div_ceil(columns)).max(1));
    let mut from = 0;
    for bytes in bytes.chunks_mut(layout.units_bytes(columns / UNIT)) {
        let to = raw.cols().min(from + columns);
        if to < from + columns {
            strip.0.as_flattened_mut().fill(0);
        }
        for (lane, row) in rows.iter().enumerate() {
            let run = row.columns(from..to)?;
            put(&run, layout, &mut strip.0[lane])?;
            if layout.has_groups() {
                put_scales(layout, run, lane, bytes)?;
            }
        }
        let paired;
        let rows = match layout.codes {
            Codes::Float(FloatType::F16) => {
                paired = pair_rows(&strip);
                &paired
            }
            _ => &strip,
        };
        let units = match layout.codes {
            Codes::Float(_) => bytes.len() / (UNIT * LANES),
            _ => (to - from).div_ceil(UNIT),
        };
        (kernels.rearrange)(Strip {
            rows,
            planes,
            units,
            group_units: layout.group_units(),
            meta_bytes: layout.meta_bytes(),
            bytes,
            ahead: ahead.next().unwrap_or_default(),
        });
        from = to;
    }
    Ok(())
}

/// The codes of a run of a row, or its plain values.
fn put(row: &RawRow<'_>, layout: &Layout, out: &mut [u8; STRIP]) -> Result<()> {
    match layout.codes {
        Codes::Float(t) if row.format() == Format::MxFp8 => decode(row, t, out)?,
        Codes::Float(_) => out[..row.bytes().len()].copy_from_slice(row.bytes()),
        _ => row.codes(&mut out[..row.cols()])?,
    }
    Ok(())
}

/// The values that the codes of an mxfp8 row stand for, as bytes of type `t`.
fn decode(row: &RawRow<'_>, t: FloatType, out: &mut [u8; STRIP]) -> Result<()> {
    let mut values = [0.0f32; STRIP / 2];
    let values = &mut values[..row.cols()];
    row.decode(values)?;
    if t == FloatType::F32 {
        out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, x)| *out = x.to_le_bytes());
    } else {
        // The type was chosen because it holds them: nothing is cut off but zeros.
        let bits = values.iter().map(|x| (x.to_bits() >> 16) as u16);
        out.as_chunks_mut().0.iter_mut().zip(bits).for_each(|(out, x)| *out = x.to_le_bytes());
    }
    Ok(())
}

/// Turns rows of f16 into lanes: a vector is a column of 16 rows and the next column, so that lane `i` has words of
/// rows `2 i` and `2 i + 1` in the even columns, and lane `i + 8` in the odd.
fn pair_rows(strip: &Rows) -> Rows {
    let mut lanes = Rows([[0; STRIP]; LANES]);
    let (even, odd) = lanes.0.split_at_mut(LANES / 2);
    for (rows, (even, odd)) in strip.0.as_chunks::<2>().0.iter().zip(even.iter_mut().zip(odd)) {
        let words = rows[0].as_chunks().0.iter().zip(rows[1].as_chunks().0);
        let out = even.as_chunks_mut().0.iter_mut().zip(odd.as_chunks_mut().0);
        for ((a, b), (even, odd)) in words.zip(out) {
            let [a, b] = [u32::from_le_bytes(*a), u32::from_le_bytes(*b)];
            *even = (a & 0xffff | b << 16).to_le_bytes();
            *odd = (a >> 16 | b & 0xffff_0000).to_le_bytes();
        }
    }
    lanes
}

/// Writes the scales and biases of a strip of row `lane`.
fn put_scales(layout: &Layout, row: RawRow<'_>, lane: usize, bytes: &mut [u8]) -> Result<()> {
    let groups = row.cols() / layout.group;
    match layout.meta {
        Meta::Super => put_sub_scales(layout, row, lane, bytes)?,
        Meta::Float(t) if t == FloatType::F32 || layout.codes == Codes::E2M1 => {
            let (mut scales, mut biases) = ([0.0; GROUPS], [0.0; GROUPS]);
            let (scales, biases) = (&mut scales[..groups], &mut biases[..groups]);
            row.scales(scales, biases)?;
            if t == FloatType::F32 {
                put_metas(layout, lane, [scales, biases].map(|s| s.iter().map(|x| x.to_le_bytes())), bytes);
            } else {
                // E2M1 codes stand for twice the value.
                let stored = |x: &f32| bf16::from_f32(x * 0.5).to_le_bytes();
                put_metas(layout, lane, [scales, biases].map(|s| s.iter().map(stored)), bytes);
            }
        }
        Meta::Float(_) => {
            let (mut scales, mut biases) = ([0; GROUPS], [0; GROUPS]);
            let (scales, biases) = (&mut scales[..groups], &mut biases[..groups]);
            row.scale_bits(scales, biases)?;
            put_metas(layout, lane, [scales, biases].map(|s| s.iter().map(|x| x.to_le_bytes())), bytes);
        }
    }
    Ok(())
}

/// [`put_scales`] for K-quants.
fn put_sub_scales(layout: &Layout, row: RawRow<'_>, lane: usize, bytes: &mut [u8]) -> Result<()> {
    let stored = row.sub_scales()?;
    for (bytes, SubScales { d, min, scales, mins }) in
        bytes.chunks_mut(layout.units_bytes(SUPER_UNITS)).zip(stored)
    {
        let (factors, words) = bytes.split_at_mut(LANES * if layout.zero.is_some() { 2 } else { 4 });
        let factors = factors.as_chunks_mut().0;
        factors[lane] = d.to_le_bytes();
        if layout.zero.is_none() {
            factors[LANES + lane] = min.to_le_bytes();
        }
        // In two's complement, adding 128 flips the sign bit.
        let scales = scales.map(|s| s as u8 ^ 0x80);
        let (scales, mins) = (scales.as_chunks::<4>().0, mins.as_chunks::<4>().0);
        let words = words.as_chunks_mut::<4>().0.chunks_exact_mut(LANES);
        let count = SUPER_UNITS * layout.groups_in_unit() / 4;
        let mins = if layout.zero.is_some() { &[] } else { mins };
        let stored = scales[..count].iter().chain(mins);
        words.zip(stored).for_each(|(vector, word)| vector[lane] = *word);
    }
    Ok(())
}

/// Writes scales and, if they are stored, biases of row `lane`.
fn put_metas<const N: usize>(
    layout: &Layout,
    lane: usize,
    [scales, biases]: [impl Iterator<Item = [u8; N]>; 2],
    bytes: &mut [u8],
) {
    let stride = layout.units_bytes(layout.group_units());
    let halves = layout.groups_in_unit();
    let slot_bytes = layout.meta_bytes() / halves;
    for (g, (scale, bias)) in scales.zip(biases).enumerate() {
        let [unit, half] = if halves == 1 { [g, 0] } else { [g / 2, g % 2] };
        let at = unit * stride + half * slot_bytes + lane * N;
        bytes[at..at + N].copy_from_slice(&scale);
        if layout.zero.is_none() {
            bytes[at + LANES * N..][..N].copy_from_slice(&bias);
        }
    }
}
