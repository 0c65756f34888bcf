//! What can go wrong between a prompt and its answer; not what can go wrong in a layer.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why text or tokens could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text was asked of a checkpoint that has no tokenizer.
    #[error("text needs a tokenizer: {} is missing", path.display())]
    MissingTokenizer {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// A tokenizer file that can't be read.
    #[error("{}: {message}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A GGUF vocabulary that can't be used.
    #[error("GGUF vocabulary: {message}")]
    GgufVocab {
        /// What is wrong with it.
        message: String,
    },
    /// A GGUF vocabulary that splits text in an unknown way.
    #[error("unknown tokenizer.ggml.pre {pre:?}: known are {known}")]
    UnknownPreTokenizer {
        /// The value of the key.
        pre: String,
        /// The known values, separated by commas.
        known: String,
    },
    /// Text that can't be tokenized, or tokens that can't be decoded.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// What the tokenizer says.
        message: String,
    },
    /// A chat was asked of a model that has no template for it.
    #[error("no chat template: {detail}")]
    MissingTemplate {
        /// Where it was looked for.
        detail: String,
    },
    /// A chat template that can't be read, or that refuses the conversation.
    #[error("chat template {name}{}: {message}", line.map(|l| format!(" line {l}")).unwrap_or_default())]
    Template {
        /// The template's name.
        name: String,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong, or the template's own words.
        message: String,
    },
}
