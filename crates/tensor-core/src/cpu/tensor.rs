//! Activations and key buffers of the CPU backend, and the pool that activations' memory returns to.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;

use super::arena::{Arena, Piece};
use super::rows::{Rows, RowsMut};
use crate::{Error, Result};

/// Buffers that wait for their next use. More than a step needs at once would only hold memory.
const FREE: usize = 48;

/// Memory of activations between uses, so that steady decoding never calls the allocator.
pub(super) struct Pool {
    memory: Arena,
    /// The longest unused first.
    free: Mutex<Vec<Arc<Piece>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// None yet, in `memory`.
    pub(super) fn new(memory: Arena) -> Self {
        Self { memory, free: Mutex::default() }
    }

    /// At least `len` values with unspecified contents: the smallest that fits, unless it is far too large.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Result<Buf> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let room = |b: &Arc<Piece>| b.values::<f32>().len();
        let fits = |b: &Arc<Piece>| room(b) >= len && room(b) <= 2 * len + 4096;
        let best = free.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| room(b));
        let data = match best.map(|(i, _)| i) {
            Some(i) => free.remove(i),
            None => {
                let bytes = len.saturating_add(256).saturating_mul(size_of::<f32>());
                Arc::new(self.memory.take(bytes, "activations")?)
            }
        };
        Ok(Buf { data: Some(data), pool: Arc::clone(self) })
    }

    fn put(&self, data: Arc<Piece>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.capacity() == 0 {
            free.reserve_exact(FREE);
        }
        if free.len() == FREE {
            free.remove(0);
        }
        free.push(data);
    }
}

/// A reference-counted buffer; the last owner returns it to its pool.
#[derive(Clone)]
pub(super) struct Buf {
    /// `None` only while it is dropped.
    data: Option<Arc<Piece>>,
    pool: Arc<Pool>,
}

impl Buf {
    fn values(&self) -> &[f32] {
        self.data.as_ref().map_or(&[], |d| d.values())
    }
    /// `None` if the buffer is shared.
    fn values_mut(&mut self) -> Option<&mut [f32]> {
        self.data.as_mut().and_then(Arc::get_mut).map(Piece::values_mut)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Some(mut data) = self.data.take()
            && Arc::get_mut(&mut data).is_some()
        {
            self.pool.put(data);
        }
    }
}

/// Values behind a tensor.
#[derive(Clone)]
enum Data {
    /// Activations.
    Pooled(Buf),
    /// Keys or values in `f32` (exact) or `f16`.
    Single(Arc<Piece>),
    Half(Arc<Piece>),
}

/// Values of keys or values, for kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvData<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
}

/// A matrix of activations, or a buffer of keys or values. Rows are contiguous; a view of some columns has a stride.
#[derive(Clone)]
pub struct CpuTensor {
    data: Data,
    offset: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    stride: usize,
}

impl fmt::Debug for CpuTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuTensor[{}, {}]", self.rows, self.cols)
    }
}

impl CpuTensor {
    /// Activations `[rows, cols]` over `buf`, which has room for them.
    pub(super) fn new(buf: Buf, rows: usize, cols: usize) -> Self {
        Self { data: Data::Pooled(buf), offset: 0, rows, cols, stride: cols }
    }

    /// A zeroed key buffer in single precision.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn single(memory: &Arena, rows: usize, cols: usize) -> Result<Self> {
        let data = Data::Single(Arc::new(keys::<f32>(memory, rows, cols)?));
        Ok(Self { data, offset: 0, rows, cols, stride: cols })
    }

    /// A zeroed key buffer in half precision.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn half(memory: &Arena, rows: usize, cols: usize) -> Result<Self> {
        let data = Data::Half(Arc::new(keys::<f16>(memory, rows, cols)?));
        Ok(Self { data, offset: 0, rows, cols, stride: cols })
    }

    /// The columns `[at, at + cols)`, sharing memory.
    pub(super) fn columns(&self, at: usize, cols: usize) -> Self {
        Self { data: self.data.clone(), offset: self.offset + at, cols, ..*self }
    }

    /// Bytes of the whole buffer.
    pub(super) fn bytes(&self) -> usize {
        match &self.data {
            Data::Pooled(b) => 4 * b.values().len(),
            Data::Single(d) | Data::Half(d) => d.bytes().len(),
        }
    }

    /// The matrix, if it is one of `f32`.
    pub(super) fn view(&self) -> Option<Rows<'_>> {
        let values = match &self.data {
            Data::Pooled(b) => b.values(),
            Data::Single(d) => d.values(),
            Data::Half(_) => return None,
        };
        let data = values.get(self.offset..)?;
        Some(Rows { data, rows: self.rows, cols: self.cols, stride: self.stride })
    }

    /// The activations, if nothing else shares them and rows follow each other without gaps.
    pub(super) fn unique(&mut self) -> Option<&mut [f32]> {
        let (offset, len) = (self.offset, self.rows * self.cols);
        match &mut self.data {
            Data::Pooled(b) if self.stride == self.cols => b.values_mut()?.get_mut(offset..offset + len),
            _ => None,
        }
    }

    /// The activations to write, if nothing else shares them.
    pub(super) fn view_mut(&mut self) -> Option<RowsMut<'_>> {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        let data = match &mut self.data {
            Data::Pooled(b) => b.values_mut()?.get_mut(self.offset..)?,
            _ => return None,
        };
        Some(RowsMut { data, rows, cols, stride })
    }

    /// Keys or values, if this is a buffer of them.
    pub(super) fn kv(&self) -> Option<KvData<'_>> {
        match &self.data {
            Data::Single(d) => Some(KvData::F32(d.values())),
            Data::Half(d) => Some(KvData::F16(d.values())),
            Data::Pooled(_) => None,
        }
    }

    /// Keys or values to write; a shared buffer is copied first.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) for the copy.
    pub(super) fn kv_mut(&mut self) -> Result<Option<KvMut<'_>>> {
        Ok(match &mut self.data {
            Data::Single(d) => Some(KvMut::F32(unshared(d)?.values_mut())),
            Data::Half(d) => Some(KvMut::F16(unshared(d)?.values_mut())),
            Data::Pooled(_) => None,
        })
    }
}

/// What the memory of caches is for.
const KEYS: &str = "keys and values";

/// `rows` times `cols` zeros of type `T`.
fn keys<T>(memory: &Arena, rows: usize, cols: usize) -> Result<Piece> {
    memory.take(rows.saturating_mul(cols).saturating_mul(size_of::<T>()), KEYS)
}

/// A piece that nobody else reads: itself, or a copy in its place.
fn unshared(piece: &mut Arc<Piece>) -> Result<&mut Piece> {
    if Arc::get_mut(piece).is_none() {
        *piece = Arc::new(piece.copy(KEYS)?);
    }
    Arc::get_mut(piece).ok_or(Error::OutOfMemory { what: KEYS, bytes: 0 })
}

/// Keys or values to write.
pub(super) enum KvMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision.
    F16(&'a mut [f16]),
}

impl<'a> KvMut<'a> {
    /// The values `range`, which exist.
    pub(super) fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&mut x[range]),
            Self::F16(x) => Self::F16(&mut x[range]),
        }
    }
}
