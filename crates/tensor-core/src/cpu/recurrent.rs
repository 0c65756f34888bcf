//! Layers with a state: heads and channels, cut into columns of the state, over the threads. Each task takes all tokens
//! of a span, with its part of the state in memory of its own. The arithmetic is in `kernels/recurrent.rs`.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use super::kernels::recurrent::{COLUMNS, ChannelScan, Erase, HeadScan};
use super::kernels::vector::LANES;
use super::rows::Rows;
use super::{Cpu, CpuTensor, rows};
use crate::recurrent::{AttentionDims, Gates, RuleRow, head_dims, rg_lru_gates};
use crate::{
    Backend, Error, LinearAttention, Recurrent, Result, RgLru, Rule, SelectiveScan, ShortConv, StateSpan,
    States,
};

/// Tokens whose results wait in a task's memory.
const STRIP: usize = 64;

type Done = Result<(CpuTensor, States<CpuTensor>)>;

/// Memory that tasks write disjoint parts of: row `i` begins at `first + i * stride`.
#[derive(Clone, Copy)]
struct Shared {
    first: *mut f32,
    stride: usize,
    rows: usize,
}

// SAFETY: each task writes only the columns that are its own, while `scan` holds the memory exclusively.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn of(x: &mut CpuTensor) -> Option<Self> {
        let x = x.view_mut()?;
        Some(Self { first: x.data.as_mut_ptr(), stride: x.stride, rows: x.rows })
    }

    /// Copies rows of `width` values, of which the first `columns.len()` count, to these columns from row `at` on.
    ///
    /// # Safety
    /// The columns are the caller's alone.
    unsafe fn write(&self, at: usize, columns: Range<usize>, values: &[f32], width: usize) {
        assert!(
            at + values.len() / width <= self.rows && columns.end <= self.stride && columns.len() <= width
        );
        for (i, row) in values.chunks_exact(width).enumerate() {
            // SAFETY: the row exists and has these columns, and nobody else uses them.
            unsafe {
                let to = self.first.add((at + i) * self.stride + columns.start);
                std::ptr::copy_nonoverlapping(row.as_ptr(), to, columns.len());
            }
        }
    }
}

/// Copies columns of `x`, or zeros, into rows of `width` values.
fn gather(x: Option<Rows<'_>>, columns: Range<usize>, width: usize, out: &mut [f32]) {
    out.fill(0.0);
    if let Some(x) = x {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            out[..columns.len()].copy_from_slice(&x.row(i)[columns.clone()]);
        }
    }
}

/// Part of one span's rows.
fn part<'a>(x: Rows<'a>, rows: Range<usize>) -> Rows<'a> {
    Rows { data: x.data.get(rows.start * x.stride..).unwrap_or_default(), rows: rows.len(), ..x }
}

/// Where results of a scan go, and how its tasks are counted.
struct Outputs {
    y: CpuTensor,
    states: States<CpuTensor>,
}

/// What a task needs to know of its place.
struct Place<'a> {
    span: &'a StateSpan<'a, CpuTensor>,
    before: Option<Rows<'a>>,
    y: Shared,
    after: Shared,
}

impl Cpu {
    /// Calls `body` for each of `tasks` tasks of each span, with `floats` values of memory, and returns what it wrote.
    fn scan(
        &self,
        spans: &[StateSpan<'_, CpuTensor>],
        shapes: [[usize; 2]; 2],
        [tasks, floats]: [usize; 2],
        body: impl Fn(&Place<'_>, usize, &mut [f32]) + Sync,
    ) -> Done {
        let [[t, cols], [state_rows, state_cols]] = shapes;
        let mut out = Outputs { y: self.alloc(t, cols)?, states: States::new() };
        for _ in spans {
            out.states.push(self.alloc(state_rows, state_cols)?);
        }
        let before = spans.iter().map(|s| s.state.map(|x| rows("state", x)).transpose());
        let before = before.collect::<Result<SmallVec<[_; 4]>>>()?;
        let after: SmallVec<[_; 4]> = out.states.iter_mut().filter_map(Shared::of).collect();
        let Some(y) = Shared::of(&mut out.y).filter(|_| after.len() == spans.len()) else {
            return Err(Error::Shape { op: "scan", got: [t, cols], want: [t, cols] });
        };
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        self.0.threads.run(spans.len() * tasks, &|i| {
            let (s, i) = (i / tasks, i % tasks);
            match self.0.scratch.take(floats * size_of::<f32>()) {
                Ok(mut memory) => {
                    let place = Place { span: &spans[s], before: before[s], y, after: after[s] };
                    body(&place, i, &mut memory.values_mut::<f32>()[..floats]);
                    self.0.scratch.give(memory);
                }
                Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok((out.y, out.states)),
        }
    }

    /// The gates of all tokens, `[t, gates.width()]`.
    fn gates(&self, rule: &Rule<'_, CpuTensor>, k: Rows<'_>, gates: &Gates) -> Result<CpuTensor> {
        let op = "linear_attention";
        let mut out = self.alloc(k.rows, gates.width())?;
        match rule {
            Rule::Constant { decay } => {
                let decay = rows(op, decay)?;
                self.each_row(&mut out, |i, out| {
                    gates.fill(RuleRow::Constant { decay: decay.row(0) }, k.row(i), out);
                });
            }
            Rule::Ssd { dt, dt_bias, a, limits, .. } => {
                let (dt, dt_bias, a, limits) = (rows(op, dt)?, rows(op, dt_bias)?, rows(op, a)?, *limits);
                self.each_row(&mut out, |i, out| {
                    let (dt_bias, a) = (dt_bias.row(0), a.row(0));
                    gates.fill(RuleRow::Ssd { dt: dt.row(i), dt_bias, a, limits }, k.row(i), out);
                });
            }
            Rule::Delta { gate, dt_bias, a, beta } => {
                let (gate, beta) = (rows(op, gate)?, rows(op, beta)?);
                let (dt_bias, a) = (rows(op, dt_bias)?, rows(op, a)?);
                self.each_row(&mut out, |i, out| {
                    let (dt_bias, a) = (dt_bias.row(0), a.row(0));
                    let rule = RuleRow::Delta { gate: gate.row(i), dt_bias, a, beta: beta.row(i) };
                    gates.fill(rule, k.row(i), out);
                });
            }
            Rule::Wkv7 { decay, .. } => {
                let decay = rows(op, decay)?;
                self.each_row(&mut out, |i, out| {
                    gates.fill(RuleRow::Wkv7 { decay: decay.row(i) }, k.row(i), out);
                });
            }
        }
        Ok(out)
    }
}

/// The operands of a linear attention.
struct Operands<'a> {
    dims: AttentionDims,
    gates: Gates,
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    gate: Rows<'a>,
    /// What is looked up and where it is added, if both are operands.
    pair: Option<[Rows<'a>; 2]>,
    erases: bool,
    skip: Option<&'a [f32]>,
}

impl Operands<'_> {
    /// Rows `rows` and columns `columns` of the values of head `head`.
    fn head<'a>(
        &'a self,
        head: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        [state, y]: [&'a mut [f32]; 2],
    ) -> HeadScan<'a> {
        let (n, dims) = (self.dims.key_dim, &self.dims);
        let key = dims.key_head(head) * n;
        let gate = |at: usize, cols: usize| part(self.gate, rows.clone()).columns(at, cols);
        let of = |x: Rows<'a>, at: usize, cols: usize| part(x, rows.clone()).columns(at, cols);
        let k = of(self.k, key, n);
        let erase = self.erases.then(|| Erase {
            key: match (self.pair, self.gates.made_key_at(head)) {
                (Some([a, _]), _) => of(a, head * n, n),
                (None, Some(at)) => gate(at, n),
                (None, None) => k,
            },
            factor: gate(self.gates.erase_at(head), 1),
            at: self.pair.map(|[_, b]| of(b, head * n, n)),
        });
        HeadScan {
            q: of(self.q, key, n),
            k,
            v: of(self.v, head * dims.value_dim + columns.start, columns.len()),
            decay: gate(self.gates.decay_at(head), dims.decays),
            scale: gate(self.gates.scale_at(head), 1),
            erase,
            skip: self.skip.map_or(0.0, |d| d[head]),
            state,
            y,
        }
    }
}

impl Recurrent for Cpu {
    fn short_conv(
        &self,
        x: &CpuTensor,
        p: &ShortConv<'_, CpuTensor>,
        spans: &[StateSpan<'_, CpuTensor>],
    ) -> Done {
        let [t, c, k] = p.dims(self, x, spans)?;
        let (x, kernel) = (rows("short_conv", x)?, rows("short_conv", p.kernel)?);
        let bias = p.bias.map(|b| rows("short_conv", b)).transpose()?.map(|b| b.row(0));
        let before = spans.iter().map(|s| s.state.map(|x| rows("state", x)).transpose());
        let before = before.collect::<Result<SmallVec<[_; 4]>>>()?;
        // The row `back` rows before row `row` of span `s`, if there is one.
        let earlier = |s: usize, row: usize, back: usize| {
            let at = row - spans[s].rows.start;
            if at >= back { Some(x.row(row - back)) } else { before[s].map(|b| b.row(k - 1 + at - back)) }
        };
        let mut y = self.alloc(t, c)?;
        let (conv, activate) = (self.0.kernels.recurrent.conv, self.0.kernels.elementwise.activate);
        self.each_row(&mut y, |row, out| {
            let s = spans.partition_point(|span| span.rows.end <= row);
            let taps: SmallVec<[&[f32]; 8]> = (0..k).rev().filter_map(|back| earlier(s, row, back)).collect();
            // Before the start of a sequence there are zeros.
            conv(&taps, part(kernel, k - taps.len()..k), bias, out);
            if let Some(act) = p.act {
                activate(act, out);
            }
        });
        let mut states = States::new();
        for (s, span) in spans.iter().enumerate() {
            let mut state = self.alloc(k - 1, c)?;
            for (i, to) in state.unique().unwrap_or_default().chunks_exact_mut(c).enumerate() {
                match earlier(s, span.rows.end - 1, k - 2 - i) {
                    Some(row) => to.copy_from_slice(row),
                    None => to.fill(0.0),
                }
            }
            states.push(state);
        }
        Ok((y, states))
    }

    fn selective_scan(
        &self,
        x: &CpuTensor,
        p: &SelectiveScan<'_, CpuTensor>,
        spans: &[StateSpan<'_, CpuTensor>],
    ) -> Done {
        let [t, c, n] = p.dims(self, x, spans)?;
        let op = "selective_scan";
        let (x, dt, b, read) = (rows(op, x)?, rows(op, p.dt)?, rows(op, p.b)?, rows(op, p.c)?);
        let (a, d) = (rows(op, p.a)?, rows(op, p.d)?.row(0));
        let shapes = [[t, c], [n, c]];
        let floats = (2 * n + STRIP) * LANES;
        self.scan(spans, shapes, [c.div_ceil(LANES), floats], |place, i, memory| {
            let columns = i * LANES..c.min((i + 1) * LANES);
            let (state, rest) = memory.split_at_mut(n * LANES);
            let (decay, y) = rest.split_at_mut(n * LANES);
            gather(place.before, columns.clone(), LANES, state);
            gather(Some(a), columns.clone(), LANES, decay);
            for first in place.span.rows.clone().step_by(STRIP) {
                let rows = first..place.span.rows.end.min(first + STRIP);
                let y = &mut y[..rows.len() * LANES];
                (self.0.kernels.recurrent.channels)(ChannelScan {
                    x: part(x, rows.clone()).columns(columns.start, columns.len()),
                    dt: part(dt, rows.clone()).columns(columns.start, columns.len()),
                    b: part(b, rows.clone()),
                    c: part(read, rows.clone()),
                    a: decay,
                    d: &d[columns.clone()],
                    state,
                    y,
                });
                // SAFETY: these columns are this task's.
                unsafe { place.y.write(first, columns.clone(), y, LANES) };
            }
            // SAFETY: as above.
            unsafe { place.after.write(0, columns, state, LANES) };
        })
    }

    fn linear_attention(
        &self,
        p: &LinearAttention<'_, CpuTensor>,
        spans: &[StateSpan<'_, CpuTensor>],
    ) -> Done {
        let dims = p.dims(self, spans)?;
        let (op, gates) = ("linear_attention", Gates::of(&p.rule, dims));
        let k = rows(op, p.k)?;
        let gate = self.gates(&p.rule, k, &gates)?;
        let operands = Operands {
            dims,
            gates,
            q: rows(op, p.q)?,
            k,
            v: rows(op, p.v)?,
            gate: rows(op, &gate)?,
            pair: match &p.rule {
                Rule::Wkv7 { a, b, .. } => Some([rows(op, a)?, rows(op, b)?]),
                _ => None,
            },
            erases: matches!(p.rule, Rule::Delta { .. } | Rule::Wkv7 { .. }),
            skip: match &p.rule {
                Rule::Ssd { d, .. } => Some(rows(op, d)?.row(0)),
                _ => None,
            },
        };
        let (n, width) = (dims.key_dim, dims.value_dim);
        let parts = width.div_ceil(COLUMNS);
        let shapes = [[dims.t, dims.heads * width], dims.state()];
        let floats = (n + STRIP) * COLUMNS;
        self.scan(spans, shapes, [dims.heads * parts, floats], |place, i, memory| {
            let (head, first) = (i / parts, i % parts * COLUMNS);
            let columns = first..width.min(first + COLUMNS);
            let padded = columns.len().next_multiple_of(LANES);
            let (state, y) = memory.split_at_mut(n * padded);
            let before = place.before.map(|x| part(x, head * n..(head + 1) * n));
            gather(before, columns.clone(), padded, state);
            let to = head * width + columns.start..head * width + columns.end;
            for first in place.span.rows.clone().step_by(STRIP) {
                let rows = first..place.span.rows.end.min(first + STRIP);
                let y = &mut y[..rows.len() * padded];
                let scan = operands.head(head, rows, columns.clone(), [&mut *state, &mut *y]);
                (self.0.kernels.recurrent.head)(scan);
                // SAFETY: these columns are this task's.
                unsafe { place.y.write(first, to.clone(), y, padded) };
            }
            // SAFETY: as above, in the rows of this head.
            unsafe { place.after.write(head * n, columns, state, padded) };
        })
    }

    fn head_linear(&self, x: &CpuTensor, w: &CpuTensor, bias: &CpuTensor) -> Result<CpuTensor> {
        let [t, heads, n, m] = head_dims(self, x, w, bias)?;
        let op = "head_linear";
        let (x, w, bias) = (rows(op, x)?, rows(op, w)?, rows(op, bias)?.row(0));
        let (mut y, combine) = (self.alloc(t, heads * m)?, self.0.kernels.recurrent.combine);
        self.each_row(&mut y, |i, y| {
            for (h, y) in y.chunks_exact_mut(m).enumerate() {
                let factors = &x.row(i)[h * n..][..n];
                combine(factors, part(w, h * n..(h + 1) * n), &bias[h * m..][..m], y);
            }
        });
        Ok(y)
    }

    fn rg_lru(&self, x: &CpuTensor, p: &RgLru<'_, CpuTensor>, spans: &[StateSpan<'_, CpuTensor>]) -> Done {
        let [t, c] = p.dims(self, x, spans)?;
        let op = "rg_lru";
        let (x, input, recurrent) = (rows(op, x)?, rows(op, p.input)?, rows(op, p.recurrent)?);
        let param = rows(op, p.param)?.row(0);
        // Decays, then what enters.
        let mut gates = self.alloc(t, 2 * c)?;
        self.each_row(&mut gates, |i, out| {
            let is_first = spans.iter().any(|s| s.state.is_none() && s.rows.start == i);
            let (decays, taken) = out.split_at_mut(c);
            let (x, input, recurrent) = (x.row(i), input.row(i), recurrent.row(i));
            for (j, (decay, taken)) in decays.iter_mut().zip(taken).enumerate() {
                let (left, factor) = rg_lru_gates(recurrent[j], param[j], is_first);
                *decay = left;
                *taken = factor * x[j] / (1.0 + (-input[j]).exp());
            }
        });
        let (gates, mut y) = (rows(op, &gates)?, self.alloc(t, c)?);
        let mut states = States::new();
        let out = y.unique().unwrap_or_default();
        for span in spans {
            let mut state = match span.state {
                Some(before) => self.own(before.clone())?,
                None => self.upload(1, c, &vec![0.0; c])?,
            };
            let h = state.unique().unwrap_or_default();
            for row in span.rows.clone() {
                let (decays, taken) = gates.row(row).split_at(c);
                for (h, (decay, taken)) in h.iter_mut().zip(decays.iter().zip(taken)) {
                    *h = decay.mul_add(*h, *taken);
                }
                out[row * c..(row + 1) * c].copy_from_slice(h);
            }
            states.push(state);
        }
        Ok((y, states))
    }
}
