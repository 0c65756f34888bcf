//! Checkpoints of the Hugging Face hub, downloaded into its standard cache folder; not a client for the rest of
//! the hub (no uploads, data sets or search), and nothing here reads a checkpoint.
//!
//! ```no_run
//! use rillm::hub::{HubOptions, snapshot};
//! let folder = snapshot("HuggingFaceTB/SmolLM2-135M-Instruct", &HubOptions::from_env())?;
//! # Ok::<(), rillm::hub::HubError>(())
//! ```
//!
//! [`snapshot`] asks the hub which commit the revision is at, fetches the files of that commit which inference
//! needs and the cache lacks, and returns where they are. The cache is the one that Python's `huggingface_hub`
//! and `hf-hub` use, in both directions:
//!
//! ```text
//! <cache>/models--org--name/blobs/<etag>             content, named by its hash; <etag>.incomplete while it grows
//! <cache>/models--org--name/snapshots/<commit>/<file>  links to blobs
//! <cache>/models--org--name/refs/<revision>          the commit a branch or tag was at; written last
//! <cache>/.locks/models--org--name/<etag>.lock       held by the process that downloads the blob
//! ```
//!
//! Names and places come from `hf-hub`; its download does not, because in 0.5 it has no timeouts (an unreachable
//! hub blocks for minutes), takes any complete answer to a `Range` request for the rest of the file, checks
//! neither length nor SHA-256, and knows of `HF_HOME` and `HF_ENDPOINT` only. Without its `ureq` feature the tree
//! has 26 packages less as well.

mod blob;
mod client;
mod error;
mod name;
mod options;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use client::{Client, Listing};
pub use error::HubError;
use name::{RepoName, Wanted, has_quantization, is_commit, is_safe_file};
pub use options::{DownloadProgress, HubOptions, ProgressFn};

type Result<T> = std::result::Result<T, HubError>;

/// The files beside the weights that inference reads.
const METADATA: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Brings the files of `repo` that inference needs into the cache and returns where they are.
///
/// `repo` is one of
/// * `org/name`: `config.json`, tokenizer, chat template and safetensors; returns the snapshot's folder,
/// * `org/name/file.gguf` or `org/name:Q4_K_M`: one GGUF file, by its name or its quantization; returns that file,
///
/// each with an optional `@revision` (branch, tag or commit) at the end, which has precedence over
/// [`HubOptions::revision`]. Files in the cache are not fetched again; where the hub can't be reached, a snapshot
/// that is complete in the cache is returned as it is.
///
/// # Errors
/// See [`HubError`]; [`HubError::is_unreachable`] tells a machine without the hub from a wrong name.
pub fn snapshot(repo: &str, options: &HubOptions) -> Result<PathBuf> {
    let name = RepoName::parse(repo, &options.revision)?;
    let place = Place::new(&name, options);
    if options.offline {
        return place.cached().ok_or_else(|| HubError::NotCached {
            repo: name.id.clone(),
            revision: name.revision.clone(),
            cache: options.cache.clone(),
        });
    }
    let client = Client::new(options)?;
    let listing = match client.listing(&name) {
        Ok(listing) => listing,
        Err(error) if error.is_unreachable() => return place.cached().ok_or(error),
        Err(error) => return Err(error),
    };
    let download = Download { client: &client, options, place: &place, commit: &listing.sha };
    let path = download.run(&listing)?;
    if name.revision != listing.sha {
        place.write_ref(&listing.sha)?;
    }
    Ok(path)
}

/// One repository's folders in the cache.
struct Place<'a> {
    name: &'a RepoName,
    repo: CacheRepo,
    /// `<cache>/models--org--name`
    folder: PathBuf,
    /// `<cache>/.locks/models--org--name`
    locks: PathBuf,
}

impl<'a> Place<'a> {
    fn new(name: &'a RepoName, options: &HubOptions) -> Self {
        let repo = Repo::with_revision(name.id.clone(), RepoType::Model, name.revision.clone());
        let cache = Cache::new(options.cache.clone());
        let folder = cache.path().join(repo.folder_name());
        let locks = cache.path().join(".locks").join(repo.folder_name());
        Self { name, repo: cache.repo(repo), folder, locks }
    }

    /// `<cache>/models--org--name/snapshots/<commit>`
    fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    fn ref_path(&self) -> PathBuf {
        self.folder.join("refs").join(&self.name.revision)
    }

    /// What the cache has of the revision, if it is all there.
    fn cached(&self) -> Option<PathBuf> {
        let commit = match self.name.revision.as_str() {
            commit if is_commit(commit) => commit.to_owned(),
            _ => fs::read_to_string(self.ref_path()).ok()?.trim().to_owned(),
        };
        if !is_commit(&commit) {
            return None;
        }
        let folder = self.snapshot(&commit);
        let is_there = |file: &str| folder.join(file).is_file();
        if let Wanted::File(file) = &self.name.wanted {
            return is_there(file).then(|| folder.join(file));
        }
        let mut files = BTreeSet::new();
        files_below(&folder, "", &mut files);
        match choose(self.name, &files).ok()? {
            Choice::Gguf(file) => Some(folder.join(file)),
            Choice::Model { weights, .. } => {
                let weights = match weights {
                    Weights::Indexed => shards(&folder.join(INDEX)).ok()?,
                    Weights::Files(files) => files,
                };
                (is_there("config.json") && weights.iter().all(|file| is_there(file))).then_some(folder)
            }
        }
    }

    fn write_ref(&self, commit: &str) -> Result<()> {
        let path = self.ref_path();
        if fs::read_to_string(&path).is_ok_and(|old| old == commit) {
            return Ok(());
        }
        let _lock = blob::lock(&self.locks, "refs")?;
        // A reader never sees an empty ref: it is renamed into place.
        let fresh = path.with_file_name(format!(".{commit}"));
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))
            .and_then(|()| fs::write(&fresh, commit))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| HubError::io(&path, source))
    }
}

/// The files to fetch.
enum Choice {
    Gguf(String),
    Model { metadata: Vec<String>, weights: Weights },
}

enum Weights {
    /// The shards that `model.safetensors.index.json` names.
    Indexed,
    Files(BTreeSet<String>),
}

/// Chooses among the files of a repository, or of a snapshot in the cache.
fn choose(name: &RepoName, files: &BTreeSet<String>) -> Result<Choice> {
    let gguf_files = || files.iter().filter(|file| file.ends_with(".gguf")).cloned().collect::<Vec<_>>();
    match &name.wanted {
        Wanted::File(file) if files.contains(file) => return Ok(Choice::Gguf(file.clone())),
        Wanted::File(file) => return Err(HubError::NotFound { what: format!("{}/{file}", name.id) }),
        Wanted::Quantization(quantization) => {
            let mut fitting = gguf_files();
            fitting.retain(|file| has_quantization(file, quantization));
            return match <[String; 1]>::try_from(fitting) {
                Ok([file]) => Ok(Choice::Gguf(file)),
                Err(_) => Err(HubError::ChooseGguf { repo: name.id.clone(), files: gguf_files() }),
            };
        }
        Wanted::Model => {}
    }
    // Subfolders and, beside an index or `model.safetensors`, other safetensors hold the same weights in other
    // forms (`original/`, `consolidated.safetensors`, `model.fp16.safetensors`).
    let weights = if files.contains(INDEX) {
        Weights::Indexed
    } else if files.contains(SINGLE) {
        Weights::Files(BTreeSet::from([SINGLE.to_owned()]))
    } else {
        let at_root = files.iter().filter(|file| file.ends_with(".safetensors") && !file.contains('/'));
        Weights::Files(at_root.cloned().collect())
    };
    match weights {
        Weights::Files(found) if found.is_empty() => match gguf_files() {
            files if files.is_empty() => Err(HubError::NoWeights { repo: name.id.clone() }),
            files => Err(HubError::ChooseGguf { repo: name.id.clone(), files }),
        },
        weights => {
            let metadata = METADATA.iter().filter(|file| files.contains(**file));
            Ok(Choice::Model { metadata: metadata.map(|file| (*file).to_owned()).collect(), weights })
        }
    }
}

/// Adds the files of `folder` and its subfolders, named as the hub names them.
fn files_below(folder: &Path, prefix: &str, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A link to a blob counts as a file, one to a folder (which could be a loop) as nothing.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), &format!("{prefix}{name}/"), files);
        } else if entry.path().is_file() {
            files.insert(format!("{prefix}{name}"));
        }
    }
}

/// The shards that an index names, each once.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let bad = |why: String| HubError::BadAnswer { what: index.display().to_string(), why };
    let text = fs::read(index).map_err(|source| HubError::io(index, source))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_safe_file(shard)) {
        Some(shard) => Err(bad(format!("the shard `{shard}` is outside the snapshot's folder"))),
        None => Ok(shards),
    }
}

/// A snapshot being brought to the cache.
struct Download<'a> {
    client: &'a Client,
    options: &'a HubOptions,
    place: &'a Place<'a>,
    commit: &'a str,
}

impl Download<'_> {
    fn run(&self, listing: &Listing) -> Result<PathBuf> {
        let folder = self.place.snapshot(self.commit);
        let (metadata, weights) = match choose(self.place.name, &listing.files)? {
            Choice::Gguf(file) => {
                self.file(&file)?;
                return Ok(folder.join(file));
            }
            Choice::Model { metadata, weights } => (metadata, weights),
        };
        for file in &metadata {
            self.file(file)?;
        }
        let weights = match weights {
            Weights::Files(files) => files,
            Weights::Indexed => {
                self.file(INDEX)?;
                shards(&folder.join(INDEX))?
            }
        };
        // Before the first of many gigabytes: are the others there, too?
        if let Some(missing) = weights.iter().find(|file| !listing.files.contains(*file)) {
            return Err(HubError::NotFound { what: format!("{}/{missing}", self.place.name.id) });
        }
        weights.iter().try_for_each(|file| self.file(file))?;
        Ok(folder)
    }

    /// Makes `file` a part of the snapshot.
    fn file(&self, file: &str) -> Result<()> {
        let link = self.place.snapshot(self.commit).join(file);
        if link.is_file() {
            return Ok(());
        }
        let id = &self.place.name.id;
        let url = self.client.file_url(id, self.commit, file);
        let remote = self.client.remote_file(&url, &format!("{id}/{file}"))?;
        let (folder, locks) = (&self.place.folder, &self.place.locks);
        let request = blob::Request { file, url: &url, remote: &remote, folder, locks, link: &link };
        blob::fetch(self.client, self.options, &request)
    }
}
