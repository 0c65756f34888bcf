//! What the backend calls a tensor: an array, or what was asked for and may still be made by a kernel on its way to
//! something else. Nothing is recorded before somebody needs it as an array.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_rs::Array;
use smallvec::SmallVec;

use super::{Mlx, dim, error, raw};
use crate::{Result, Rope};

/// Activations, or a key buffer: `[rows, cols]`.
#[derive(Clone, Debug)]
pub struct MlxTensor {
    shape: [usize; 2],
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Array(Array),
    Columns(Columns),
    /// What rows are written to; clones share it until one of them is written to.
    Buffer(Arc<Mutex<Buffer>>),
}

/// Columns from `from` on of some rows of `of`, rotated or not.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub of: Array,
    /// Parts of the same rows share it.
    pub whole: Arc<()>,
    pub rows: Range<usize>,
    pub from: usize,
    pub turn: Option<Turn>,
}

/// The rotation of rows at positions. The same frequencies are the same `rope`.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub rope: Arc<Rope>,
    pub positions: SmallVec<[u32; 2]>,
}

/// A row that is to be written.
#[derive(Debug)]
pub(super) struct Asked {
    pub at: usize,
    pub row: Columns,
}

/// A row that a kernel writes to the buffer itself. MLX does not know: whatever needs the buffer afterwards has to take
/// `rows` as well, or come after [`Buffer::settle`].
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub at: usize,
    /// What is written, as the kernel returns it: `[2 * n, cols]`, a key and a value of each of `n` sequences.
    pub rows: Array,
    /// Which of them.
    pub which: usize,
    /// The call, the same for all of them.
    pub call: Arc<()>,
    /// How often MLX had been asked to compute by then.
    pub asks: usize,
}

/// A buffer and its next rows.
#[derive(Debug)]
pub(super) struct Buffer {
    /// The buffer without `asked`; `written` may be in it.
    pub array: Array,
    /// Operations of MLX may still read rows before this one. Kernels write to rows from here on, and only to what an
    /// update of MLX's made: that has memory of its own, without gaps.
    pub read_to: usize,
    pub written: Option<Written>,
    pub asked: Option<Asked>,
}

impl From<Array> for MlxTensor {
    fn from(array: Array) -> Self {
        Self { shape: [array.dim(0) as usize, array.dim(1) as usize], state: State::Array(array) }
    }
}

impl MlxTensor {
    /// `array`, whose values are those of `shape`.
    pub(super) fn shaped(array: Array, shape: [usize; 2]) -> Self {
        Self { shape, state: State::Array(array) }
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The array, if it needs no recording.
    pub(super) fn made(&self) -> Option<&Array> {
        match &self.state {
            State::Array(array) => Some(array),
            _ => None,
        }
    }

    pub(super) fn columns(&self) -> Option<&Columns> {
        match &self.state {
            State::Columns(columns) => Some(columns),
            _ => None,
        }
    }

    /// The buffer, if nobody shares it or has it.
    pub(super) fn buffer(&self) -> Option<MutexGuard<'_, Buffer>> {
        match &self.state {
            State::Buffer(buffer) if Arc::strong_count(buffer) == 1 => buffer.try_lock().ok(),
            _ => None,
        }
    }

    /// As an array, all of it.
    pub(super) fn array(&self, be: &Mlx) -> Result<Cow<'_, Array>> {
        self.rows(self.shape[0], be)
    }

    /// As an array of which only the first `rows` rows will be read.
    pub(super) fn rows(&self, rows: usize, be: &Mlx) -> Result<Cow<'_, Array>> {
        match &self.state {
            State::Array(array) => Ok(Cow::Borrowed(array)),
            State::Columns(columns) => columns.array(self.shape[1], be).map(Cow::Owned),
            State::Buffer(buffer) => {
                let mut buffer = lock(buffer);
                buffer.settle(self.shape, be)?;
                buffer.read_to = buffer.read_to.max(rows);
                Ok(Cow::Owned(buffer.array.clone()))
            }
        }
    }

    /// What has to be computed so that all that was asked of it is.
    pub(super) fn last(&self, be: &Mlx) -> Result<Array> {
        let State::Buffer(buffer) = &self.state else { return self.array(be).map(Cow::into_owned) };
        let mut buffer = lock(buffer);
        if buffer.asked.is_some() {
            buffer.settle(self.shape, be)?;
        }
        Ok(buffer.written.as_ref().map_or_else(|| buffer.array.clone(), |written| written.rows.clone()))
    }

    /// `columns`, as many as `shape` has.
    pub(super) fn of_columns(columns: Columns, shape: [usize; 2]) -> Self {
        Self { shape, state: State::Columns(columns) }
    }

    /// Rows from `at` on become `rows: [n, cols]`.
    pub(super) fn put(&mut self, at: usize, rows: &Array, n: usize, be: &Mlx) -> Result<()> {
        let shape = self.shape;
        let buffer = self.writable(be)?;
        buffer.settle(shape, be)?;
        buffer.update(at, rows, n, shape)
    }

    /// Row `at` becomes `row`, which is one, once somebody asks for it.
    pub(super) fn ask(&mut self, at: usize, row: Columns, be: &Mlx) -> Result<()> {
        let shape = self.shape;
        let buffer = self.writable(be)?;
        if buffer.asked.is_some() {
            buffer.settle(shape, be)?;
        }
        buffer.asked = Some(Asked { at, row });
        Ok(())
    }

    /// The buffer for writing: a copy of it from here on if it is shared.
    fn writable(&mut self, be: &Mlx) -> Result<&mut Buffer> {
        let own = match &self.state {
            State::Buffer(buffer) => Arc::strong_count(buffer) == 1,
            _ => false,
        };
        if !own {
            let array = self.array(be)?.into_owned();
            let buffer = Buffer { array, read_to: usize::MAX, written: None, asked: None };
            self.state = State::Buffer(Arc::new(Mutex::new(buffer)));
        }
        match &mut self.state {
            State::Buffer(buffer) => Arc::get_mut(buffer),
            _ => None,
        }
        .map(|buffer| buffer.get_mut().unwrap_or_else(PoisonError::into_inner))
        .ok_or_else(|| error("a buffer is shared with another thread".to_owned()))
    }
}

fn lock(buffer: &Mutex<Buffer>) -> MutexGuard<'_, Buffer> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Columns {
    /// Those of row `i`.
    pub(super) fn row(&self, i: usize) -> Self {
        let at = self.rows.start + i;
        let one = |turn: &Turn| Turn {
            rope: Arc::clone(&turn.rope),
            positions: SmallVec::from_elem(turn.positions[i], 1),
        };
        Self { rows: at..at + 1, turn: self.turn.as_ref().map(one), ..self.clone() }
    }

    /// Records them: `[rows, cols]`.
    pub(super) fn array(&self, cols: usize, be: &Mlx) -> Result<Array> {
        let Range { start, end } = self.rows;
        let x = raw::slice(&self.of, [dim(start)?, dim(self.from)?], [dim(end)?, dim(self.from + cols)?])?;
        match &self.turn {
            Some(turn) => be.turn_rows(&x, turn),
            None => Ok(x),
        }
    }
}

impl Buffer {
    /// Records all that is to be in `array`, of `shape`.
    pub(super) fn settle(&mut self, shape: [usize; 2], be: &Mlx) -> Result<()> {
        if let Some(Written { at, rows, which, .. }) = self.written.take() {
            // The same values: the update orders what comes after it, whether it copies the buffer or not.
            let row = raw::slice(&rows, [dim(which)?, 0], [dim(which + 1)?, dim(shape[1])?])?;
            self.update(at, &row, 1, shape)?;
        }
        if let Some(Asked { at, row }) = self.asked.take() {
            let row = row.array(shape[1], be)?;
            self.update(at, &row, 1, shape)?;
        }
        Ok(())
    }

    /// Records that rows from `at` on become `rows: [n, cols]`.
    pub(super) fn update(&mut self, at: usize, rows: &Array, n: usize, shape: [usize; 2]) -> Result<()> {
        let (from, to) = ([dim(at)?, 0], [dim(at + n)?, dim(shape[1])?]);
        self.array = raw::slice_update(&self.array, rows, from, to)?;
        // An update of everything may be what was written, itself.
        self.read_to = if n < shape[0] { 0 } else { usize::MAX };
        Ok(())
    }
}
