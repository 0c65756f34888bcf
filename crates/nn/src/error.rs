//! Why a checkpoint could not be read or a layer not be built from it.

use std::fmt::Write;
use std::path::PathBuf;

/// Result of reading weights or running a layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be read or a layer not be built from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model has a parameter that the checkpoint lacks.
    #[error("the checkpoint has no parameter {name}")]
    MissingWeight {
        /// Full name.
        name: String,
    },
    /// A parameter has another shape than the model's configuration implies.
    #[error("{name}: the configuration wants shape {want:?}, the checkpoint has {got:?}")]
    WeightShape {
        /// Full name.
        name: String,
        /// Shape in the checkpoint.
        got: Vec<usize>,
        /// Shape the layer needs.
        want: Vec<usize>,
    },
    /// The checkpoint has parameters that no layer asked for.
    #[error("the model does not use {} parameters of the checkpoint: {}", names.len(), first_names(names))]
    UnexpectedWeights {
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] rillm_tensor_core::Error),
    /// A cache could not do what a layer asked.
    #[error(transparent)]
    Cache(#[from] rillm_kvcache::Error),
    /// The bytes of a parameter are not what its format takes.
    #[error("{name}: {source}")]
    Quant {
        /// Full name.
        name: String,
        /// What is wrong with them.
        source: rillm_quant::Error,
    },
    /// A file could not be opened, mapped or listed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },

    /// A folder holds no weights.
    #[error("{}: no *.safetensors file in this folder", path.display())]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// The index of a sharded checkpoint names a file that is not there.
    #[error("{}: there is no file {shard:?} beside it, but the index names it for {tensor}", path.display())]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The file it names.
        shard: String,
        /// A tensor that should be in it.
        tensor: String,
    },
    /// The index of a sharded checkpoint names a file outside its folder.
    #[error("{}: shard {shard:?} is not a plain file name", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The file it names.
        shard: String,
    },
    /// The index names a tensor that its shard does not hold.
    #[error("{}: {shard:?} does not hold {tensor}, but the index says so", path.display())]
    MissingInShard {
        /// The index.
        path: PathBuf,
        /// The file it names.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A file ends before what its header announces.
    #[error("{}: truncated in {what}: wanted {want} bytes, got {got}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that is cut off: a tensor, a key, the header.
        what: String,
        /// Bytes the file would need, from its start.
        want: u64,
        /// Bytes it has.
        got: u64,
    },
    /// A safetensors header is longer than allowed.
    #[error("{}: a header of {got} bytes, allowed are {max}", path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
        /// Length the file claims.
        got: u64,
    },
    /// A header or index is not the JSON that the format defines.
    #[error("{}: not a valid {what}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// `"header"`, `"index"`, ...
        what: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// A tensor's byte range ends before it starts, leaves a hole, or overlaps the one before.
    #[error("{}: {tensor}: bytes {start}..{end}, wanted a range that starts at {want}", path.display())]
    Offsets {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its first byte, from the start of the data.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// Where the tensor before it ends.
        want: u64,
    },
    /// Two tensors share bytes.
    #[error("{}: {tensor} overlaps {other}", path.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The tensor that starts before it.
        other: String,
    },
    /// A file goes on after its last tensor.
    #[error("{}: {got} bytes follow the last tensor", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Their number.
        got: u64,
    },
    /// A tensor's byte range is not as long as its shape and type.
    #[error("{}: {tensor}: shape {shape:?} of {dtype} takes {want} bytes, got {got}", path.display())]
    ByteLength {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type as the file names it.
        dtype: Box<str>,
        /// Bytes the shape takes.
        want: u64,
        /// Bytes of its range.
        got: u64,
    },
    /// The product of a tensor's dimensions does not fit in memory.
    #[error("{}: {tensor}: shape {shape:?} overflows", path.display())]
    ShapeOverflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// The same name occurs twice.
    #[error("{}: {name} occurs twice", path.display())]
    Duplicate {
        /// The file in which it occurs for the second time.
        path: PathBuf,
        /// The tensor or key.
        name: String,
    },
    /// A tensor has a type that weights can't have, or that is not supported.
    #[error("{}: {tensor}: type {dtype} is not supported", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type as the file names it.
        dtype: String,
    },

    /// A file that should be GGUF is not.
    #[error("{}: not a GGUF file: it starts with {got:02x?}, not \"GGUF\"", path.display())]
    GgufMagic {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        got: [u8; 4],
    },
    /// A GGUF file of a version that can't be read.
    #[error("{}: GGUF version {got}, supported are 2 and 3 in little endian", path.display())]
    GgufVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u32,
    },
    /// A GGUF value of an unknown type.
    #[error("{}: {key}: no value type {got} in GGUF", path.display())]
    GgufType {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: String,
        /// The type's number.
        got: u32,
    },
    /// GGUF text that is not UTF-8.
    #[error("{}: {what} is not UTF-8", path.display())]
    GgufText {
        /// The file.
        path: PathBuf,
        /// Where the text is.
        what: String,
    },
    /// Something in a GGUF file is outside what the format allows.
    #[error("{}: {what}: wanted {want}, got {got}", path.display())]
    GgufValue {
        /// The file.
        path: PathBuf,
        /// A key or a tensor's field.
        what: String,
        /// What the format allows.
        want: &'static str,
        /// What is there.
        got: u64,
    },
    /// A GGUF file lacks a metadata key.
    #[error("{}: no metadata key {key}", path.display())]
    MissingMetadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A metadata key of a GGUF file has a value of another type than wanted.
    #[error("{}: metadata key {key}: wanted {want}, got {got}", path.display())]
    MetadataType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type wanted.
        want: &'static str,
        /// The value or its type.
        got: String,
    },

    /// `quantization` in config.json is not of the form that MLX writes.
    #[error("config.json: quantization of {name}: wanted {want}, got {got}")]
    QuantizationConfig {
        /// Path of the module, or `"the model"` for the defaults.
        name: String,
        /// What the format allows.
        want: &'static str,
        /// What is there.
        got: String,
    },
    /// An unknown quantization mode.
    #[error("config.json: quantization of {name}: no mode {mode:?} (affine, mxfp4, mxfp8, nvfp4)")]
    QuantizationMode {
        /// Path of the module, or `"the model"` for the defaults.
        name: String,
        /// The mode.
        mode: String,
    },
    /// A checkpoint that another library quantized, in a way that is not supported.
    #[error(
        "config.json: checkpoints quantized with {method} are not supported (awq, bitnet, compressed-tensors, fbgemm_fp8, fp8, gptq and modelopt are)"
    )]
    QuantizationMethod {
        /// `quant_method`.
        method: String,
    },
    /// An option of another library's quantization that is malformed or not supported.
    #[error("config.json: quantization_config of {method}: {key}: wanted {want}, got {got}")]
    QuantizationOption {
        /// `quant_method`, and where in its configuration the option is.
        method: String,
        /// The option.
        key: String,
        /// What is supported.
        want: &'static str,
        /// What is there.
        got: String,
    },
    /// A tensor has another type than its format wants.
    #[error("{name}: the format wants {want}, the checkpoint has {got}")]
    WeightType {
        /// Full name.
        name: String,
        /// Type in the checkpoint.
        got: String,
        /// Types that it can have.
        want: String,
    },
    /// A tensor has values that its format does not allow.
    #[error("{name}: wanted {want}, got {got}")]
    WeightValue {
        /// Full name.
        name: String,
        /// What the format allows.
        want: String,
        /// What is there.
        got: String,
    },
    /// A quantized matrix whose codes, scales and biases do not belong together.
    #[error("{name}: codes {codes:?}, scales {scales:?} and biases {biases:?} are no {wanted}")]
    QuantizationShape {
        /// Full name of the matrix.
        name: String,
        /// Shape of the packed codes.
        codes: Vec<usize>,
        /// Shape of the scales.
        scales: Vec<usize>,
        /// Shape of the biases, if there are any.
        biases: Option<Vec<usize>>,
        /// What they should be, e.g. a format and a shape.
        wanted: Box<str>,
    },
}

/// The first few of a list of names that may be thousands.
fn first_names(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        // Writing to a String does not fail.
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}
