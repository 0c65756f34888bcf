//! Writes codes of 16 rows into blocks: a transposition, and the cut into bit planes. What a block is says
//! `cpu/packed.rs`.

use super::vector::{Kernel, LANES, Vector};

/// Bytes of a row that are rearranged at a time, so that 16 rows and what becomes of them stay in the first-level
/// cache: a multiple of every format's group.
pub(crate) const STRIP: usize = 1024;
/// Bytes of a vector.
const VECTOR: usize = 4 * LANES;
/// Words of a row in a unit.
const QUADS: usize = 8;

/// 16 rows of bytes. Rows beyond the matrix and bytes beyond its columns are zeros.
#[repr(align(64))]
pub(crate) struct Rows(pub [[u8; STRIP]; LANES]);

/// What to write where.
pub(crate) struct Strip<'a> {
    /// Codes, one a byte, or words of plain values.
    pub rows: &'a Rows,
    /// Widths of the bit planes; 8 for words that stay as they are.
    pub planes: &'static [u32],
    /// Units of 32 bytes of a row.
    pub units: usize,
    /// Units of a group, a power of two.
    pub group_units: usize,
    /// Bytes in front of a group, which are left alone.
    pub meta_bytes: usize,
    /// Where the units go, from the start of a group.
    pub bytes: &'a mut [u8],
    /// What will be read soon: the rows of a block are as many streams, too many and too short for the processor to
    /// foresee.
    pub ahead: &'a [u8],
}

/// Writes a strip.
pub(super) fn rearrange<V: Vector>(strip: Strip<'_>) {
    match strip.planes {
        [2] => planes::<V, 2, 0>(strip),
        [2, 1] => planes::<V, 2, 1>(strip),
        [4] => planes::<V, 4, 0>(strip),
        [4, 1] => planes::<V, 4, 1>(strip),
        [4, 2] => planes::<V, 4, 2>(strip),
        [8] => planes::<V, 8, 0>(strip),
        other => unreachable!("no planes of {other:?} bits"),
    }
}

fn planes<V: Vector, const LOW: usize, const HIGH: usize>(strip: Strip<'_>) {
    let groups = strip.units.div_ceil(strip.group_units);
    let bytes = strip.units * (LOW + HIGH) * VECTOR + groups * strip.meta_bytes;
    assert!(strip.units * QUADS * 4 <= STRIP, "a strip holds the units");
    assert!(strip.bytes.len() >= bytes, "and they have room");
    // SAFETY: the table was handed out after detection; sizes were checked.
    unsafe { V::call(Planes::<LOW, HIGH>(strip)) }
}

/// [`Strip`] for a plane of the `LOW` low bits and one of `HIGH` bits above, if any.
struct Planes<'a, const LOW: usize, const HIGH: usize>(Strip<'a>);

impl<const LOW: usize, const HIGH: usize> Kernel for Planes<'_, LOW, HIGH> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "this kernel's contract: `planes` has checked the sizes")]
    unsafe fn run<V: Vector>(self) {
        let Strip { rows, units, group_units, meta_bytes, bytes, ahead, .. } = self.0;
        for line in ahead.chunks(VECTOR) {
            V::prefetch(line.as_ptr());
        }
        let group_shift = group_units.ilog2();
        for unit in (0..units).step_by(2) {
            let mut words = [V::splat_i(0); LANES];
            for (lane, word) in words.iter_mut().enumerate() {
                *word = V::load_i(rows.0[lane].as_ptr().add(unit * QUADS * 4));
            }
            let quads = V::transpose(words);
            for half in 0..2.min(units - unit) {
                let unit = unit + half;
                let at = unit * (LOW + HIGH) * VECTOR + ((unit >> group_shift) + 1) * meta_bytes;
                let out = bytes.as_mut_ptr().add(at);
                let quads = &quads[half * QUADS..][..QUADS];
                plane::<V, LOW, 0, HIGH>(quads, out);
                plane::<V, HIGH, LOW, 0>(quads, out.add(LOW * VECTOR));
            }
        }
    }
}

/// Writes `BITS` bits of each byte of `quads`: those above `BELOW` bits and below `ABOVE`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "Vector's contract; `out` has the plane's vectors")]
unsafe fn plane<V: Vector, const BITS: usize, const BELOW: usize, const ABOVE: usize>(
    quads: &[V::I],
    out: *mut u8,
) {
    if BITS == 0 {
        return;
    }
    let mask = V::splat_i((u32::MAX / 255 * ((1 << BITS) - 1)) as i32);
    for (v, quads) in quads.chunks_exact(8 / BITS).enumerate() {
        let mut word = V::splat_i(0);
        for (i, quad) in quads.iter().enumerate() {
            let mut bits = *quad;
            if BELOW + ABOVE > 0 {
                bits = V::and(V::shr(bits, BELOW as u32), mask);
            }
            word = V::or(word, V::shl(bits, (BITS * i) as u32));
        }
        V::store(out.add(v * VECTOR).cast(), V::from_bits(word));
    }
}
