//! Bytes at page boundaries, on huge pages where the system has them. Not a tensor: no shape, no element type.

use memmap2::MmapMut;

use crate::{Error, Result};

/// Zeroed bytes, aligned to a page. Pages are taken from the system when they are first written.
#[derive(Debug)]
pub(crate) struct Buffer(MmapMut);

impl Buffer {
    /// `len` zeros, for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn zeroed(len: usize, what: &'static str) -> Result<Self> {
        let error = |_| Error::OutOfMemory { what, bytes: len };
        // An empty mapping is an error; nobody looks at the extra byte.
        let map = MmapMut::map_anon(len.max(1)).map_err(error)?;
        // Weights are read end to end for each token: with small pages the walks of page tables show. Where the
        // system refuses, small pages it is.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
