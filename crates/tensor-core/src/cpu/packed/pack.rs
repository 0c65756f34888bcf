//! Rearranges stored rows into blocks: the writing half of `packed.rs`, which says how a block lies. Formats' bytes
//! are read by `rillm-quant`.

use half::bf16;
use rillm_quant::{FloatType, Format, RawRow, RawTensor};
use smallvec::SmallVec;

use super::{Codes, LANES, Layout, UNIT};
use crate::Result;

/// Columns of 16 rows that are rearranged at a time, so that all of them stay in the first-level cache: a multiple
/// of every format's group.
const STRIP: usize = 512;
/// Groups of a strip, at most.
const GROUPS: usize = STRIP / 16;

/// Fills zeroed block `block` of `raw`.
pub(super) fn pack_block(raw: &RawTensor<'_>, layout: &Layout, block: usize, bytes: &mut [u8]) -> Result<()> {
    let rows = block * LANES..raw.rows().min((block + 1) * LANES);
    let rows = rows.map(|row| raw.row(row)).collect::<Result<SmallVec<[_; LANES]>, _>>()?;
    let strip_bytes = layout.units_bytes(STRIP / UNIT);
    let mut from = 0;
    for bytes in bytes.chunks_mut(strip_bytes) {
        let to = raw.cols().min(from + STRIP);
        for (lane, row) in rows.iter().enumerate() {
            let row = row.columns(from..to)?;
            match layout.codes {
                Codes::Float(_) if raw.format == Format::MxFp8 => put_decoded(layout, row, lane, bytes)?,
                // Pairs of columns are a word; see `float_index`.
                Codes::Float(FloatType::F32 | FloatType::BF16) => put_values::<4>(row.bytes(), lane, bytes),
                Codes::Float(FloatType::F16) => put_values::<2>(row.bytes(), lane, bytes),
                _ => {
                    put_codes(layout, row, lane, bytes)?;
                    put_scales(layout, row, lane, bytes)?;
                }
            }
        }
        from = to;
    }
    Ok(())
}

/// Writes the words of `N` bytes of row `lane` into vectors of as many.
fn put_values<const N: usize>(row: &[u8], lane: usize, bytes: &mut [u8]) {
    let (words, rest) = row.as_chunks::<N>();
    let slots = bytes.as_chunks_mut::<N>().0;
    for (vector, word) in slots.chunks_exact_mut(LANES).zip(words) {
        vector[lane] = *word;
    }
    if let Some(slot) = slots.get_mut(words.len() * LANES + lane) {
        slot[..rest.len()].copy_from_slice(rest);
    }
}

/// Writes the values that the codes of row `lane` stand for.
fn put_decoded(layout: &Layout, row: RawRow<'_>, lane: usize, bytes: &mut [u8]) -> Result<()> {
    let mut values = [0.0; STRIP];
    let values = &mut values[..row.cols()];
    row.decode(values)?;
    let slots = bytes.as_chunks_mut::<4>().0.chunks_exact_mut(LANES);
    if layout.codes == Codes::Float(FloatType::F32) {
        slots.zip(values).for_each(|(vector, x)| vector[lane] = x.to_le_bytes());
    } else {
        let pairs = values.as_chunks::<2>().0;
        for (vector, pair) in slots.zip(pairs) {
            // The type was chosen because it holds them: nothing is cut off but zeros.
            let [low, high] = pair.map(f32::to_bits);
            vector[lane] = (low >> 16 | high & 0xffff_0000).to_le_bytes();
        }
    }
    Ok(())
}

/// Writes the codes of a strip of row `lane`.
fn put_codes(layout: &Layout, row: RawRow<'_>, lane: usize, bytes: &mut [u8]) -> Result<()> {
    let mut codes = [0; STRIP];
    row.codes(&mut codes[..row.cols()])?;
    match layout.codes.planes() {
        [2] => put_planes::<2, 0>(layout, &codes, lane, bytes),
        [2, 1] => put_planes::<2, 1>(layout, &codes, lane, bytes),
        [4, 1] => put_planes::<4, 1>(layout, &codes, lane, bytes),
        [4, 2] => put_planes::<4, 2>(layout, &codes, lane, bytes),
        [8] => put_planes::<8, 0>(layout, &codes, lane, bytes),
        _ => put_planes::<4, 0>(layout, &codes, lane, bytes),
    }
    Ok(())
}

/// [`put_codes`] for a plane of the `LOW` low bits and one of `HIGH` bits above, if any.
fn put_planes<const LOW: usize, const HIGH: usize>(
    layout: &Layout,
    codes: &[u8; STRIP],
    lane: usize,
    bytes: &mut [u8],
) {
    let group_units = layout.group_units();
    let groups = bytes.chunks_mut(layout.units_bytes(group_units));
    for (codes, bytes) in codes.chunks(group_units * UNIT).zip(groups) {
        let words = bytes[layout.meta_bytes()..].as_chunks_mut::<4>().0;
        let units = words.chunks_exact_mut((LOW + HIGH) * LANES);
        for (codes, unit) in codes.as_chunks().0.iter().zip(units) {
            let (low, high) = unit.split_at_mut(LOW * LANES);
            put_plane::<LOW>(codes, 0, lane, low);
            if HIGH > 0 {
                put_plane::<HIGH>(codes, LOW, lane, high);
            }
        }
    }
}

/// Writes `BITS` bits of each code of a unit of row `lane`, those from bit `from` on.
#[inline(always)]
fn put_plane<const BITS: usize>(codes: &[u8; UNIT], from: usize, lane: usize, plane: &mut [[u8; 4]]) {
    let mask = u32::MAX / 255 * ((1 << BITS) - 1);
    let quads = codes.as_chunks().0.chunks_exact(8 / BITS.max(1));
    for (quads, vector) in quads.zip(plane.chunks_exact_mut(LANES)) {
        let quads = quads.iter().enumerate();
        let word = quads.fold(0, |word, (i, q)| word | (u32::from_le_bytes(*q) >> from & mask) << (BITS * i));
        vector[lane] = word.to_le_bytes();
    }
}

/// Writes the scales and biases of a strip of row `lane`.
fn put_scales(layout: &Layout, row: RawRow<'_>, lane: usize, bytes: &mut [u8]) -> Result<()> {
    let groups = row.cols() / layout.group;
    if layout.meta == FloatType::F32 || layout.codes == Codes::E2M1 {
        let (mut scales, mut biases) = ([0.0; GROUPS], [0.0; GROUPS]);
        let (scales, biases) = (&mut scales[..groups], &mut biases[..groups]);
        row.scales(scales, biases)?;
        if layout.meta == FloatType::F32 {
            put_metas(layout, lane, [scales, biases].map(|s| s.iter().map(|x| x.to_le_bytes())), bytes);
        } else {
            // E2M1 codes stand for twice the value.
            let stored = |x: &f32| bf16::from_f32(x * 0.5).to_le_bytes();
            put_metas(layout, lane, [scales, biases].map(|s| s.iter().map(stored)), bytes);
        }
    } else {
        let (mut scales, mut biases) = ([0; GROUPS], [0; GROUPS]);
        let (scales, biases) = (&mut scales[..groups], &mut biases[..groups]);
        row.scale_bits(scales, biases)?;
        put_metas(layout, lane, [scales, biases].map(|s| s.iter().map(|x| x.to_le_bytes())), bytes);
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
    let mut metas = scales.zip(biases);
    for bytes in bytes.chunks_mut(layout.units_bytes(layout.group_units())) {
        let slots = bytes[..layout.meta_bytes()].as_chunks_mut().0;
        match layout.zero {
            Some(_) => {
                let halves = slots.chunks_exact_mut(LANES);
                halves.zip(&mut metas).for_each(|(slots, (scale, _))| slots[lane] = scale);
            }
            None => {
                for (slots, (scale, bias)) in slots.chunks_exact_mut(2 * LANES).zip(&mut metas) {
                    [slots[lane], slots[LANES + lane]] = [scale, bias];
                }
            }
        }
    }
}
