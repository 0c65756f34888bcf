//! Why bytes could not be read as the format they claim.

/// Result of reading or writing encoded weights.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why bytes could not be read or written in a format.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part of a tensor has the wrong number of bytes.
    #[error("{format}: {part} of a tensor of shape {shape:?} takes {want} bytes, got {got}")]
    Size {
        /// The format, as [`Format`](crate::Format) displays itself.
        format: String,
        /// `"codes"`, `"scales"` or `"biases"`.
        part: &'static str,
        /// Logical shape, outermost first.
        shape: Vec<usize>,
        /// Bytes that shape takes.
        want: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// The last dimension does not divide into groups.
    #[error("{format}: rows of {cols} values do not divide into groups of {group}")]
    Group {
        /// The format.
        format: String,
        /// Values of a row.
        cols: usize,
        /// Values of a group.
        group: usize,
    },
    /// The product of the dimensions does not fit in memory.
    #[error("shape {shape:?} overflows")]
    Overflow {
        /// The shape.
        shape: Vec<usize>,
    },
    /// No such width or group size.
    #[error(
        "affine quantization with {bits} bits and groups of {group} does not exist (bits 2, 3, 4, 5, 6, 8; groups 32, 64, 128)"
    )]
    Affine {
        /// Bits asked for.
        bits: u32,
        /// Group size asked for.
        group: usize,
    },
    /// A slice has the wrong number of elements.
    #[error("{what} takes {want} elements, got {got}")]
    Length {
        /// What the slice is for.
        what: &'static str,
        /// Elements it must have.
        want: usize,
        /// Elements it has.
        got: usize,
    },
    /// No such row.
    #[error("row {row} of a tensor of {rows} rows")]
    Row {
        /// Row asked for.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// The format does not have what was asked of it.
    #[error("{format} has no {what}")]
    Unsupported {
        /// The format.
        format: String,
        /// `"encoder"`, `"integer codes"`, `"scales of 16 bits"` or `"sub-scales"`.
        what: &'static str,
    },
}
