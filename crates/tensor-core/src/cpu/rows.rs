//! Matrices of `f32` in memory as kernels see them: rows of a buffer, possibly some columns of wider rows.

/// A matrix to read: row `i` is `data[i * stride..][..cols]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// From the first value of the first row on.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
    /// From the start of a row to that of the next, in values.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.cols]
    }

    /// Rows `rows`, which exist.
    pub fn part(self, rows: std::ops::Range<usize>) -> Self {
        let data = self.data.get(rows.start * self.stride..).unwrap_or_default();
        Self { data, rows: rows.len(), ..self }
    }

    /// Columns `[at, at + cols)`.
    pub fn columns(self, at: usize, cols: usize) -> Self {
        Self { data: self.data.get(at..).unwrap_or_default(), cols, ..self }
    }
}

/// A matrix to write: row `i` is `data[i * stride..][..cols]`.
#[derive(Debug)]
pub(crate) struct RowsMut<'a> {
    /// From the first value of the first row on.
    pub data: &'a mut [f32],
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
    /// From the start of a row to that of the next, in values.
    pub stride: usize,
}
