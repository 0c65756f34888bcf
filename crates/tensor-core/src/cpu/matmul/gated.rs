//! A gated pair of projections as one product: the results of both lie in cache when one opens the other.

use super::{Context, Epilogue, Out, Product, Residual, Task};
use crate::cpu::kernels::vector::LANES;
use crate::{Activation, Result};

/// Tokens whose results wait in cache for what they open, or are opened by.
const TOKENS: usize = 64;

/// What a product of two parts gives, the gate and what it opens: `act(first) * second`.
#[derive(Clone, Copy)]
pub(super) struct Gate(pub(super) Activation);

impl Product<'_> {
    /// Multiplies the blocks of `task`, which are the gate's, and those that they open, and writes what comes of both to
    /// `out`.
    pub(super) fn run_gated(
        &self,
        ctx: &Context<'_>,
        Gate(act): Gate,
        task: &Task,
        out: &Out<'_>,
    ) -> Result<()> {
        let part = &self.parts[task.part];
        // What multiplies slabs takes any tokens, other kernels take all.
        let step = if self.slabs(ctx, part).is_some() { TOKENS } else { self.t };
        let first = task.blocks.start * LANES;
        let width = part.rows().min(task.blocks.end * LANES) - first;
        let half = width * step.min(task.tokens.len());
        let mut scratch = ctx.scratch.take(2 * half * size_of::<f32>())?;
        let results = &mut scratch.values_mut::<f32>()[..2 * half];
        for from in task.tokens.clone().step_by(step) {
            let tokens = from..task.tokens.end.min(from + step);
            let gate = Task { tokens: tokens.clone(), ..task.clone() };
            let opened = Task { part: task.part + 1, column: task.column + part.rows(), ..gate.clone() };
            for (task, results) in [gate, opened].iter().zip(results.chunks_exact_mut(half)) {
                // What makes writes through an `Out` sound, see `multiply`, holds of this one: the task's results are as wide
                // as a row of `results`, begin where it does, fill it, and nobody else knows of it.
                let before = tokens.start * width + task.column + first;
                let epilogue = Epilogue { residual: Residual::None, ..out.epilogue };
                let data = results.as_mut_ptr().wrapping_sub(before);
                self.run(ctx, task, &Out { data, stride: width, epilogue })?;
            }
            let (gates, opened) = results.split_at(half);
            let pairs = gates.chunks_exact(width).zip(opened.chunks_exact(width));
            for (t, (gate, opened)) in tokens.zip(pairs) {
                // SAFETY: see `multiply`: these are the columns and tokens of this task alone.
                let out = unsafe { out.row([t, task.column + first], width) };
                (ctx.kernels.elementwise.gate)(act, gate, opened, out);
            }
        }
        ctx.scratch.give(scratch);
        Ok(())
    }
}
