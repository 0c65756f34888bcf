//! Products of many tokens in tiles of 16 x 16 results: blocks of packed weights written out as bfloat16, and what a
//! processor's tile registers multiply. Only for prompts; few tokens go through `matmul.rs`.
//!
//! A *tile* of weights is a unit of a block in bfloat16, 16 vectors of pairs of columns, as bf16 weights are packed; one
//! of tokens is 16 rows of 32 columns. Both are 1 KiB.

use rillm_quant::FloatType;

use super::unit::{Elements, Quants, WithQuants, of_quants, scales};
use super::vector::{Kernel, LANES, Vector};
use crate::cpu::matmul::Residual;
use crate::cpu::packed::{Codes, Layout, UNIT};

/// Bytes of a tile.
pub(crate) const TILE: usize = LANES * UNIT * 2;

/// What an instruction set with tile registers adds to its table.
#[derive(Debug)]
pub(crate) struct Tiles {
    /// Writes weights out.
    pub expand: fn(Slab<'_>, &mut [u8]),
    /// Multiplies them.
    pub multiply: fn(Product<'_>),
    /// Brings the results out.
    pub emit: fn(Emission<'_>),
    /// Multiplies for attention.
    pub strips: fn(Strips<'_>),
}

/// Units of a block that are written out.
pub(crate) struct Slab<'a> {
    /// The block's bytes.
    pub block: &'a [u8],
    /// How they lie.
    pub layout: &'a Layout,
    /// Which units: from where a group starts, to where one ends.
    pub units: std::ops::Range<usize>,
    /// How many bytes further the units lie that are written out next. They are asked for meanwhile: pieces of blocks
    /// are too short for the processor to see what follows.
    pub next: isize,
}

/// Two blocks of weights times some tiles of tokens, over consecutive units.
pub(crate) struct Product<'a> {
    /// The first tile of tokens.
    pub a: &'a [u8],
    /// Bytes from one tile of tokens to the next of the same unit; units follow each other.
    pub a_stride: usize,
    /// The blocks, unit after unit.
    pub b: [&'a [u8]; 2],
    /// Units.
    pub units: usize,
    /// For each tile of tokens the results of both blocks, `[token][row]`.
    pub c: &'a mut [[f32; LANES * LANES]],
    /// Whether the results add to what is there.
    pub resume: bool,
}

/// One token's results of consecutive blocks, on their way from tiles to a row.
pub(crate) struct Emission<'a> {
    /// The tiles of [`Product::c`], from the first of the token's; block `i` is `i / 2 * step + i % 2` further.
    pub sums: &'a [[f32; LANES * LANES]],
    /// Tiles from one pair of blocks to the next.
    pub step: usize,
    /// The token's row of its tile.
    pub token: usize,
    /// Added to the results.
    pub bias: Option<&'a [f32]>,
    /// What `out` holds before.
    pub residual: Residual,
    /// As many results as are wanted.
    pub out: &'a mut [f32],
}

/// `c[i][j] = Σ a[i][k] b[k][j]` for rows `i` in tiles of 16, columns `j` in tiles of 16, `k` in steps of 32.
pub(crate) struct Strips<'a> {
    /// bfloat16, row after row.
    pub a: &'a [u16],
    /// Values from one row of `a` to the next.
    pub a_row: usize,
    /// Tiles of rows.
    pub tiles: usize,
    /// Tiles of pairs, all steps of a column of tiles after each other.
    pub b: &'a [u16],
    /// Steps.
    pub steps: usize,
    /// Results.
    pub c: &'a mut [f32],
    /// Values from one row of `c` to the next.
    pub c_row: usize,
    /// Tiles of columns.
    pub columns: usize,
    /// Whether the results add to what is there.
    pub resume: bool,
}

/// Writes the units of `slab` to `out` as tiles.
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn expand<V: Vector>(slab: Slab<'_>, out: &mut [u8]) {
    let Layout { codes, units, .. } = *slab.layout;
    assert!(
        slab.block.len() >= slab.layout.block_bytes() && slab.units.end <= units,
        "the units are in the block"
    );
    assert!(slab.units.start.is_multiple_of(slab.layout.group_units()), "groups are whole");
    assert!(out.len() >= slab.units.len() * TILE, "and fit");
    match codes {
        Codes::Float(FloatType::BF16) => {
            let start = slab.units.start * TILE;
            out[..slab.units.len() * TILE].copy_from_slice(&slab.block[start..][..slab.units.len() * TILE]);
        }
        Codes::Float(_) => unreachable!("other floats are multiplied as they are"),
        _ => {
            let layout = slab.layout;
            of_quants(layout, Write::<V>(slab, out, std::marker::PhantomData));
        }
    }
}

struct Write<'a, V>(Slab<'a>, &'a mut [u8], std::marker::PhantomData<V>);

impl<V: Vector> WithQuants for Write<'_, V> {
    fn with<Q: Quants>(self) {
        write::<V, Q>(self.0, self.1);
    }
}

fn write<V: Vector, E: Elements>(slab: Slab<'_>, out: &mut [u8]) {
    // SAFETY: the table was handed out after detection; `expand` has checked sizes for these elements.
    unsafe { V::call(Expand::<E> { slab, out, elements: std::marker::PhantomData }) }
}

/// The sizes of `slab.block` and `out` are those of the layout and the units.
struct Expand<'a, E> {
    slab: Slab<'a>,
    out: &'a mut [u8],
    elements: std::marker::PhantomData<E>,
}

impl<E: Elements> Kernel for Expand<'_, E> {
    type Output = ();

    #[inline(always)]
    #[expect(
        unsafe_op_in_unsafe_fn,
        reason = "this kernel's contract: sizes are those of the layout and the units"
    )]
    unsafe fn run<V: Vector>(self) {
        let Slab { block, layout, units, next } = self.slab;
        let (meta_bytes, group_units) = (layout.meta_bytes(), layout.group_units());
        let mut w = block.as_ptr().add(layout.offsets(units.start).0);
        let mut out = self.out.as_mut_ptr().cast::<f32>();
        let mut unit = units.start;
        while unit < units.end {
            let start = w;
            let mut scales = scales::<V, E>(start, layout, 0);
            w = w.add(meta_bytes);
            for u in 0..group_units.min(units.end - unit) {
                if E::SUPER {
                    scales = super::unit::scales::<V, E>(start, layout, u);
                }
                for line in 0..E::BYTES.div_ceil(64) {
                    V::prefetch(w.wrapping_offset(next).wrapping_add(line * 64));
                }
                for i in 0..UNIT / 4 {
                    let half = i / (UNIT / 8);
                    let [scale, bias] = [scales.scale[half], scales.bias[half]];
                    let [a, b, c, d] = E::values::<V>(w, i);
                    let pair = V::pairs_bf16(V::fma(scale, a, bias), V::fma(scale, b, bias));
                    V::store(out, V::from_bits(pair));
                    let pair = V::pairs_bf16(V::fma(scale, c, bias), V::fma(scale, d, bias));
                    V::store(out.add(LANES), V::from_bits(pair));
                    out = out.add(2 * LANES);
                }
                w = w.add(E::BYTES);
                unit += 1;
            }
        }
    }
}

/// Writes a token's results.
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn emit<V: Vector>(emission: Emission<'_>) {
    let blocks = emission.out.len().div_ceil(LANES);
    assert!(emission.step >= 2, "a pair of blocks has two tiles");
    assert!(
        blocks == 0 || (blocks - 1) / 2 * emission.step + (blocks - 1) % 2 < emission.sums.len(),
        "all blocks have sums"
    );
    assert!(emission.token < LANES, "a tile has 16 tokens");
    assert!(emission.bias.is_none_or(|bias| bias.len() == emission.out.len()), "every result has a bias");
    // SAFETY: the table was handed out after detection; sizes were checked.
    unsafe { V::call(Emit(emission)) }
}

/// Sums and bias are there for every result.
struct Emit<'a>(Emission<'a>);

impl Kernel for Emit<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_op_in_unsafe_fn, reason = "this kernel's contract: sums and bias are there")]
    unsafe fn run<V: Vector>(self) {
        let Emission { sums, step, token, bias, residual, out } = self.0;
        let len = out.len();
        let out = out.as_mut_ptr();
        for i in 0..len.div_ceil(LANES) {
            let (at, n) = (i * LANES, LANES.min(len - i * LANES));
            let tile = sums.as_ptr().add(i / 2 * step + i % 2).cast::<f32>();
            let mut y = V::load(tile.add(token * LANES));
            if n == LANES {
                if let Some(bias) = bias {
                    y = V::add(y, V::load(bias.as_ptr().add(at)));
                }
                if residual == Residual::InPlace {
                    y = V::add(y, V::load(out.add(at)));
                }
                V::store(out.add(at), y);
            } else {
                if let Some(bias) = bias {
                    y = V::add(y, V::load_partial(bias.as_ptr().add(at), n));
                }
                if residual == Residual::InPlace {
                    y = V::add(y, V::load_partial(out.add(at), n));
                }
                V::store_partial(out.add(at), y, n);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod reference;
