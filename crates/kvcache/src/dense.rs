//! The cache of ordinary attention: every position is kept, in order.

use std::ops::Range;

use rillm_tensor_core::{AttnSpan, Backend, Keys, KvLayout};

use crate::{Error, KvCache, Result, grown};

/// Keys and values of all positions; the buffer grows with the sequence.
#[derive(Debug)]
pub struct DenseKvCache<B: Backend> {
    buffers: Option<(B::Tensor, B::Tensor)>,
    capacity: usize,
    len: usize,
}

impl<B: Backend> DenseKvCache<B> {
    /// An empty cache. Nothing is allocated before the first append.
    pub fn new() -> Self {
        Self { buffers: None, capacity: 0, len: 0 }
    }

    fn grow(&mut self, be: &B, need: usize, [k_dim, v_dim]: [usize; 2]) -> Result<()> {
        let capacity = grown(need);
        let (mut k, mut v) = (be.kv_buffer(capacity, k_dim)?, be.kv_buffer(capacity, v_dim)?);
        if let Some((old_k, old_v)) = &self.buffers {
            be.write_rows(&mut k, 0, old_k, 0..self.len)?;
            be.write_rows(&mut v, 0, old_v, 0..self.len)?;
        }
        self.buffers = Some((k, v));
        self.capacity = capacity;
        Ok(())
    }
}

impl<B: Backend> Default for DenseKvCache<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> KvCache<B> for DenseKvCache<B> {
    fn len(&self) -> usize {
        self.len
    }

    fn append(&mut self, be: &B, k: Keys<'_, B::Tensor>, v: &B::Tensor, rows: Range<usize>) -> Result<()> {
        let end = self.len + rows.len();
        if end > self.capacity || self.buffers.is_none() {
            self.grow(be, end, [be.shape(k.x)[1], be.shape(v)[1]])?;
        }
        if let Some((keys, values)) = &mut self.buffers {
            be.write_keys(keys, self.len, k, rows.clone())?;
            be.write_rows(values, self.len, v, rows)?;
        }
        self.len = end;
        Ok(())
    }

    fn view(&self, rows: Range<usize>) -> Option<AttnSpan<'_, B::Tensor>> {
        let (k, v) = self.buffers.as_ref()?;
        let layout = KvLayout { len: self.len, keep: 0, ring: self.capacity };
        Some(AttnSpan { rows, k, v, layout, sink: 0, window: None })
    }

    fn check_truncate(&self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::TooShort { len, have: self.len });
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        KvCache::<B>::check_truncate(self, len)?;
        self.len = len;
        Ok(())
    }

    fn bytes(&self, be: &B) -> usize {
        self.buffers.as_ref().map_or(0, |(k, v)| be.tensor_bytes(k) + be.tensor_bytes(v))
    }
}
