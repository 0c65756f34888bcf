//! Several products in one fork and join: those of a layer's experts, or of a layer's heads.

use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use super::panels::build;
use super::{Context, Epilogue, Out, Product, Residual, shape, span};
use crate::cpu::SERIAL;
use crate::cpu::arena::Piece;
use crate::cpu::kernels::panel::PANELS;
use crate::cpu::packed::Packed;
use crate::cpu::rows::RowsMut;
use crate::cpu::source::Source;
use crate::{Error, Result};

/// One of several products.
pub(crate) struct Job<'a> {
    /// `[t, in]`.
    pub source: Source<'a>,
    /// `[out_i, in]`, rows stacked.
    pub parts: &'a [Packed],
    /// `[sum of out_i]`.
    pub bias: Option<&'a [f32]>,
}

impl Job<'_> {
    fn width(&self) -> usize {
        self.parts.iter().map(Packed::rows).sum()
    }
}

/// Where the result of a job is beside that of the job before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Along {
    /// Below it.
    Rows,
    /// On its right.
    Columns,
}

/// The panels of a product, one of each kind that a part calls for.
type Panels = [Option<Piece>; PANELS];

/// All `jobs`, their results in `out`, which they cover.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit, [`Error::OutOfMemory`].
pub(crate) fn many(ctx: &Context<'_>, jobs: &[Job<'_>], along: Along, out: RowsMut<'_>) -> Result<()> {
    check(jobs, along, &out)?;
    let panels: SmallVec<[Mutex<Panels>; 16]> =
        jobs.iter().map(|_| Mutex::new([const { None }; PANELS])).collect();
    let values: usize = jobs.iter().map(|j| j.source.shape().iter().product::<usize>()).sum();
    run(ctx, jobs.len(), values < SERIAL, &|i| {
        let (job, mut panels) = (&jobs[i], panels[i].lock().unwrap_or_else(PoisonError::into_inner));
        let t = job.source.shape()[0];
        for panel in job.parts.iter().map(|p| ctx.precision.panel(p.layout().codes, ctx.kernels, t)) {
            if panels[panel as usize].is_none() {
                panels[panel as usize] = Some(build(ctx, panel, &job.source)?);
            }
        }
        Ok(())
    })?;
    let panels: SmallVec<[Panels; 16]> =
        panels.into_iter().map(|p| p.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    let done = multiply(ctx, jobs, &panels, (along, out));
    panels.into_iter().flatten().flatten().for_each(|b| ctx.scratch.give(b));
    done
}

fn multiply(
    ctx: &Context<'_>,
    jobs: &[Job<'_>],
    panels: &[Panels],
    (along, out): (Along, RowsMut<'_>),
) -> Result<()> {
    let (stride, data) = (out.stride, out.data.as_mut_ptr());
    let mut at = 0;
    // `check` has seen that the jobs' results lie in `out`, each behind the one before: no two write the same place.
    let products: SmallVec<[(Product<'_>, Out<'_>); 16]> = jobs
        .iter()
        .zip(panels)
        .map(|(job, panels)| {
            let epilogue = Epilogue { bias: job.bias, residual: Residual::None };
            let t = job.source.shape()[0];
            let product = Product { parts: job.parts, gate: None, epilogue, panels, t };
            let out = Out { data: data.wrapping_add(at), stride, epilogue };
            at += match along {
                Along::Rows => t * stride,
                Along::Columns => job.width(),
            };
            (product, out)
        })
        .collect();
    let tasks = products.iter().map(|(product, _)| product.tasks(ctx)).sum();
    run(ctx, tasks, false, &|mut index| {
        for (product, out) in &products {
            let tasks = product.tasks(ctx);
            if index < tasks {
                return product.task(ctx, index).map_or(Ok(()), |task| product.run(ctx, &task, out));
            }
            index -= tasks;
        }
        Ok(())
    })
}

/// Whether the operands of all jobs fit, and their results cover `out`.
fn check(jobs: &[Job<'_>], along: Along, out: &RowsMut<'_>) -> Result<()> {
    let (mut rows, mut cols) = (0, 0);
    for job in jobs {
        let ([t, inp], width) = (job.source.shape(), job.width());
        if let Some(part) = job.parts.iter().find(|p| p.cols() != inp) {
            return Err(shape([t, inp], [t, part.cols()]));
        }
        if let Some(bias) = job.bias.filter(|b| b.len() != width) {
            return Err(shape([1, bias.len()], [1, width]));
        }
        if let Some(x) =
            job.source.reads().into_iter().find(|x| x.data.len() < span(x.rows, x.cols, x.stride))
        {
            return Err(shape([x.data.len() / x.cols.max(1), x.cols], [x.rows, x.cols]));
        }
        let beside = match along {
            Along::Rows => width == out.cols,
            Along::Columns => t == out.rows,
        };
        if !beside {
            return Err(shape([t, width], [out.rows, out.cols]));
        }
        rows += t;
        cols += width;
    }
    let covered = match along {
        Along::Rows => rows == out.rows,
        Along::Columns => cols == out.cols,
    };
    let fits = out.stride >= out.cols && out.data.len() >= span(out.rows, out.cols, out.stride);
    if fits && covered { Ok(()) } else { Err(shape([rows, cols], [out.rows, out.cols])) }
}

/// Calls `f` for each of `tasks`, on all threads unless `alone`.
fn run(
    ctx: &Context<'_>,
    tasks: usize,
    alone: bool,
    f: &(impl Fn(usize) -> Result<()> + Sync),
) -> Result<()> {
    if alone {
        return (0..tasks).try_for_each(f);
    }
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    ctx.threads.run(tasks, &|index| {
        if let Err(error) = f(index) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
