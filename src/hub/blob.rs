//! Downloads of one file into the cache: continued where they stopped, checked, and visible under their name only
//! when whole. Which files, and from where, is decided elsewhere.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use ureq::Body;
use ureq::http::Response;

use super::client::{Client, RemoteFile};
use super::{HubError, HubOptions, Result};

/// Connections that one call spends on one file.
const ATTEMPTS: u32 = 5;
const BUFFER: usize = 256 << 10;

/// A file to be had.
pub(super) struct Request<'a> {
    /// Its name in the repository.
    pub(super) file: &'a str,
    pub(super) url: &'a str,
    pub(super) remote: &'a RemoteFile,
    /// The repository's folder in the cache.
    pub(super) folder: &'a Path,
    /// The folder of its locks.
    pub(super) locks: &'a Path,
    /// Where in the snapshot it belongs.
    pub(super) link: &'a Path,
}

/// Brings the file into `blobs`, unless it is there, and links it into the snapshot.
///
/// # Errors
/// Any of a download; what has arrived stays, unless it can't be the file's beginning.
pub(super) fn fetch(client: &Client, options: &HubOptions, request: &Request<'_>) -> Result<()> {
    let _lock = lock(request.locks, &request.remote.etag)?;
    let blobs = request.folder.join("blobs");
    let blob = blobs.join(&request.remote.etag);
    let is_whole = fs::metadata(&blob).is_ok_and(|blob| blob.len() == request.remote.size);
    if !is_whole {
        fs::create_dir_all(&blobs).map_err(|source| HubError::io(&blobs, source))?;
        let mut part = Part::open(blobs.join(format!("{}.incomplete", request.remote.etag)), request.remote)?;
        let continued = part.len > 0;
        complete(client, options, request, &mut part)?;
        // Whoever wrote that beginning, it was another file's or is damaged: once more from the start.
        if continued && !part.is_intact(request.remote) {
            part.restart()?;
            complete(client, options, request, &mut part)?;
        }
        part.publish(&blob, request)?;
    }
    link(&blob, request)
}

/// Holds a lock that other processes (Python's `huggingface_hub` among them) respect, until it is dropped.
pub(super) fn lock(locks: &Path, name: &str) -> Result<File> {
    let path = locks.join(format!("{name}.lock"));
    let open = || {
        fs::create_dir_all(locks)?;
        let file = File::options().create(true).write(true).truncate(false).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| HubError::io(&path, source))
}

/// Downloads until `part` has all bytes.
fn complete(client: &Client, options: &HubOptions, request: &Request<'_>, part: &mut Part) -> Result<()> {
    let total = request.remote.size;
    options.report(request.file, part.len, total);
    for attempt in 0..ATTEMPTS {
        if part.len == total {
            return Ok(());
        }
        if attempt > 0 {
            thread::sleep(Duration::from_millis(100 << attempt));
        }
        let last = attempt + 1 == ATTEMPTS;
        match client.content(request.url, request.file, part.len) {
            Ok(response) => {
                let why = match transfer(response, options, request, part)? {
                    End::Closed if part.len == total => return Ok(()),
                    End::Closed => "the connection was closed".to_owned(),
                    End::Failed(why) => why,
                };
                if last {
                    let (file, done) = (request.file.to_owned(), part.len);
                    return Err(HubError::Interrupted { file, done, total, why });
                }
            }
            Err(HubError::Offline { .. }) if !last => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How a connection ended.
enum End {
    Closed,
    Failed(String),
}

/// Appends what `response` has to `part`.
fn transfer(
    response: Response<Body>,
    options: &HubOptions,
    request: &Request<'_>,
    part: &mut Part,
) -> Result<End> {
    let total = request.remote.size;
    match response.status().as_u16() {
        206 if range_start(&response) == Some(part.len) => {}
        206 => return Ok(End::Failed("the server sent another range than asked for".to_owned())),
        416 => {
            part.restart()?;
            return Ok(End::Failed("the server has no such range".to_owned()));
        }
        _ => part.restart()?,
    }
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => return Ok(End::Closed),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(End::Failed(error.to_string())),
        };
        if n as u64 > total - part.len {
            part.restart()?;
            let (want, got) = (format!("{total} bytes"), "more".to_owned());
            return Err(HubError::CorruptDownload { file: request.file.to_owned(), want, got });
        }
        part.append(&buffer[..n], total)?;
        options.report(request.file, part.len, total);
    }
}

/// `a` of `Content-Range: bytes a-b/c`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

/// The beginning of a file.
struct Part {
    path: PathBuf,
    file: File,
    /// Never more than the whole file's.
    len: u64,
    sha256: Context,
}

impl Part {
    /// Opens what an earlier attempt left, or an empty file.
    fn open(path: PathBuf, remote: &RemoteFile) -> Result<Self> {
        let open = File::options().create(true).read(true).write(true).truncate(false).open(&path);
        let file = open.map_err(|source| HubError::io(&path, source))?;
        let mut part = Self { path, file, len: 0, sha256: Context::new(&SHA256) };
        let len = part.file.metadata().map_err(|source| HubError::io(&part.path, source))?.len();
        // Without a hash to check at the end nobody would notice a beginning that a crash has damaged.
        if remote.sha256.is_some() && len <= remote.size {
            part.hash_existing().map_err(|source| HubError::io(&part.path, source))?;
        } else {
            part.restart()?;
        }
        Ok(part)
    }

    fn hash_existing(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.sha256.update(&buffer[..n]),
            }
            self.len = self.file.stream_position()?;
        }
    }

    fn restart(&mut self) -> Result<()> {
        (self.len, self.sha256) = (0, Context::new(&SHA256));
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|source| HubError::io(&self.path, source))?;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], total: u64) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                HubError::DiskFull { path: self.path.clone(), bytes: total }
            }
            _ => HubError::io(&self.path, source),
        })?;
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn hash(&self) -> String {
        self.sha256.clone().finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn is_intact(&self, remote: &RemoteFile) -> bool {
        remote.sha256.as_ref().is_none_or(|want| *want == self.hash())
    }

    /// Checks the whole file and gives it its name.
    fn publish(mut self, blob: &Path, request: &Request<'_>) -> Result<()> {
        if let Some(want) = &request.remote.sha256
            && !self.is_intact(request.remote)
        {
            let got = self.hash();
            self.restart()?;
            let (file, want) = (request.file.to_owned(), format!("SHA-256 {want}"));
            return Err(HubError::CorruptDownload { file, want, got });
        }
        // The content reaches the disk before the name does, so that a crash leaves no blob full of zeros.
        let synced = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        synced.map_err(|source| HubError::io(blob, source))
    }
}

/// Makes the blob the snapshot's file: by a relative link, or a hard one where the system has none.
fn link(blob: &Path, request: &Request<'_>) -> Result<()> {
    let etag = &request.remote.etag;
    let up: PathBuf = request.file.split('/').map(|_| "..").collect();
    let target = Path::new("..").join(up).join("blobs").join(etag);
    // Renamed into place, because a link of that name may be there and lead nowhere.
    let fresh = request.link.with_file_name(format!(".{etag}"));
    let make = || {
        fs::create_dir_all(request.link.parent().unwrap_or(request.folder))?;
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(&target, &fresh).or_else(|_| fs::hard_link(blob, &fresh))?;
        fs::rename(&fresh, request.link)
    };
    make().map_err(|source| HubError::io(request.link, source))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
