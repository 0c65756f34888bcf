//! Why an operation failed.

use rillm_quant::Format;

/// Result of a tensor operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a tensor operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operand shapes do not fit the operation.
    #[error("{op}: shape {got:?} does not fit, wanted {want:?}")]
    Shape {
        /// Operation, e.g. `"linear"`.
        op: &'static str,
        /// Shape of the operand.
        got: [usize; 2],
        /// Shape the operation requires.
        want: [usize; 2],
    },
    /// The backend has no kernel for this format.
    #[error("{op}: no kernel for {format}")]
    UnsupportedFormat {
        /// Operation.
        op: &'static str,
        /// The stored format.
        format: Format,
    },
    /// A token id lies outside the embedding table.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// Token id.
        token: u32,
        /// Rows of the table.
        vocab: usize,
    },
    /// Ids on the device were given to a backend that samples on the host.
    #[error("this backend keeps token ids on the host")]
    NoDeviceIds,
    /// A buffer could not be allocated.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the buffer is for.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// Stored bytes that can't be read.
    #[error(transparent)]
    Quant(#[from] rillm_quant::Error),
    /// A thread could not be started.
    #[error("thread pool: {0}")]
    Threads(#[from] std::io::Error),
    /// Something that only one backend can report.
    #[error("{backend}: {message}")]
    Backend {
        /// The backend.
        backend: &'static str,
        /// Its message.
        message: String,
    },
}
