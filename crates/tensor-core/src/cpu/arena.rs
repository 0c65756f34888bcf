//! Bytes on huge pages where the system has them, as pieces of an arena. Not a tensor: no shape, no element type.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapRaw};

use crate::{Error, Result};

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes that an arena takes from the system at a time, unless one piece is larger. Untouched, they cost nothing.
const CHUNK: usize = 64 << 20;
/// Alignment of a piece: two cache lines, which are fetched together.
const ALIGN: usize = 128;

/// Memory for matrices, caches or activations: pieces follow each other without gaps, so that those of any size share
/// huge pages. What is given back is taken again; a chunk goes back to the system with the last of its pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arena(Arc<Mutex<Vec<Chunk>>>);

/// A stretch of memory.
#[derive(Debug)]
struct Chunk {
    map: Arc<MmapRaw>,
    /// What nobody has, in order, ranges apart.
    free: Vec<Range<usize>>,
    /// Where memory begins that nobody had, and that is zeros.
    fresh: usize,
    /// All of it.
    whole: Range<usize>,
}

/// Bytes of an arena that nobody else has.
#[derive(Debug)]
pub(crate) struct Piece {
    arena: Arena,
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
        let size = len.checked_next_multiple_of(ALIGN).ok_or(Error::OutOfMemory { what, bytes: len })?;
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut piece, used) = match chunks.iter_mut().find_map(|c| c.take(size)) {
            Some((map, start, used)) => (Piece { arena: self.clone(), map, start, len }, used),
            None => {
                let mut chunk = Chunk::new(size).map_err(|_| Error::OutOfMemory { what, bytes: len })?;
                let (map, start, used) = chunk.take(size).ok_or(Error::OutOfMemory { what, bytes: len })?;
                chunks.push(chunk);
                (Piece { arena: self.clone(), map, start, len }, used)
            }
        };
        drop(chunks);
        piece.bytes_mut()[..used.min(len)].fill(0);
        Ok(piece)
    }
}

impl Chunk {
    /// A chunk with room for `size` bytes.
    fn new(size: usize) -> std::io::Result<Self> {
        let map: MmapRaw = MmapMut::map_anon(size.saturating_add(HUGE).max(CHUNK))?.into();
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let first = map.as_mut_ptr().align_offset(HUGE).min(HUGE);
        let whole = first..first + (map.len() - first) / ALIGN * ALIGN;
        Ok(Self { map: Arc::new(map), free: vec![whole.clone()], fresh: first, whole })
    }

    /// Takes `size` bytes, a multiple of [`ALIGN`]: where, and how many at its start may be other than zero.
    fn take(&mut self, size: usize) -> Option<(Arc<MmapRaw>, usize, usize)> {
        let i = self.free.iter().position(|free| free.len() >= size)?;
        let start = self.free[i].start;
        self.free[i].start += size;
        if self.free[i].is_empty() {
            self.free.remove(i);
        }
        let used = self.fresh.saturating_sub(start);
        self.fresh = self.fresh.max(start + size);
        Some((Arc::clone(&self.map), start, used))
    }

    /// Takes `piece` back.
    fn give(&mut self, piece: Range<usize>) {
        let i = self.free.partition_point(|free| free.start < piece.start);
        self.free.insert(i, piece);
        if i + 1 < self.free.len() && self.free[i].end == self.free[i + 1].start {
            self.free[i].end = self.free.remove(i + 1).end;
        }
        if i > 0 && self.free[i - 1].end == self.free[i].start {
            self.free[i - 1].end = self.free.remove(i).end;
        }
    }
}

impl Piece {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `take` gave this piece `len` bytes of the mapping from `start` on, which are initialised, and gives
        // them to no other before this one is dropped; the mapping lives as long as the piece.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the piece is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }

    /// The whole values in it.
    pub(crate) fn values<T: Plain>(&self) -> &[T] {
        // SAFETY: all bits are values. The bytes are aligned, so nothing is cut off in front.
        unsafe { self.bytes().align_to().1 }
    }

    /// The whole values in it, to be written.
    pub(crate) fn values_mut<T: Plain>(&mut self) -> &mut [T] {
        // SAFETY: as in `values`.
        unsafe { self.bytes_mut().align_to_mut().1 }
    }

    /// A piece with the same bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn copy(&self, what: &'static str) -> Result<Self> {
        let mut copy = self.arena.take(self.len, what)?;
        copy.bytes_mut().copy_from_slice(self.bytes());
        Ok(copy)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut chunks = self.arena.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(i) = chunks.iter().position(|c| Arc::ptr_eq(&c.map, &self.map)) else { return };
        let size = self.len.next_multiple_of(ALIGN);
        if size > 0 {
            chunks[i].give(self.start..self.start + size);
        }
        if chunks[i].free == [chunks[i].whole.clone()] {
            chunks.swap_remove(i);
        }
    }
}

/// Types of which all bits are values.
///
/// # Safety
/// They are.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: 16 bits of a number.
unsafe impl Plain for half::f16 {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_arena_gives_zeros_and_takes_them_back() {
        let arena = Arena::default();
        let sizes = [1000, 3, 128, 0, 5000, CHUNK + 1, 77];
        for round in 0..3 {
            let mut pieces: Vec<_> = sizes.iter().map(|&n| arena.take(n, "a test").unwrap()).collect();
            for (i, piece) in pieces.iter_mut().enumerate() {
                assert!(piece.bytes().len() == sizes[i] && piece.bytes().iter().all(|b| *b == 0), "{round}");
                piece.bytes_mut().fill(i as u8 + 1);
            }
            // Holes of all kinds.
            for i in [4, 1, 2] {
                drop(pieces.remove(i));
            }
            let again = arena.take(400, "a test").unwrap();
            assert!(again.bytes().iter().all(|b| *b == 0));
            assert_eq!(pieces[0].copy("a test").unwrap().bytes(), [1; 1000]);
            assert!(pieces[0].bytes().iter().all(|b| *b == 1) && pieces[3].bytes().iter().all(|b| *b == 7));
        }
        assert!(arena.0.lock().unwrap().is_empty(), "the system has the chunks");
    }
}
