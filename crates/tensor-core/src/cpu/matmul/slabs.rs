//! A task of a product of many tokens where kernels multiply slabs of them: some blocks by all tokens of the task, 16 at a
//! time.

use super::{Out, Product, TASKS, Task};
use crate::cpu::kernels::matmul::{MAX_TOKENS, SLAB_TOKENS, Tile};
use crate::cpu::kernels::panel::Panel;
use crate::cpu::kernels::vector::LANES;

/// Blocks of a task, at most. Many, because writing tokens out is done for each task.
const BLOCKS: usize = 32;

/// What multiplies slabs.
pub(super) type Multiply = fn(Tile<'_>);

/// Blocks and tokens of a task, of a product of `blocks` blocks and `t` tokens.
pub(super) fn task([blocks, t]: [usize; 2], threads: usize) -> [usize; 2] {
    let ranges = t.div_ceil(SLAB_TOKENS).max(1);
    // Tokens are divided before blocks are.
    let chunks = blocks.div_ceil(BLOCKS).max((2 * threads).div_ceil(ranges));
    let ranges = ranges.min((TASKS * threads).div_ceil(chunks));
    [blocks.div_ceil(chunks), t.div_ceil(ranges).next_multiple_of(SLAB_TOKENS)]
}

impl Product<'_> {
    /// [`run`](Product::run) in slabs, for the panels of all tokens, `x`.
    pub(super) fn run_slabs(&self, [slabs, multiply]: [Multiply; 2], task: &Task, x: &[u8], out: &Out<'_>) {
        let (part, panel, blocks) = (&self.parts[task.part], Panel::Int8, task.blocks.clone());
        let layout = part.layout();
        let token_bytes = layout.units * panel.unit_bytes();
        let mut sums = [[0.0; LANES]; BLOCKS * SLAB_TOKENS];
        let mut start = task.tokens.start;
        while start < task.tokens.end {
            let left = self.t - start;
            let slots = if left >= SLAB_TOKENS { SLAB_TOKENS } else { panel.slots(left) };
            let (x, sums) = (&x[start * token_bytes..], &mut sums[..blocks.len() * slots]);
            let multiply = if slots < MAX_TOKENS { multiply } else { slabs };
            let x = &x[..slots * token_bytes];
            multiply(Tile { blocks: part.run(blocks.clone()), layout, panel, slots, x, out: sums });
            // Token by token: a row of the result is written from end to end.
            for i in 0..slots.min(left) {
                for (block, sums) in blocks.clone().zip(sums.chunks_exact(slots)) {
                    let rows = LANES.min(part.rows() - block * LANES);
                    // SAFETY: see `multiply`.
                    unsafe { out.put([start + i, task.column + block * LANES], &sums[i], rows) };
                }
            }
            start += slots;
        }
    }
}
