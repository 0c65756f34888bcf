//! A hub and its content network on two local ports: the answers that a download needs, and ways to spoil them;
//! not a general web server.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit that every revision is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// From this size on, a file is redirected to the content network, with its SHA-256.
const LARGE: usize = 1000;

/// Files of a repository, by name.
pub type Files<'a> = &'a [(&'a str, &'a [u8])];

/// One request as it arrived.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Whether it came to the content network.
    pub cdn: bool,
    pub authorization: Option<String>,
    /// Start of the range that was asked for.
    pub range: Option<u64>,
}

/// What the server says of its files.
#[derive(Clone, Copy, Default)]
pub enum Listing {
    #[default]
    Honest,
    Etag(&'static str),
    Commit(&'static str),
}

/// How the server spoils its answers.
#[derive(Default)]
pub struct Behaviour {
    /// Bodies of the next large files end after so many bytes.
    cuts: VecDeque<usize>,
    pub ignores_ranges: bool,
    pub serves_at_most: Option<usize>,
    pub flips_a_bit: bool,
    /// Status and `X-Error-Code` for everything.
    pub refusal: Option<(&'static str, Option<&'static str>)>,
    pub listing: Listing,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    cdn: String,
    behaviour: Mutex<Behaviour>,
    log: Mutex<Vec<Request>>,
}

/// The running hub.
pub struct Server {
    /// For `HF_ENDPOINT`.
    pub endpoint: String,
    state: Arc<State>,
}

impl Server {
    /// Serves `files`, by name, as the only repository.
    pub fn start(files: Files<'_>) -> Self {
        let (hub, cdn) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let endpoint = address(&hub);
        let state = Arc::new(State {
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect(),
            cdn: address(&cdn),
            behaviour: Mutex::default(),
            log: Mutex::default(),
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    // A client that hangs up early is no failure of the test.
                    thread::spawn(move || state.answer(stream, is_cdn).ok());
                }
            });
        }
        Self { endpoint, state }
    }

    pub fn cut_after(&self, bytes: &[usize]) {
        self.change(|behaviour| behaviour.cuts.extend(bytes));
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.behaviour.lock().unwrap());
    }

    /// The requests since the last call.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream, cdn: bool) -> std::io::Result<()> {
        let Some(request) = read_request(&stream, cdn)? else { return Ok(()) };
        let (method, path, range) = (request.method.clone(), request.path.clone(), request.range);
        self.log.lock().unwrap().push(request);
        let mut behaviour = self.behaviour.lock().unwrap();
        if let Some((status, code)) = behaviour.refusal {
            let code = code.map(|code| format!("X-Error-Code: {code}\r\n")).unwrap_or_default();
            drop(behaviour);
            return respond(&mut stream, status, &code, b"<html>no</html>");
        }
        let commit = if let Listing::Commit(commit) = behaviour.listing { commit } else { COMMIT };
        if path.starts_with("/api/models/org/tiny/revision/") {
            let siblings: Vec<_> =
                self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let info = serde_json::json!({ "sha": commit, "siblings": siblings }).to_string();
            return respond(&mut stream, "200 OK", "", info.as_bytes());
        }
        let resolve = format!("/org/tiny/resolve/{COMMIT}/");
        let name =
            ["/cdn/", "/api/resolve-cache/", &resolve].iter().find_map(|prefix| path.strip_prefix(prefix));
        let Some((name, bytes)) = name.and_then(|name| self.files.get_key_value(name)) else {
            return respond(&mut stream, "404 Not Found", "X-Error-Code: EntryNotFound\r\n", b"");
        };
        let etag = if let Listing::Etag(etag) = behaviour.listing { etag.to_owned() } else { etag(bytes) };
        if path.starts_with(&resolve) {
            let large = bytes.len() >= LARGE;
            let place = if large { format!("{}/cdn", self.cdn) } else { "/api/resolve-cache".to_owned() };
            let linked = format!("X-Linked-Size: {}\r\nX-Linked-Etag: \"{etag}\"\r\n", bytes.len());
            let linked = if large { linked } else { String::new() };
            let headers = format!("Location: {place}/{name}\r\nX-Repo-Commit: {commit}\r\n{linked}");
            return respond(&mut stream, "302 Found", &headers, b"moved");
        }
        if method == "HEAD" {
            let length = bytes.len();
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nETag: W/\"{etag}\"\r\nContent-Length: {length}\r\n\r\n"
            );
        }
        let cut = if cdn { behaviour.cuts.pop_front() } else { None };
        let bytes = spoiled(&behaviour, bytes);
        let range = range.filter(|_| !behaviour.ignores_ranges);
        drop(behaviour);
        send_content(&mut stream, &bytes, range, cut)
    }
}

fn spoiled(behaviour: &Behaviour, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= LARGE {
        bytes.truncate(behaviour.serves_at_most.unwrap_or(usize::MAX));
        bytes[LARGE / 2] ^= u8::from(behaviour.flips_a_bit);
    }
    bytes
}

fn send_content(
    stream: &mut TcpStream,
    bytes: &[u8],
    range: Option<u64>,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let (start, total) = (range.unwrap_or(0) as usize, bytes.len());
    if start >= total && range.is_some() {
        return respond(stream, "416 Range Not Satisfiable", "", b"");
    }
    let body = &bytes[start..];
    let (status, last) = (if range.is_some() { "206 Partial Content" } else { "200 OK" }, total - 1);
    let range =
        range.map(|start| format!("Content-Range: bytes {start}-{last}/{total}\r\n")).unwrap_or_default();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}

fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)
}

fn read_request(stream: &TcpStream, cdn: bool) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, cdn, authorization: None, range: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            _ => {}
        }
    }
    Ok(Some(request))
}

/// In lowercase hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 64 digits for large files, 40 for others, as on the hub.
fn etag(bytes: &[u8]) -> String {
    let mut etag = sha256(bytes);
    if bytes.len() < LARGE {
        etag.truncate(40);
    }
    etag
}
