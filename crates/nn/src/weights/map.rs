//! The bytes of a checkpoint file, mapped into memory or owned. The only file of this crate with `unsafe` code.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::{Error, Result};

/// Read-only bytes of a file.
///
/// A mapped file must not be truncated or changed while it is in use: its bytes would change under the reader,
/// or vanish and end the process with a bus error. Checkpoints are written once and then left alone, and
/// downloads are renamed into place when they are complete, so that this does not happen in practice.
/// Embedders that can't rule it out read the file themselves and use the `from_bytes` constructors.
#[derive(Debug)]
pub enum Bytes {
    /// Mapped from a file.
    Mapped(memmap2::Mmap),
    /// In memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if meta.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        if meta.len() == 0 {
            // Some systems refuse to map nothing.
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is read-only, so nothing in this process writes through it. Other
        // processes could change the file: that is the documented condition of this type. No invariant of
        // any Rust value rests on the bytes: they are read as plain integers, each validated where it is used.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }

    /// Lets go of the pages that lie wholly in `part`, if that is mapped from this file: they are read again if
    /// somebody looks. For what was copied, so that a checkpoint and its copy are not in memory at the same time.
    pub fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            let all = map.as_ptr_range();
            let part = part.as_ptr_range();
            if part.start < all.start || part.end > all.end {
                return;
            }
            let at = |p: *const u8| p as usize - all.start as usize;
            let (start, end) = (at(part.start).next_multiple_of(PAGE), at(part.end) / PAGE * PAGE);
            if start < end {
                // SAFETY: the pages are those of a file mapped read-only: dropping them changes no byte that a
                // reader sees, the next access brings the file's bytes back.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

/// The size of a page, or a multiple of it.
#[cfg(unix)]
const PAGE: usize = if cfg!(target_arch = "x86_64") {
    1 << 12
} else if cfg!(target_vendor = "apple") {
    1 << 14
} else {
    1 << 16
};

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(m) => m,
            Self::Owned(v) => v,
        }
    }
}
