//! The few requests of the hub's HTTP interface that a download needs; what is done with the bytes is not its
//! matter.
//!
//! Redirects are followed here, one by one: the token goes to the hub's own scheme, host and port and never to the
//! content network that large files are redirected to, and `X-Linked-Size` and `X-Linked-Etag`, the length and
//! SHA-256 of a large file, are headers of the redirect.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::name::{RepoName, is_commit, is_etag, is_safe_file};
use super::{HubError, HubOptions, Result};

const MAX_REDIRECTS: usize = 10;
/// The listing of the largest repositories is a few MiB.
const MAX_LISTING: u64 = 64 << 20;
/// A connection that brings nothing for so long is given up (and a download continued on another).
const SILENCE: Duration = Duration::from_secs(30);
/// How much longer than connecting the first answer may take.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    first_answer: Duration,
}

/// A revision's commit and files.
#[derive(Debug)]
pub(super) struct Listing {
    /// Commit hash, 40 hexadecimal digits.
    pub(super) sha: String,
    /// Names with `/` between folders; those that could leave the snapshot's folder are not among them.
    pub(super) files: BTreeSet<String>,
}

/// What the hub says of a file before it is downloaded.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// The blob's name in the cache.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
    /// In lowercase hexadecimal, for large files.
    pub(super) sha256: Option<String>,
}

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get,
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Result<Self> {
        let endpoint = options.endpoint.trim_end_matches('/').to_owned();
        let Some(origin) = Origin::of(&endpoint) else {
            return Err(HubError::Offline {
                endpoint,
                why: "it is no http:// or https:// address".to_owned(),
            });
        };
        let mut tls = TlsConfig::builder();
        if let Some(file) = &options.ca_file {
            tls = tls.root_certs(RootCerts::from(certificates(file)?.into_iter()));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .https_only(origin.https)
            .user_agent(concat!("rillm/", env!("CARGO_PKG_VERSION")))
            // Lengths and ranges are those of the files, not of their compressed forms.
            .accept_encoding("identity")
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build()
            .into();
        let first_answer = options.connect_timeout + FIRST_ANSWER;
        Ok(Self { agent, endpoint, origin, token: options.token.clone(), first_answer })
    }

    /// The commit and the files of `name`'s revision. Decides within seconds whether there is a hub.
    pub(super) fn listing(&self, name: &RepoName) -> Result<Listing> {
        #[derive(serde::Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let RepoName { id, revision, .. } = name;
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, revision.replace('/', "%2F"));
        let what = format!("{id}@{revision}");
        let response = self.get(&url, &what, Range::First)?;
        let offline = |why: String| HubError::Offline { endpoint: self.endpoint.clone(), why };
        let body = response.into_body().into_with_config().limit(MAX_LISTING).read_to_vec();
        let body = body.map_err(|error| offline(error.to_string()))?;
        // A network's login page answers 200, too.
        let info: Info = serde_json::from_slice(&body)
            .map_err(|error| offline(format!("its answer is not the hub's ({error})")))?;
        if !is_commit(&info.sha) {
            return Err(HubError::BadAnswer { what, why: format!("`{}` is no commit", info.sha) });
        }
        let files =
            info.siblings.into_iter().map(|sibling| sibling.rfilename).filter(|file| is_safe_file(file));
        Ok(Listing { sha: info.sha, files: files.collect() })
    }

    pub(super) fn file_url(&self, id: &str, commit: &str, file: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, percent_encoded(file))
    }

    /// Length and hash of the file at `url`; `what` names it in errors.
    pub(super) fn remote_file(&self, url: &str, what: &str) -> Result<RemoteFile> {
        let (mut url, mut linked_etag, mut linked_size) = (url.to_owned(), None, None);
        let bad = |why: &str| HubError::BadAnswer { what: what.to_owned(), why: why.to_owned() };
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::Head, &url, Range::From(0))?;
            let headers = response.headers();
            linked_etag = linked_etag.or_else(|| header(headers, "x-linked-etag").map(bare_etag));
            linked_size = linked_size.or_else(|| header(headers, "x-linked-size"));
            let redirect = redirect(&url, &response);
            if let Some(next) =
                redirect.as_ref().filter(|next| Origin::of(next).as_ref() == Some(&self.origin))
            {
                url.clone_from(next);
                continue;
            }
            if redirect.is_none() && !response.status().is_success() {
                return Err(self.refusal(&url, what, &response));
            }
            // Of a redirect to elsewhere these would be the redirect's own.
            let own = |name| if redirect.is_none() { header(headers, name) } else { None };
            let sha256 = linked_etag.clone().filter(|etag: &String| is_sha256(etag));
            let etag = linked_etag.or_else(|| own("etag").map(bare_etag)).filter(|etag| is_etag(etag));
            let size = linked_size.or_else(|| own("content-length")).and_then(|size| size.parse().ok());
            return Ok(RemoteFile {
                etag: etag.ok_or_else(|| bad("it has no usable ETag"))?,
                size: size.ok_or_else(|| bad("its length is not told"))?,
                sha256: sha256.map(|sha| sha.to_ascii_lowercase()),
            });
        }
        Err(bad("too many redirects"))
    }

    /// The content at `url` from byte `start` on: status 206, or 200 or 416 from a server that won't continue.
    pub(super) fn content(&self, url: &str, what: &str, start: u64) -> Result<Response<Body>> {
        self.get(url, what, Range::From(start))
    }

    fn get(&self, url: &str, what: &str, range: Range) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::Get, &url, range)?;
            match redirect(&url, &response) {
                Some(next) => url = next,
                None if response.status().is_success() || response.status() == 416 => return Ok(response),
                None => return Err(self.refusal(&url, what, &response)),
            }
        }
        Err(HubError::BadAnswer { what: what.to_owned(), why: "too many redirects".to_owned() })
    }

    /// One request and its answer.
    fn send(&self, method: Method, url: &str, range: Range) -> Result<Response<Body>> {
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        if let Some(token) = &self.token
            && Origin::of(url).as_ref() == Some(&self.origin)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let limit = match range {
            Range::First => Some(self.first_answer),
            Range::From(0) => None,
            Range::From(start) => {
                request = request.header("range", format!("bytes={start}-"));
                None
            }
        };
        request.config().timeout_global(limit).build().call().map_err(|error| match error {
            // The only header here that is not ours is the token.
            ureq::Error::Http(_) if self.token.is_some() => HubError::Unauthorized {
                what: self.endpoint.clone(),
                why: "the token has characters that can't be sent".to_owned(),
            },
            error => HubError::Offline { endpoint: host(url), why: error.to_string() },
        })
    }

    /// The error for an answer that is neither the content nor a redirect.
    fn refusal(&self, url: &str, what: &str, response: &Response<Body>) -> HubError {
        let headers = response.headers();
        let status = response.status();
        let why = header(headers, "x-error-message").unwrap_or_else(|| format!("status {status}"));
        let of_the_hub = headers.contains_key("x-error-code");
        match status.as_u16() {
            401 => HubError::Unauthorized { what: what.to_owned(), why },
            // Without the hub's code it is a proxy or a firewall that forbids.
            403 if of_the_hub => HubError::Unauthorized { what: what.to_owned(), why },
            404 => HubError::NotFound { what: what.to_owned() },
            _ => HubError::Offline { endpoint: host(url), why },
        }
    }
}

#[derive(Clone, Copy)]
enum Range {
    /// The first request of all, whole, with the time limit that decides whether there is a hub.
    First,
    /// From this byte to the end.
    From(u64),
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Self { https, host: uri.host()?.to_ascii_lowercase(), port })
    }
}

/// The certificates of a PEM file.
fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = fs::read(file).map_err(|source| HubError::io(file, source))?;
    let only_certificates = |item| if let PemItem::Certificate(one) = item { Some(one) } else { None };
    let found: Vec<_> = parse_pem(&pem).filter_map(|item| item.ok().and_then(only_certificates)).collect();
    if found.is_empty() {
        let why = io::Error::new(io::ErrorKind::InvalidData, "it has no PEM certificate to trust");
        return Err(HubError::io(file, why));
    }
    Ok(found)
}

/// Scheme and authority of `url`, for people.
fn host(url: &str) -> String {
    url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/")
}

/// Where `response`, an answer for `url`, redirects to, if it does.
fn redirect(url: &str, response: &Response<Body>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = header(response.headers(), "location")?;
    Some(if location.starts_with('/') { host(url) + &location } else { location })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// `W/"abc"` as `abc`.
fn bare_etag(etag: String) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file's name as the path of a URL (RFC 3986, unreserved characters and `/` as they are).
fn percent_encoded(file: &str) -> String {
    let mut path = String::with_capacity(file.len());
    for byte in file.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                path.push(char::from(byte))
            }
            byte => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}
