//! How fast this machine reads memory with the threads of a [`Cpu`]: the floor under the time of a token.

use std::hint::black_box;
use std::time::Instant;

use super::Cpu;
use super::arena::{Arena, Piece};
use crate::Result;

/// Bytes that a thread reads at a time: the size of a few row blocks of a matrix.
const CHUNK: usize = 1 << 18;

/// Memory to read, written once so that it is real.
#[derive(Debug)]
pub struct Bandwidth {
    cpu: Cpu,
    buffer: Piece,
}

impl Cpu {
    /// Prepares to measure reading with a buffer of `bytes`, best as large as the weights of interest: what fits
    /// caches is read faster.
    ///
    /// # Errors
    /// No memory.
    pub fn bandwidth(&self, bytes: usize) -> Result<Bandwidth> {
        let mut buffer = Arena::default().take(bytes.max(CHUNK), "measuring bandwidth")?;
        buffer.bytes_mut().fill(1);
        Ok(Bandwidth { cpu: self.clone(), buffer })
    }
}

impl Bandwidth {
    /// Reads the buffer once and returns bytes a second.
    pub fn pass(&self) -> f64 {
        let (bytes, inner) = (self.buffer.bytes(), &self.cpu.0);
        let started = Instant::now();
        inner.threads.run(bytes.len().div_ceil(CHUNK), &|i| {
            let chunk = &bytes[i * CHUNK..bytes.len().min((i + 1) * CHUNK)];
            black_box((inner.kernels.read)(chunk));
        });
        bytes.len() as f64 / started.elapsed().as_secs_f64()
    }
}
