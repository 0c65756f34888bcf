//! What can go wrong between a repository's name and its files in the cache; not errors of reading a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

/// Why a snapshot could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is none that the hub could have.
    #[error(
        "`{name}` is no repository of the hub: {why}; wanted org/name, org/name/file.gguf or org/name:Q4_K_M"
    )]
    InvalidName {
        /// The name as it was given.
        name: String,
        /// The part that is wrong.
        why: &'static str,
    },
    /// The hub has no such repository, revision or file.
    #[error("the hub has no `{what}`")]
    NotFound {
        /// `org/name@revision` or `org/name/file`.
        what: String,
    },
    /// The hub wants a login, or one with more rights; it says the same of a repository that does not exist.
    #[error("no access to `{what}`: {why}; if it exists, set HF_TOKEN to a token that may read it")]
    Unauthorized {
        /// `org/name@revision` or `org/name/file`.
        what: String,
        /// The hub's words or its status.
        why: String,
    },
    /// The hub, or the host that it sends downloads to, can't be reached from here.
    #[error("{endpoint} can't be reached: {why}")]
    Offline {
        /// Scheme and host that were tried.
        endpoint: String,
        /// The network's, proxy's or server's answer.
        why: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache lacks (a part of) the snapshot.
    #[error("`{repo}` at `{revision}` is not complete in {} and HF_HUB_OFFLINE is set", cache.display())]
    NotCached {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The folder that was looked in.
        cache: PathBuf,
    },
    /// A download ended early again and again; what arrived is kept, and the next call continues there.
    #[error("the download of `{file}` stopped at {done} of {total} bytes: {why}; try again to continue it")]
    Interrupted {
        /// Name in the repository.
        file: String,
        /// Bytes that are kept.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
        /// The last attempt's failure.
        why: String,
    },
    /// All of a file arrived and it is not the file that the hub announced; it was discarded.
    #[error("the download of `{file}` is corrupt: wanted {want}, got {got}")]
    CorruptDownload {
        /// Name in the repository.
        file: String,
        /// Length or SHA-256 by the hub.
        want: String,
        /// Length or SHA-256 of what arrived.
        got: String,
    },
    /// The repository has GGUF files only, and it is not said which one; or none fits.
    #[error("`{repo}` has GGUF files to choose from, as in {repo}/FILE.gguf: {}", files.join(", "))]
    ChooseGguf {
        /// `org/name`.
        repo: String,
        /// The GGUF files it has.
        files: Vec<String>,
    },
    /// The repository has neither safetensors nor GGUF files.
    #[error("`{repo}` has neither .safetensors nor .gguf files")]
    NoWeights {
        /// `org/name`.
        repo: String,
    },
    /// An answer that the hub does not give: a missing header, a length that can't be, an unreadable index.
    #[error("unexpected answer for {what}: {why}")]
    BadAnswer {
        /// The file or URL.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The disk is full; what arrived is kept.
    #[error("no space left for {}, which has {bytes} bytes", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// Its size when complete.
        bytes: u64,
    },
    /// The cache can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl HubError {
    /// Whether the hub could not be asked at all, so that another source is worth a try.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Offline { .. } | Self::NotCached { .. })
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
