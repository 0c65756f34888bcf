//! Why a configuration did not become a model.

/// Result of building a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a configuration did not become a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No family of this name.
    #[error("config.json: unknown model_type {model_type:?}; known are {}", known.join(", "))]
    UnknownFamily {
        /// The name.
        model_type: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// A key is missing or has a value of another type or out of range.
    #[error("config.json: {key}: wanted {want}, got {got}")]
    Config {
        /// The key, with those of the objects around it.
        key: String,
        /// What it should be.
        want: String,
        /// The value, or `"nothing"`.
        got: String,
    },
    /// config.json or GGUF metadata is not JSON.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// Metadata of a GGUF file that stand for no configuration this library knows.
    #[error("GGUF: {key}: wanted {want}, got {got}")]
    Metadata {
        /// The key.
        key: String,
        /// What it should be.
        want: String,
        /// The value.
        got: String,
    },
    /// The weights don't fit the configuration.
    #[error(transparent)]
    Weights(#[from] rillm_nn::Error),
}
