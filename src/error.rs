//! Why a model could not be loaded or run: the errors of all layers, and those of the facade.

use std::path::PathBuf;

/// Result of loading or running a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is neither a path here nor a repository of the hub.
    #[error("{name}: no such folder or file{}", if cfg!(feature = "hub") { "" } else { " (and rillm was built without the hub)" })]
    NotFound {
        /// The name.
        name: String,
    },
    /// A file of the checkpoint that can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A JSON file of the checkpoint that is none.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// The configuration does not describe a model, or the weights do not fit it.
    #[error("{}: {source}", path.display())]
    Model {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong; boxed, to keep results small.
        source: Box<rillm_models::Error>,
    },
    /// The checkpoint's files.
    #[error(transparent)]
    Weights(#[from] rillm_nn::Error),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] rillm_tensor_core::Error),
    /// Tokens or text.
    #[error(transparent)]
    Generate(#[from] rillm_generate::Error),
}
