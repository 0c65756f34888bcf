//! What can go wrong between a prompt and its answer; not what can go wrong in a layer.

use std::path::PathBuf;
use std::sync::Arc;

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

    /// Text was asked of a model whose tokenizer or template could not be read when it was loaded.
    #[error(transparent)]
    Unavailable(Arc<Error>),

    /// A logit is NaN or plus infinity: the model or its weights are broken.
    #[error("the logit of token {index} is not a number")]
    NanLogits {
        /// The token.
        index: usize,
    },
    /// No token is left to pick.
    #[error("no token of a vocabulary of {vocab} can be picked")]
    NoCandidates {
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// An option outside its range.
    #[error("{name}: wanted {want}, got {got}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its range.
        want: &'static str,
        /// The value.
        got: String,
    },

    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt longer than the context.
    #[error("a prompt of {tokens} tokens does not fit a context of {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A sequence would outgrow the context.
    #[error("{tokens} tokens do not fit a context of {context}")]
    ContextFull {
        /// Tokens the sequence would have.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A number that [`Session::open`](crate::Session::open) did not give.
    #[error("there is no sequence {number}")]
    NoSuchSequence {
        /// The number.
        number: usize,
    },
    /// One step was given two pieces of work for a sequence.
    #[error("sequence {number} occurs twice in one step")]
    RepeatedSequence {
        /// The sequence.
        number: usize,
    },
    /// The thread that a session lives on could not be started, or a panic has ended it.
    #[error("the session's thread: {message}")]
    SessionThread {
        /// What the system or the panic said.
        message: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] rillm_nn::Error),
}
