//! The cache of sliding-window attention: a ring that keeps the latest positions, and optionally the first ones.

use std::ops::Range;

use rillm_tensor_core::{AttnSpan, Backend, Keys, KvLayout};

use crate::{Error, KvCache, Result, grown};

/// Keys and values of the first `keep` positions and of the latest ones: at least as many as `window` needs.
///
/// The ring has room for the positions that a row sees before itself and for the rows of the largest append so
/// far, so that each row of a chunk sees its whole window, nothing is ever moved into order, and the latest
/// append can always be taken back.
#[derive(Debug)]
pub struct RotatingKvCache<B: Backend> {
    buffers: Option<(B::Tensor, B::Tensor)>,
    /// Latest positions that a row sees, itself included, besides the first `keep`.
    window: usize,
    keep: usize,
    ring: usize,
    /// The first position past `keep` that was not overwritten.
    oldest: usize,
    len: usize,
}

impl<B: Backend> RotatingKvCache<B> {
    /// An empty cache for attention over the latest `window` positions.
    pub fn new(window: usize) -> Self {
        Self { buffers: None, window: window.max(1), keep: 0, ring: 0, oldest: 0, len: 0 }
    }

    /// An empty cache for the first `keep` positions and the latest `size - keep`: mlx-lm's `max_kv_size`.
    pub fn with_keep(size: usize, keep: usize) -> Self {
        let keep = keep.min(size.saturating_sub(1));
        Self { keep, oldest: keep, ..Self::new(size - keep) }
    }

    /// The first position past `keep` that a row at position `p` sees.
    fn first_seen(&self, p: usize) -> usize {
        (p + 1).saturating_sub(self.window).max(self.keep)
    }

    fn layout(&self) -> KvLayout {
        KvLayout { len: self.len, keep: self.keep, ring: self.ring }
    }

    /// Moves what is stored into buffers with a ring of at least `need` slots.
    fn grow(&mut self, be: &B, need: usize, [k_dim, v_dim]: [usize; 2]) -> Result<()> {
        let ring = if need >= self.window { need } else { grown(need).min(self.window) };
        let slots = self.keep + ring;
        let (mut k, mut v) = (be.kv_buffer(slots, k_dim)?, be.kv_buffer(slots, v_dim)?);
        let (from, to) = (self.layout(), KvLayout { ring, ..self.layout() });
        if let Some((old_k, old_v)) = &self.buffers {
            let first = self.first_seen(self.len).max(self.oldest).min(self.len);
            for live in [0..self.keep.min(self.len), first..self.len] {
                for (first, slot, n) in runs(from, live) {
                    for (p, to_slot, n) in runs(to, first..first + n) {
                        let src = slot + p - first..slot + p - first + n;
                        be.write_rows(&mut k, to_slot, old_k, src.clone())?;
                        be.write_rows(&mut v, to_slot, old_v, src)?;
                    }
                }
            }
        }
        self.buffers = Some((k, v));
        self.ring = ring;
        Ok(())
    }
}

/// The runs of `positions` that lie in consecutive slots: `(first position, its slot, length)`.
fn runs(layout: KvLayout, positions: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut p = positions.start;
    std::iter::from_fn(move || {
        if p >= positions.end {
            return None;
        }
        let (first, slot) = (p, layout.slot(p));
        let end = if slot < layout.keep { layout.keep } else { layout.keep + layout.ring };
        let n = (positions.end - p).min(end - slot);
        p += n;
        Some((first, slot, n))
    })
}

impl<B: Backend> KvCache<B> for RotatingKvCache<B> {
    fn len(&self) -> usize {
        self.len
    }

    fn append(&mut self, be: &B, k: Keys<'_, B::Tensor>, v: &B::Tensor, rows: Range<usize>) -> Result<()> {
        let end = self.len + rows.len();
        let need = end.saturating_sub(self.first_seen(self.len).max(self.oldest)).max(1);
        if need > self.ring || self.buffers.is_none() {
            self.grow(be, need, [be.shape(k.x)[1], be.shape(v)[1]])?;
        }
        if let Some((keys, values)) = &mut self.buffers {
            let layout = KvLayout { len: self.len, keep: self.keep, ring: self.ring };
            for (p, slot, n) in runs(layout, self.len..end) {
                let at = rows.start + p - self.len;
                be.write_keys(keys, slot, k, at..at + n)?;
                be.write_rows(values, slot, v, at..at + n)?;
            }
        }
        self.len = end;
        self.oldest = self.oldest.max(end.saturating_sub(self.ring));
        Ok(())
    }

    fn view(&self, rows: Range<usize>) -> Option<AttnSpan<'_, B::Tensor>> {
        let (k, v) = self.buffers.as_ref()?;
        Some(AttnSpan { rows, k, v, layout: self.layout(), sink: self.keep, window: Some(self.window) })
    }

    fn check_truncate(&self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::TooShort { len, have: self.len });
        }
        // The next row will sit at position `len`; what lies below `keep` is always there.
        if len > self.keep && self.first_seen(len) < self.oldest {
            return Err(Error::Overwritten { len, oldest: self.oldest, window: self.window });
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        KvCache::<B>::check_truncate(self, len)?;
        self.len = len;
        if len <= self.keep {
            self.oldest = self.keep;
        }
        Ok(())
    }

    fn bytes(&self, be: &B) -> usize {
        self.buffers.as_ref().map_or(0, |(k, v)| be.tensor_bytes(k) + be.tensor_bytes(v))
    }
}
