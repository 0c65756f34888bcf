//! A checkpoint under other names: where a layer's parameter lies in files that name, fuse or order it differently.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rillm_quant::{Format, RawTensor};

use crate::{Error, Result, WeightSource};

/// Where a parameter is, in terms of the stored names.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Stored as it is, under this name.
    Tensor(String),
    /// Rows of a stored matrix that fuses several (phi3's `qkv_proj`), which may have axes of length 1 between.
    Rows {
        /// Stored name.
        name: String,
        /// Rows of the stored matrix.
        rows: Range<usize>,
        /// Rows that the stored matrix has in all.
        of: usize,
    },
    /// Rows in runs at equal distances: of every `stride` rows of a stored matrix, `run` from the `start`-th on
    /// (queries, keys and values that lie head by head).
    Strided {
        /// Stored name.
        name: String,
        /// The first row.
        start: usize,
        /// Rows of a run.
        run: usize,
        /// From the start of one run to the next.
        stride: usize,
        /// Rows that the stored matrix has in all.
        of: usize,
    },
    /// Rows of one matrix of a stored stack of them (experts), or of one vector.
    Stacked {
        /// Stored name.
        name: String,
        /// Which matrix, and how many there are.
        index: [usize; 2],
        /// The first row.
        start: usize,
        /// From one row to the next: 2 where gates and what they open take turns.
        step: usize,
        /// Rows that a stored matrix has in all.
        of: usize,
        /// How the matrices lie.
        lie: Lie,
    },
    /// Columns of a stored matrix `[in, out]`, transposed (gpt2's Conv1D). Float formats only.
    Transposed {
        /// Stored name.
        name: String,
        /// Columns of the stored matrix, rows of the parameter.
        rows: Range<usize>,
        /// Columns that the stored matrix has in all.
        of: usize,
    },
    /// Rows stored in the order of interleaved rope, put back into halves: in each of `heads` heads the stored
    /// row `2 i + j` is row `j * head_dim / 2 + i` (GGUF's `llama`).
    Unpermuted {
        /// Stored name.
        name: String,
        /// Heads that the rows divide into.
        heads: usize,
    },
    /// Rows stored part by part, each of all heads, put back head by head (queries, keys and values of GGUF's
    /// `gptneox`).
    Unstacked {
        /// Stored name.
        name: String,
        /// Parts of a head.
        parts: usize,
        /// Heads that the rows of a part divide into.
        heads: usize,
    },
    /// Stored with `-by` added: gemma's norms in GGUF.
    Shifted {
        /// Stored name.
        name: String,
        /// Added to every value.
        by: f32,
    },
    /// Rows of a stored matrix in another order, some of them more than once.
    Ordered {
        /// Stored name.
        name: String,
        /// Rows of the stored matrix.
        rows: Arc<[usize]>,
        /// Rows that the stored matrix has in all.
        of: usize,
    },
    /// Stored as minus the exponential of what is wanted: decays in GGUF.
    Logarithm {
        /// Stored name.
        name: String,
    },
    /// Stored with the same rows under another shape (a matrix of one row that GGUF has as a vector).
    Reshaped {
        /// Stored name.
        name: String,
    },
    /// Not a tensor: numbers that are elsewhere in the file.
    Values {
        /// Where.
        name: String,
        /// The numbers.
        values: Vec<f32>,
    },
}

/// How the matrices of a stack lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// `[count, out, in]`.
    Rows,
    /// `[count, in, out]`. Float formats only.
    Columns,
}

impl Origin {
    /// The stored name.
    pub fn name(&self) -> &str {
        match self {
            Self::Tensor(name)
            | Self::Rows { name, .. }
            | Self::Strided { name, .. }
            | Self::Stacked { name, .. }
            | Self::Transposed { name, .. }
            | Self::Unpermuted { name, .. }
            | Self::Unstacked { name, .. }
            | Self::Shifted { name, .. }
            | Self::Ordered { name, .. }
            | Self::Logarithm { name }
            | Self::Reshaped { name }
            | Self::Values { name, .. } => name,
        }
    }
}

/// A source whose parameters are found through a map from names to [`Origin`]s.
pub struct Adapted<S, F> {
    source: S,
    origin: F,
    used: Mutex<BTreeSet<String>>,
}

impl<S: WeightSource, F: Fn(&str) -> Origin + Send + Sync> Adapted<S, F> {
    /// `source` with every name looked up by `origin`.
    pub fn new(source: S, origin: F) -> Self {
        Self { source, origin, used: Mutex::default() }
    }
}

impl<S: WeightSource, F: Fn(&str) -> Origin + Send + Sync> WeightSource for Adapted<S, F> {
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        self.get_shaped(name, &[])
    }

    fn get_shaped(&self, name: &str, want: &[usize]) -> Result<Option<RawTensor<'_>>> {
        let origin = (self.origin)(name);
        if let Origin::Values { name, values } = &origin {
            let raw = RawTensor::from_f32(vec![values.len()], values);
            return raw.map(Some).map_err(|source| Error::Quant { name: name.clone(), source });
        }
        let stored_shape = stored_shape(&origin, want);
        let Some(raw) = self.source.get_shaped(origin.name(), &stored_shape)? else {
            return Ok(None);
        };
        let stored = borrowed(&raw);
        let raw = transform(raw, &origin, (&stored_shape, want))?;
        if matches!(raw.codes, Cow::Owned(_)) {
            stored.into_iter().for_each(|bytes| self.source.release(bytes));
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(origin.name().to_owned());
        Ok(Some(raw))
    }

    fn stored_name(&self, name: &str) -> String {
        self.source.stored_name((self.origin)(name).name())
    }

    fn release(&self, bytes: &[u8]) {
        self.source.release(bytes);
    }

    /// Stored names that no layer has asked for, plus those asked for so far under the layers' names: a layer
    /// takes what it needs first, the rest is what nobody knows.
    fn names(&self) -> Vec<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.source.names().into_iter().filter(|n| !used.contains(n)).collect()
    }
}

/// The bytes of `raw` that are somebody else's.
fn borrowed<'a>(raw: &RawTensor<'a>) -> [&'a [u8]; 3] {
    [&raw.codes, &raw.scales, &raw.biases].map(|part| match part {
        Cow::Borrowed(bytes) => *bytes,
        Cow::Owned(_) => &[],
    })
}

/// The shape that the stored tensor must have for the parameter to have shape `want`.
fn stored_shape(origin: &Origin, want: &[usize]) -> Vec<usize> {
    match (origin, want) {
        (Origin::Rows { of, .. } | Origin::Strided { of, .. } | Origin::Ordered { of, .. }, [_, cols]) => {
            vec![*of, *cols]
        }
        (Origin::Transposed { of, .. }, [_, cols]) => vec![*cols, *of],
        (Origin::Stacked { index: [_, count], of, lie: Lie::Rows, .. }, [_, cols]) => {
            vec![*count, *of, *cols]
        }
        (Origin::Stacked { index: [_, count], of, lie: Lie::Columns, .. }, [_, cols]) => {
            vec![*count, *cols, *of]
        }
        (Origin::Stacked { index: [_, count], of, .. }, [_]) => vec![*count, *of],
        (Origin::Rows { of, .. } | Origin::Strided { of, .. } | Origin::Transposed { of, .. }, [_]) => {
            vec![*of]
        }
        (Origin::Reshaped { .. }, _) => vec![],
        _ => want.to_vec(),
    }
}

fn transform<'a>(
    raw: RawTensor<'a>,
    origin: &Origin,
    (stored, want): (&[usize], &[usize]),
) -> Result<RawTensor<'a>> {
    let quant = |source| Error::Quant { name: origin.name().to_owned(), source };
    let mismatch = |raw: &RawTensor<'_>| Error::WeightShape {
        name: origin.name().to_owned(),
        got: raw.shape.clone(),
        want: stored.to_vec(),
    };
    if !stored.is_empty() && raw.shape != stored {
        return Err(mismatch(&raw));
    }
    match origin {
        Origin::Tensor(_) => Ok(raw),
        Origin::Stacked { .. } => {
            let part = of_stack(&raw, origin, want).map_err(quant)?;
            part.ok_or_else(|| mismatch(&raw))
        }
        Origin::Rows { rows, .. } | Origin::Transposed { rows, .. } if raw.shape.len() == 1 => {
            let values = raw.decode().map_err(quant)?;
            let part = values.get(rows.clone()).ok_or_else(|| mismatch(&raw))?;
            RawTensor::from_f32(vec![rows.len()], part).map_err(quant)
        }
        Origin::Rows { rows, .. } => {
            if raw.shape.len() < 2 || rows.end > raw.rows() {
                return Err(mismatch(&raw));
            }
            Ok(raw.rows_range(rows.clone()))
        }
        Origin::Ordered { rows, of, .. } => {
            if lines(&raw) != *of || raw.shape.len() > 2 || rows.iter().any(|row| row >= of) {
                return Err(mismatch(&raw));
            }
            reordered(&raw, rows).map_err(quant)
        }
        Origin::Strided { .. } | Origin::Unpermuted { .. } | Origin::Unstacked { .. } => {
            let order = order(origin, lines(&raw)).filter(|_| raw.shape.len() <= 2);
            reordered(&raw, &order.ok_or_else(|| mismatch(&raw))?).map_err(quant)
        }
        Origin::Transposed { rows, .. } => {
            if raw.shape.len() != 2 || rows.end > raw.cols() {
                return Err(mismatch(&raw));
            }
            let (n, cols) = (raw.rows(), raw.cols());
            let values = raw.decode().map_err(quant)?;
            let columns = rows.clone().flat_map(|c| (0..n).map(move |r| (r, c)));
            let turned: Vec<f32> = columns.map(|(r, c)| values[r * cols + c]).collect();
            RawTensor::from_f32(vec![rows.len(), n], &turned).map_err(quant)
        }
        Origin::Shifted { by, .. } => changed(&raw, |x| x + by).map_err(quant),
        Origin::Logarithm { .. } => changed(&raw, |x| (-x).ln()).map_err(quant),
        Origin::Reshaped { name } => {
            let values = |shape: &[usize]| shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            let same_rows = raw.shape.last() == want.last() || matches!(raw.format, Format::Float(_));
            if want.is_empty() || same_rows && values(&raw.shape) == values(want) {
                let shape = if want.is_empty() { raw.shape } else { want.to_vec() };
                return Ok(RawTensor { shape, ..raw });
            }
            Err(Error::WeightShape { name: name.clone(), got: raw.shape, want: want.to_vec() })
        }
        Origin::Values { .. } => Err(mismatch(&raw)),
    }
}

/// `raw` with every value changed.
fn changed(raw: &RawTensor<'_>, to: impl Fn(f32) -> f32) -> rillm_quant::Result<RawTensor<'static>> {
    let values: Vec<f32> = raw.decode()?.into_iter().map(to).collect();
    RawTensor::from_f32(raw.shape.clone(), &values)
}

/// Rows of a matrix, values of a vector.
fn lines(raw: &RawTensor<'_>) -> usize {
    if raw.shape.len() == 1 { raw.cols() } else { raw.rows() }
}

/// The rows of a matrix, or the values of a vector, of these numbers.
fn reordered(raw: &RawTensor<'_>, order: &[usize]) -> rillm_quant::Result<RawTensor<'static>> {
    if raw.shape.len() != 1 {
        return Ok(raw.take_rows(order.iter().copied()));
    }
    let values = raw.decode()?;
    let ordered: Vec<f32> = order.iter().map(|&i| values[i]).collect();
    RawTensor::from_f32(vec![ordered.len()], &ordered)
}

/// The rows, of `n` stored ones, that a parameter consists of; `None` if they don't divide so.
fn order(origin: &Origin, n: usize) -> Option<Vec<usize>> {
    match *origin {
        Origin::Strided { start, run, stride, .. } => {
            if run == 0 || stride == 0 || start + run > stride || !n.is_multiple_of(stride) {
                return None;
            }
            Some((0..n / stride * run).map(|j| j / run * stride + start + j % run).collect())
        }
        Origin::Unpermuted { heads, .. } => {
            if heads == 0 || !n.is_multiple_of(2) || !(n / 2).is_multiple_of(heads) {
                return None;
            }
            let (dim, half) = (n / heads, n / heads / 2);
            let stored = |head: usize, r: usize| head * dim + 2 * (r % half) + r / half;
            Some((0..n).map(|r| stored(r / dim, r % dim)).collect())
        }
        Origin::Unstacked { parts, heads, .. } => {
            if parts == 0 || heads == 0 || !n.is_multiple_of(parts) || !(n / parts).is_multiple_of(heads) {
                return None;
            }
            let dim = n / parts / heads;
            let stored = |head: usize, part: usize| (part * heads + head) * dim;
            Some((0..n).map(|r| stored(r / dim / parts, r / dim % parts) + r % dim).collect())
        }
        _ => None,
    }
}

/// The rows that `origin`, a part of a stack, names in `raw`; `None` if they are not there.
fn of_stack<'a>(
    raw: &RawTensor<'a>,
    origin: &Origin,
    want: &[usize],
) -> rillm_quant::Result<Option<RawTensor<'a>>> {
    let (Origin::Stacked { index: [i, count], start, step, of, lie, .. }, Some(&rows)) =
        (origin, want.first())
    else {
        return Ok(None);
    };
    let last = rows.checked_sub(1).and_then(|n| n.checked_mul(*step)).and_then(|n| n.checked_add(*start));
    if i >= count || last.is_none_or(|last| last >= *of) || raw.shape.first() != Some(count) {
        return Ok(None);
    }
    let at = |row: usize| start + row * step;
    match (raw.shape[..].len(), lie) {
        (2, _) => {
            let vector = raw.rows_range(*i..i + 1).decode()?;
            let values: Vec<f32> = (0..rows).map(|r| vector[at(r)]).collect();
            RawTensor::from_f32(vec![rows], &values).map(Some)
        }
        (3, _) if raw.shape[if *lie == Lie::Rows { 1 } else { 2 }] != *of => Ok(None),
        (3, Lie::Rows) if *step == 1 => Ok(Some(raw.rows_range(i * of + start..i * of + start + rows))),
        (3, Lie::Rows) => Ok(Some(raw.take_rows((0..rows).map(|r| i * of + at(r))))),
        (3, Lie::Columns) => {
            let inp = raw.shape[1];
            let turned = crate::mla::transposed(&raw.rows_range(i * inp..(i + 1) * inp))?;
            Ok(Some(turned.take_rows((0..rows).map(at))))
        }
        _ => Ok(None),
    }
}

/// A source that borrows another.
impl<S: WeightSource + ?Sized> WeightSource for &S {
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        (**self).get(name)
    }
    fn get_shaped(&self, name: &str, want: &[usize]) -> Result<Option<RawTensor<'_>>> {
        (**self).get_shaped(name, want)
    }
    fn stored_name(&self, name: &str) -> String {
        (**self).stored_name(name)
    }
    fn release(&self, bytes: &[u8]) {
        (**self).release(bytes);
    }
    fn names(&self) -> Vec<String> {
        (**self).names()
    }
}
