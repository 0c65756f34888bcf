//! Reading a GGUF file front to back, each step checked against the end of the file. Knows no structure.

use std::path::Path;

use crate::{Error, Result};

/// A position in a file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// An error unless `len` more bytes are there for `what`.
    pub(super) fn check(&self, len: u64, what: &str) -> Result<()> {
        self.check_end((self.position as u64).saturating_add(len), what)
    }

    /// An error unless the file has `end` bytes.
    pub(super) fn check_end(&self, end: u64, what: &str) -> Result<()> {
        let got = self.bytes.len() as u64;
        if end <= got {
            return Ok(());
        }
        Err(Error::Truncated { path: self.path.to_owned(), what: what.to_owned(), want: end, got })
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        self.check(len, what)?;
        // It fits: the file, which is in memory, has that many bytes.
        let bytes = &self.bytes[self.position..][..len as usize];
        self.position += bytes.len();
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Text with its length before it.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes)
            .map_err(|_| Error::GgufText { path: self.path.to_owned(), what: what.to_owned() })
    }

    /// The error for a number that the format does not allow.
    pub(super) fn wrong(&self, what: String, want: &'static str, got: u64) -> Error {
        Error::GgufValue { path: self.path.to_owned(), what, want, got }
    }
}
