//! A task of a product of many tokens, through tile registers: slabs of two blocks are written out as bfloat16 and
//! multiplied by all tokens, while slab and tokens are in cache.

use super::{Context, Out, Product, Task};
use crate::Result;
use crate::cpu::kernels::tiles::{Emission, Product as Pair, Slab, TILE, Tiles};
use crate::cpu::kernels::vector::LANES;

/// Tokens from which writing weights out pays.
pub(super) const FROM: usize = 24;
/// Units of a slab. Two blocks of it stay in the first-level cache, and as many columns of a prompt in the second.
const SLAB: usize = 8;
/// Blocks of a task, at most: the sums of a prompt stay in the second-level cache.
const BLOCKS: usize = 16;
/// Bytes of the sums of a tile of tokens and a block.
const SUMS: usize = LANES * LANES * size_of::<f32>();

/// Blocks of a task, if `share` of them are a fair share, and each stands for `bring`.
pub(super) fn blocks_of_task(share: usize, bring: usize) -> usize {
    share.clamp(1, BLOCKS / bring).next_multiple_of(2)
}

impl Product<'_> {
    /// [`run`](Product::run) in tiles, for tokens `x`.
    pub(super) fn run_tiles(
        &self,
        ctx: &Context<'_>,
        tiles: &Tiles,
        task: &Task,
        x: &[u8],
        out: &Out<'_>,
    ) -> Result<()> {
        let (part, blocks) = (&self.parts[task.part], task.blocks.clone());
        let layout = part.layout();
        let token_tiles = self.t.div_ceil(LANES);
        let slab = SLAB.next_multiple_of(layout.group_units());
        // For each pair of blocks and each tile of tokens, the sums of both.
        let count = blocks.len().next_multiple_of(2) * token_tiles;
        let mut scratch = ctx.scratch.take(count * SUMS + 2 * slab * TILE)?;
        let (sums, slabs) = scratch.bytes_mut().split_at_mut(count * SUMS);
        // SAFETY: a buffer starts at a page, and any bytes are floats.
        let sums = unsafe {
            std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast::<[f32; LANES * LANES]>(), count)
        };
        let (b0, b1) = slabs.split_at_mut(slab * TILE);
        // From a block to the next, and from a slab to the next, in bytes.
        let stride = layout.block_bytes() as isize;
        let slab_bytes = layout.offsets(slab.min(layout.units)).0 as isize;
        for first in (0..layout.units).step_by(slab) {
            let units = first..layout.units.min(first + slab);
            for (pair, c) in sums.chunks_exact_mut(2 * token_tiles).enumerate() {
                let block = blocks.start + 2 * pair;
                // The last block may be alone: nobody looks at the sums of its partner.
                let partner = (block + 1).min(blocks.end - 1);
                let next =
                    if block + 2 < blocks.end { 2 * stride } else { slab_bytes - 2 * pair as isize * stride };
                for (block, b) in [(block, &mut *b0), (partner, &mut *b1)] {
                    (tiles.expand)(
                        Slab { block: part.run(block..block + 1), layout, units: units.clone(), next },
                        b,
                    );
                }
                (tiles.multiply)(Pair {
                    a: &x[first * TILE..],
                    a_stride: layout.units * TILE,
                    b: [b0, b1],
                    units: units.len(),
                    c,
                    resume: first > 0,
                });
            }
        }
        // Token by token: a row of the result is written from end to end.
        let first = task.column + blocks.start * LANES;
        let rows = part.rows().min(blocks.end * LANES) - blocks.start * LANES;
        for t in 0..self.t {
            (tiles.emit)(Emission {
                sums: &sums[t / LANES * 2..],
                step: 2 * token_tiles,
                token: t % LANES,
                bias: self.epilogue.bias.map(|bias| &bias[first..][..rows]),
                residual: self.epilogue.residual,
                // SAFETY: see `multiply`.
                out: unsafe { out.row([t, first], rows) },
            });
        }
        ctx.scratch.give(scratch);
        Ok(())
    }
}
