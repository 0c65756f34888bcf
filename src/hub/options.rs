//! Where the hub and its cache are, and as whom to ask: explicit values, filled from the environment on request.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How far a file's download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadProgress<'a> {
    /// Name in the repository.
    pub file: &'a str,
    /// Bytes that are in the cache, those of an earlier attempt included.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Called when a file's download starts, after each piece of it, and with `done == total` at its end; not called
/// for files that are in the cache.
pub type ProgressFn = Arc<dyn Fn(DownloadProgress<'_>) + Send + Sync>;

/// How [`snapshot`](super::snapshot) finds and asks the hub.
#[derive(Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// The cache folder, by default `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// The hub's address, by default `https://huggingface.co`.
    pub endpoint: String,
    /// Sent to `endpoint` and to no other host.
    pub token: Option<String>,
    /// Branch, tag or commit for names without `@revision`, by default `main`.
    pub revision: String,
    /// PEM file of the only certificates to trust for https, instead of Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// Use the cache only.
    pub offline: bool,
    /// How long name resolution and connecting may take, each; by default 5 s.
    pub connect_timeout: Duration,
    /// Told how downloads go.
    pub progress: Option<ProgressFn>,
}

impl HubOptions {
    /// Options from the variables that Python's `huggingface_hub` reads: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH` (and the token that a login left there), `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
    ///
    /// `SSL_CERT_FILE` is honoured, for networks with their own certificate, and proxies are taken from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// [`from_env`](Self::from_env) with another environment: `get` gives a variable's value.
    #[must_use]
    pub fn from_vars(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| {
            let value = get(name)?.into_string().ok()?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let user = std::env::home_dir().unwrap_or_default();
        let path = |name: &str| get(name).filter(|value| !value.is_empty()).map(|value| expand(value, &user));
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache")).join("huggingface")
        });
        let token = text("HF_TOKEN").or_else(|| {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            let token = std::fs::read_to_string(file).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        });
        let yes = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        Self {
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            revision: "main".to_owned(),
            ca_file: path("SSL_CERT_FILE"),
            offline: text("HF_HUB_OFFLINE").is_some_and(yes),
            connect_timeout: Duration::from_secs(5),
            progress: None,
        }
    }

    pub(super) fn report(&self, file: &str, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            progress(DownloadProgress { file, done, total });
        }
    }
}

impl fmt::Debug for HubOptions {
    /// Everything but the token itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("revision", &self.revision)
            .field("ca_file", &self.ca_file)
            .field("offline", &self.offline)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// `~/x` as a shell would have it, because `export HF_HOME="~/x"` reaches us as it is.
fn expand(value: OsString, user: &Path) -> PathBuf {
    match Path::new(&value).strip_prefix("~") {
        Ok(rest) => user.join(rest),
        Err(_) => PathBuf::from(value),
    }
}
