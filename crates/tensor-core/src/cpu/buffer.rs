//! Bytes on huge pages where the system has them: buffers of their own, and pieces of an arena. Not a tensor: no shape,
//! no element type.

use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapRaw};

use crate::{Error, Result};

/// Zeroed bytes, aligned to a page; to a huge page if there are half as many. Pages are taken from the system when they
/// are first written.
#[derive(Debug)]
pub(crate) struct Buffer {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros, for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn zeroed(len: usize, what: &'static str) -> Result<Self> {
        let error = |_| Error::OutOfMemory { what, bytes: len };
        // Small ones would waste most of a huge page. An empty mapping is an error; nobody looks at the extra byte.
        let is_large = len >= HUGE / 2;
        let size = if is_large { len.saturating_add(2 * HUGE) } else { len.max(1) };
        let map = MmapMut::map_anon(size).map_err(error)?;
        // Weights are read end to end for each token: with small pages the walks of page tables show. Where the
        // system refuses, small pages it is.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = if is_large { map.as_ptr().align_offset(HUGE).min(HUGE) } else { 0 };
        Ok(Self { map, start, len })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.start..][..self.len]
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..][..self.len]
    }

    /// The whole floats in it.
    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: all bits are floats. The bytes start at a page, so nothing is cut off in front.
        unsafe { self.bytes().align_to().1 }
    }

    /// The whole floats in it, to be written.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`.
        unsafe { self.bytes_mut().align_to_mut().1 }
    }
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes that an arena takes from the system at a time, unless one piece is larger. Untouched, they cost nothing.
const CHUNK: usize = 64 << 20;
/// Alignment of a piece: two cache lines, which are fetched together.
const ALIGN: usize = 128;

/// Memory for what stays: pieces follow each other without gaps, so that matrices of any size share huge pages.
/// A chunk goes back to the system with the last of its pieces.
#[derive(Debug, Default)]
pub(crate) struct Arena(Mutex<Option<Chunk>>);

/// A stretch of memory, used up to `used`.
#[derive(Debug)]
struct Chunk {
    map: Arc<MmapRaw>,
    used: usize,
}

/// Bytes of an arena that nobody else has.
#[derive(Debug)]
pub(crate) struct Piece {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Arena {
    /// `len` zeros, for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn take(&self, len: usize, what: &'static str) -> Result<Piece> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chunk = match open.take().filter(|c| c.map.len() - c.used >= len) {
            Some(chunk) => chunk,
            None => {
                let error = |_| Error::OutOfMemory { what, bytes: len };
                let bytes = len.saturating_add(HUGE).max(CHUNK);
                let map: MmapRaw = MmapMut::map_anon(bytes).map_err(error)?.into();
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                let used = map.as_mut_ptr().align_offset(HUGE).min(HUGE);
                Chunk { map: Arc::new(map), used }
            }
        };
        let piece = Piece { map: Arc::clone(&chunk.map), start: chunk.used, len };
        let used = (chunk.used + len).next_multiple_of(ALIGN).min(chunk.map.len());
        *open = Some(Chunk { used, ..chunk });
        Ok(piece)
    }
}

impl Piece {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `take` gave this piece `len` bytes of the mapping from `start` on, initialised to zeros, and gives
        // them to no other; the mapping lives as long as the piece.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the piece is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }
}
