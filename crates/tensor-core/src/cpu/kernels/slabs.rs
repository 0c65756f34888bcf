//! Products of many tokens on AVX2 alone. Its instructions for bytes take vectors from memory but broadcast nothing, and
//! 16 registers don't hold the sums of a tile; so what is read again and again lies as it is multiplied: some units of some
//! tokens are written out, four bytes to a vector, and meet all blocks while they are in the first-level cache.
//!
//! A token's arithmetic is that of `matmul.rs`, operation for operation.

use std::arch::x86_64::*;

use super::avx2::{Avx2, Fours, dot, opaque};
use super::matmul::{MAX_TOKENS, SLAB_TOKENS, Tile};
use super::panel::{INT8_BYTES, Panel};
use super::unit::{QUADS, Quants, Scales, WithQuants, of_quants, quads, scales};
use super::vector::{LANES, Vector as _};
use crate::cpu::packed::{Layout, UNIT};

/// Units that are written out at a time: of [`SLAB_TOKENS`] two thirds of the first-level cache.
const SLAB: usize = 4;

type V = Avx2<false>;

/// A unit of a token, each value as often as a vector has lanes.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Written {
    quads: [[i32; 8]; QUADS],
    scale: [f32; 8],
    /// The sum; or those of both halves.
    sums: [[f32; 8]; 2],
}

impl Fours for Written {
    const STRIDE: usize = size_of::<__m256i>();

    #[inline(always)]
    unsafe fn load(x: *const u8) -> __m256i {
        // SAFETY: the contract of `Fours`; a quad of `Written` is aligned.
        unsafe { _mm256_load_si256(x.cast()) }
    }
}

const NOTHING: Written = Written { quads: [[0; 8]; QUADS], scale: [0.0; 8], sums: [[0.0; 8]; 2] };

/// Multiplies a tile of int8 panels: of one panel of 8 tokens, or of two.
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn multiply(tile: Tile<'_>) {
    let Layout { units, .. } = *tile.layout;
    assert_eq!(tile.panel, Panel::Int8, "integers meet integers");
    let block_bytes = tile.layout.block_bytes();
    if block_bytes == 0 {
        return tile.out.fill([0.0; LANES]);
    }
    assert!([MAX_TOKENS, SLAB_TOKENS].contains(&tile.slots), "no slab of {} tokens", tile.slots);
    assert_eq!(tile.x.len(), units * tile.slots * INT8_BYTES, "a slab's tokens are there");
    assert_eq!(tile.out.len(), tile.blocks.len() / block_bytes * tile.slots, "a tile has whole blocks");
    let layout = tile.layout;
    of_quants(layout, Multiply(tile));
}

struct Multiply<'a>(Tile<'a>);

impl WithQuants for Multiply<'_> {
    fn with<Q: Quants>(self) {
        // SAFETY: the table was handed out after detection; `multiply` has checked sizes for these elements.
        unsafe {
            match self.0.slots {
                MAX_TOKENS => each::<Q, MAX_TOKENS>(self.0),
                _ => each::<Q, SLAB_TOKENS>(self.0),
            }
        }
    }
}

/// # Safety
/// The processor has AVX2, FMA and F16C; the tile has `T` tokens and the sizes of its layout.
#[target_feature(enable = "avx2,fma,f16c")]
#[expect(unsafe_op_in_unsafe_fn, reason = "sizes are those of the layout")]
unsafe fn each<Q: Quants, const T: usize>(tile: Tile<'_>) {
    let Tile { blocks, layout, x, out, .. } = tile;
    let block_bytes = layout.block_bytes();
    let group_bytes = layout.meta_bytes() + layout.group_units() * Q::BYTES;
    let panel_bytes = layout.units * MAX_TOKENS * INT8_BYTES;
    out.fill([0.0; LANES]);
    let mut slab = [NOTHING; SLAB * SLAB_TOKENS];
    for first in (0..layout.units).step_by(SLAB) {
        let units = first..layout.units.min(first + SLAB);
        for (unit, slab) in units.clone().zip(slab.chunks_exact_mut(T)) {
            for (x, slab) in x.chunks_exact(panel_bytes).zip(slab.as_chunks_mut::<MAX_TOKENS>().0) {
                write_out(x.as_ptr().add(unit * MAX_TOKENS * INT8_BYTES), Q::HALVES, slab);
            }
        }
        for (block, out) in blocks.chunks_exact(block_bytes).zip(out.as_chunks_mut::<T>().0) {
            for (unit, x) in units.clone().zip(slab.as_chunks::<T>().0) {
                let (group, i) = (unit / layout.group_units(), unit % layout.group_units());
                let start = block.as_ptr().add(group * group_bytes);
                let scales = scales::<V, Q>(start, layout, i);
                let w = start.add(layout.meta_bytes() + i * Q::BYTES);
                // The next block's part lies too far away for the processor to see.
                for line in (0..Q::BYTES).step_by(64) {
                    V::prefetch(w.wrapping_add(block_bytes + line));
                }
                add_unit::<Q, T>(&quads::<V, Q>(w), &scales, x, out);
            }
        }
    }
}

/// Writes the unit of 8 tokens at `x` out.
///
/// # Safety
/// The processor has AVX2; at `x` is a unit of a panel.
#[target_feature(enable = "avx2,fma,f16c")]
#[expect(unsafe_op_in_unsafe_fn, reason = "the unit is there")]
unsafe fn write_out(x: *const u8, halves: bool, out: &mut [Written; MAX_TOKENS]) {
    let floats = x.add(MAX_TOKENS * UNIT).cast::<f32>();
    for (t, out) in out.iter_mut().enumerate() {
        for (i, quad) in out.quads.iter_mut().enumerate() {
            *quad = [x.add(t * UNIT + 4 * i).cast::<i32>().read_unaligned(); 8];
        }
        let float = |row: usize| floats.add(row * MAX_TOKENS + t).read_unaligned();
        out.scale = [float(0); 8];
        out.sums = if halves { [[float(2); 8], [float(3); 8]] } else { [[float(1); 8]; 2] };
    }
}

/// Adds a unit of a block times that of `T` tokens to `out`.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "the contract of `each`")]
unsafe fn add_unit<Q: Quants, const T: usize>(
    quads: &[[__m256i; 2]; QUADS],
    scales: &Scales<V>,
    x: &[Written; T],
    out: &mut [[f32; LANES]; T],
) {
    for rows in 0..2 {
        let mut w = [_mm256_setzero_si256(); QUADS];
        for (w, quad) in w.iter_mut().zip(quads) {
            *w = quad[rows];
        }
        if Q::HALVES {
            for (half, w) in w.as_chunks::<{ QUADS / 2 }>().0.iter().enumerate() {
                let factors = [scales.scale[half][rows], scales.bias[half][rows]];
                add_rows::<Q, _, T>(w, factors, [half * QUADS / 2, half], x, out, rows);
            }
        } else {
            let factors = [scales.scale[0][rows], scales.bias[0][rows]];
            add_rows::<Q, _, T>(&w, factors, [0, 0], x, out, rows);
        }
    }
}

/// Adds the products of `N` quads of 8 rows, the upper ones if `rows`, to `out`; `first` is the first quad's number and that
/// of the sum.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "the contract of `each`")]
unsafe fn add_rows<Q: Quants, const N: usize, const T: usize>(
    w: &[__m256i; N],
    [scale, bias]: [__m256; 2],
    first: [usize; 2],
    x: &[Written; T],
    out: &mut [[f32; LANES]; T],
    rows: usize,
) {
    // Two tokens a round: after rounds so short processors guess the end wrongly.
    let rounds = opaque(T / 2);
    let nibble = _mm256_set1_epi8(15);
    let mut low = [_mm256_setzero_si256(); T];
    let mut w = *w;
    if Q::BITS == 8 {
        // Products of whole bytes don't fit 16 bits; those of half bytes do, several of them.
        let mut half = w;
        for w in &mut half {
            *w = _mm256_and_si256(*w, nibble);
        }
        for i in 0..rounds {
            for t in [2 * i, 2 * i + 1] {
                let x = (&raw const (*x.as_ptr().add(t)).quads).cast::<u8>();
                *low.get_unchecked_mut(t) = dot::<Written, N>(4, &half, x.add(Written::STRIDE * first[0]));
            }
        }
        for w in &mut w {
            *w = _mm256_and_si256(_mm256_srli_epi16::<4>(*w), nibble);
        }
    }
    for i in 0..rounds {
        for t in [2 * i, 2 * i + 1] {
            let x = x.as_ptr().add(t);
            let quads = (&raw const (*x).quads).cast::<u8>().add(Written::STRIDE * first[0]);
            let dot = if Q::BITS == 8 {
                let high = _mm256_slli_epi32::<4>(dot::<Written, N>(4, &w, quads));
                _mm256_add_epi32(*low.get_unchecked(t), high)
            } else {
                dot::<Written, N>(Q::BITS, &w, quads)
            };
            let out = out.as_mut_ptr().add(t).cast::<f32>().add(8 * rows);
            let factor = _mm256_mul_ps(scale, _mm256_load_ps((&raw const (*x).scale).cast()));
            let sum = _mm256_load_ps((&raw const (*x).sums).cast::<f32>().add(8 * first[1]));
            let y = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(dot), _mm256_loadu_ps(out));
            _mm256_storeu_ps(out, _mm256_fmadd_ps(bias, sum, y));
        }
    }
}
