//! Downloads from a hub that runs in the test: cache layout, resuming, refused content, access, and no network;
//! not the real hub.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

#[path = "hub_server/mod.rs"]
mod hub_server;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hub_server::{COMMIT, Files, Listing, Server, sha256};
use rillm::hub::{HubError, HubOptions, snapshot};
use tempfile::TempDir;

const REPO: &str = "org/tiny";

fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 16).to_le_bytes()).collect()
}

/// A repository as the hub has many: what inference needs, and what it does not.
fn model() -> Server {
    Server::start(&[
        ("config.json", b"{\"model_type\":\"llama\"}"),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"{{ messages }}"),
        ("model.safetensors", &weights()),
        ("pytorch_model.bin", &weights()),
        ("consolidated.safetensors", &weights()),
        ("onnx/model.safetensors", &weights()),
        ("README.md", b"# tiny"),
    ])
}

fn gguf() -> Server {
    let (q4, q8) = (weights(), weights()[..1_000_000].to_vec());
    Server::start(&[("tiny-Q4_K_M.gguf", &q4), ("big/tiny-Q8_0.gguf", &q8), ("README.md", b"# tiny")])
}

fn options(home: &TempDir, endpoint: &str, more: &[(&str, &str)]) -> HubOptions {
    let mut vars: HashMap<String, OsString> = HashMap::new();
    vars.insert("HF_HOME".to_owned(), home.path().into());
    vars.insert("HF_ENDPOINT".to_owned(), endpoint.into());
    vars.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
    HubOptions::from_vars(|name| vars.get(name).cloned())
}

fn repo_folder(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--org--tiny")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_has_what_inference_needs_in_the_standard_layout() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let mut options = options(&home, &server.endpoint, &[]);
    let last = Arc::clone(&seen);
    options.progress = Some(Arc::new(move |progress| {
        last.lock().unwrap().insert(progress.file.to_owned(), (progress.done, progress.total));
    }));
    let folder = snapshot(REPO, &options).unwrap();

    assert_eq!(folder, repo_folder(&home).join("snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read_to_string(repo_folder(&home).join("refs/main")).unwrap(), COMMIT);
    let blobs = names(&repo_folder(&home).join("blobs"));
    assert_eq!(blobs.len(), 4);
    assert!(blobs.contains(&sha256(&weights())), "{blobs:?}");
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.join("model.safetensors")).unwrap(),
        Path::new("../../blobs").join(sha256(&weights()))
    );
    let size = weights().len() as u64;
    assert_eq!(seen.lock().unwrap()["model.safetensors"], (size, size));
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[test]
fn a_second_run_fetches_nothing() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let first = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    server.take_log();
    assert_eq!(snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap(), first);
    let paths: Vec<String> = server.take_log().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/models/org/tiny/revision/main"]);
    // A file that is missing is fetched, alone; its blob is known.
    fs::remove_file(first.join("config.json")).unwrap();
    snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert!(
        server
            .take_log()
            .iter()
            .all(|request| request.method == "HEAD" || request.path.contains("/api/models"))
    );
    assert!(first.join("config.json").is_file());
}

#[test]
fn a_broken_connection_is_continued_in_the_same_call() {
    let (home, server) = (TempDir::new().unwrap(), model());
    server.cut_after(&[100_000, 50_000]);
    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<Option<u64>> = server.take_log().into_iter().filter(|r| r.cdn).map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some(100_000), Some(150_000)]);
}

#[test]
fn an_interrupted_download_is_continued_by_the_next_call() {
    let (home, server) = (TempDir::new().unwrap(), model());
    server.cut_after(&[100_000, 0, 0, 0, 0]);
    let error = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { done: 100_000, total: 1_200_000, .. }), "{error}");
    let folder = repo_folder(&home);
    assert!(!folder.join("snapshots").join(COMMIT).join("model.safetensors").exists());
    assert!(!folder.join("blobs").join(sha256(&weights())).exists());
    assert!(!folder.join("refs/main").exists());

    server.take_log();
    let snapshot = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<Option<u64>> = server.take_log().into_iter().filter(|r| r.cdn).map(|r| r.range).collect();
    assert_eq!(ranges, [Some(100_000)]);
    assert!(names(&folder.join("blobs")).iter().all(|name| !name.ends_with(".incomplete")));
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (home, server) = (TempDir::new().unwrap(), model());
    server.cut_after(&[100_000]);
    server.change(|behaviour| behaviour.ignores_ranges = true);
    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_damaged_beginning_is_thrown_away() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let blobs = repo_folder(&home).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&weights()))), vec![0; 5000]).unwrap();
    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<Option<u64>> = server.take_log().into_iter().filter(|r| r.cdn).map(|r| r.range).collect();
    assert_eq!(ranges, [Some(5000), None]);
}

#[test]
fn a_truncated_file_is_not_accepted() {
    let (home, server) = (TempDir::new().unwrap(), model());
    // The server itself has but half of it, and says that this is all.
    server.change(|behaviour| behaviour.serves_at_most = Some(600_000));
    let error = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { total: 1_200_000, .. }), "{error}");
    assert!(!repo_folder(&home).join("snapshots").join(COMMIT).join("model.safetensors").exists());
}

#[test]
fn changed_content_is_refused_and_not_kept() {
    let (home, server) = (TempDir::new().unwrap(), model());
    server.change(|behaviour| behaviour.flips_a_bit = true);
    let error = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap_err();
    let HubError::CorruptDownload { file, want, got } = &error else { panic!("{error}") };
    assert_eq!(
        (file.as_str(), want.as_str()),
        ("model.safetensors", &*format!("SHA-256 {}", sha256(&weights())))
    );
    assert_eq!(got.len(), 64);
    let blobs = repo_folder(&home).join("blobs");
    assert!(!blobs.join(sha256(&weights())).exists());
    // The next call has no use for what came.
    server.change(|behaviour| behaviour.flips_a_bit = false);
    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn refusals_are_told_apart() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let ask = |status: &'static str, code: Option<&'static str>| {
        server.change(|behaviour| behaviour.refusal = Some((status, code)));
        snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap_err()
    };
    let error = ask("404 Not Found", Some("RepoNotFound"));
    assert!(matches!(&error, HubError::NotFound { what } if what == "org/tiny@main"), "{error}");
    let error = ask("401 Unauthorized", Some("RepoNotFound"));
    assert!(
        matches!(error, HubError::Unauthorized { .. }) && error.to_string().contains("HF_TOKEN"),
        "{error}"
    );
    let error = ask("403 Forbidden", Some("GatedRepo"));
    assert!(matches!(error, HubError::Unauthorized { .. }), "{error}");
    for status in ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway", "200 OK"] {
        let error = ask(status, None);
        assert!(error.is_unreachable(), "{status}: {error}");
        assert!(error.to_string().contains(&server.endpoint), "{error}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let (home, server) = (TempDir::new().unwrap(), gguf());
    let error = snapshot("org/tiny/other.gguf", &options(&home, &server.endpoint, &[])).unwrap_err();
    assert!(matches!(&error, HubError::NotFound { what } if what == "org/tiny/other.gguf"), "{error}");
}

#[test]
fn offline_uses_the_cache_only() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let offline = options(&home, &server.endpoint, &[("HF_HUB_OFFLINE", "1")]);
    let error = snapshot(REPO, &offline).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { repo, .. } if repo == REPO), "{error}");
    assert!(server.take_log().is_empty());

    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    server.take_log();
    assert_eq!(snapshot(REPO, &offline).unwrap(), folder);
    assert_eq!(snapshot(&format!("{REPO}@{COMMIT}"), &offline).unwrap(), folder);
    assert!(server.take_log().is_empty());

    fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(matches!(snapshot(REPO, &offline), Err(HubError::NotCached { .. })));
}

#[test]
fn an_unreachable_hub_is_noticed_within_seconds_and_the_cache_serves() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let nowhere = ["http://hub.invalid", &closed, &silent.0, "ftp://host", "huggingface.co"];
    for endpoint in nowhere {
        let start = Instant::now();
        let error = snapshot(REPO, &options(&home, endpoint, &[])).unwrap_err();
        assert!(matches!(&error, HubError::Offline { endpoint: told, .. } if told == endpoint), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{endpoint}: {:?}", start.elapsed());
    }
    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    assert_eq!(snapshot(REPO, &options(&home, &closed, &[])).unwrap(), folder);

    let empty = home.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let no_trust = options(&home, &closed, &[("SSL_CERT_FILE", empty.to_str().unwrap())]);
    assert!(matches!(snapshot(REPO, &no_trust), Err(HubError::Io { path, .. }) if path == empty));
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let (home, server) = (TempDir::new().unwrap(), model());
    snapshot(REPO, &options(&home, &server.endpoint, &[("HF_TOKEN", "hf_secret\n")])).unwrap();
    let log = server.take_log();
    assert!(log.iter().any(|request| request.cdn));
    for request in log {
        let want = if request.cdn { None } else { Some("Bearer hf_secret") };
        assert_eq!(request.authorization.as_deref(), want, "{} {}", request.method, request.path);
    }
    let bad = options(&home, &server.endpoint, &[("HF_TOKEN", "a\nb")]);
    let error = snapshot(REPO, &bad).unwrap_err();
    assert!(matches!(error, HubError::Unauthorized { .. }), "{error}");
    assert!(!format!("{bad:?}").contains("a\\nb"));
}

#[test]
fn shards_are_those_of_the_index() {
    let index =
        br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-1.safetensors"}}"#;
    let files: Files<'_> = &[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", &weights()),
        ("model-2.safetensors", b"two"),
        ("consolidated.safetensors", b"x"),
    ];
    let (home, server) = (TempDir::new().unwrap(), Server::start(files));
    let folder = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap();
    let want = ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(names(&folder), want);

    let (home, server) = (TempDir::new().unwrap(), Server::start(&files[..3]));
    let error = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap_err();
    assert!(
        matches!(&error, HubError::NotFound { what } if what == "org/tiny/model-2.safetensors"),
        "{error}"
    );
}

#[test]
fn gguf_files_are_chosen_by_name_or_quantization() {
    let (home, server) = (TempDir::new().unwrap(), gguf());
    let ask = |name: &str| snapshot(name, &options(&home, &server.endpoint, &[]));
    let Err(HubError::ChooseGguf { files, .. }) = ask(REPO) else { panic!("one of two was chosen") };
    assert_eq!(files, ["big/tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf"]);
    assert!(matches!(ask("org/tiny:Q5_0"), Err(HubError::ChooseGguf { .. })));

    let folder = repo_folder(&home).join("snapshots").join(COMMIT);
    assert_eq!(ask("org/tiny:q4_k_m").unwrap(), folder.join("tiny-Q4_K_M.gguf"));
    assert_eq!(ask("org/tiny/big/tiny-Q8_0.gguf").unwrap(), folder.join("big/tiny-Q8_0.gguf"));
    assert_eq!(fs::read(folder.join("big/tiny-Q8_0.gguf")).unwrap(), &weights()[..1_000_000]);
    assert_eq!(names(&folder), ["big", "tiny-Q4_K_M.gguf"]);
    let offline = options(&home, &server.endpoint, &[("HF_HUB_OFFLINE", "yes")]);
    assert_eq!(snapshot("org/tiny:Q8_0", &offline).unwrap(), folder.join("big/tiny-Q8_0.gguf"));

    let server = Server::start(&[("README.md", b"# none")]);
    assert!(matches!(
        snapshot(REPO, &options(&home, &server.endpoint, &[])),
        Err(HubError::NoWeights { .. })
    ));
}

#[test]
fn a_hostile_server_writes_nothing_elsewhere() {
    let evil = br#"{"weight_map":{"a":"../../../../evil.safetensors"}}"#;
    let hostile: &[(Files<'_>, Listing)] = &[
        (&[("../../../../evil.safetensors", b"x"), ("config.json", b"{}")], Listing::Honest),
        (&[("/tmp/evil.safetensors", b"x"), ("a\\..\\evil.safetensors", b"x")], Listing::Honest),
        (&[("model.safetensors.index.json", evil), ("config.json", b"{}")], Listing::Honest),
        (&[("model.safetensors", b"x")], Listing::Etag("../../../evil")),
        (&[("model.safetensors", b"x")], Listing::Etag("evil.incomplete")),
        (&[("model.safetensors", b"x")], Listing::Commit("../../../evil")),
    ];
    for (files, listing) in hostile {
        let (home, server) = (TempDir::new().unwrap(), Server::start(files));
        server.change(|behaviour| behaviour.listing = *listing);
        let error = snapshot(REPO, &options(&home, &server.endpoint, &[])).unwrap_err();
        assert!(matches!(error, HubError::NoWeights { .. } | HubError::BadAnswer { .. }), "{error}");
        assert!(names(home.path()).iter().all(|name| name == "hub"));
        let below_hub = home.path().join("hub");
        if below_hub.exists() {
            assert_eq!(names(&below_hub), [".locks", "models--org--tiny"]);
        }
    }
}

#[test]
fn two_at_once_download_once() {
    let (home, server) = (TempDir::new().unwrap(), model());
    let options = options(&home, &server.endpoint, &[]);
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| snapshot(REPO, &options).unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    assert_eq!(fs::read(folders[0].join("model.safetensors")).unwrap(), weights());
    assert_eq!(server.take_log().iter().filter(|request| request.cdn).count(), 1);
}

#[test]
fn options_are_those_of_the_environment() {
    let home = TempDir::new().unwrap();
    let vars = |vars: &[(&str, &Path)]| {
        let vars: HashMap<String, OsString> =
            vars.iter().map(|(name, value)| ((*name).to_owned(), value.as_os_str().to_owned())).collect();
        HubOptions::from_vars(|name| vars.get(name).cloned())
    };
    let at = home.path();
    let options = vars(&[("HF_HOME", at)]);
    assert_eq!(options.cache, at.join("hub"));
    assert_eq!(options.endpoint, "https://huggingface.co");
    assert_eq!((options.token, options.revision.as_str(), options.offline), (None, "main", false));

    fs::write(at.join("token"), "from_login\n").unwrap();
    assert_eq!(vars(&[("HF_HOME", at)]).token.as_deref(), Some("from_login"));
    assert_eq!(vars(&[("HF_HOME", at), ("HF_TOKEN", Path::new("set"))]).token.as_deref(), Some("set"));
    fs::write(at.join("elsewhere"), "other").unwrap();
    let options = vars(&[("HF_HOME", at), ("HF_TOKEN_PATH", &at.join("elsewhere"))]);
    assert_eq!(options.token.as_deref(), Some("other"));

    let options =
        vars(&[("HF_HOME", at), ("HF_HUB_CACHE", &at.join("c")), ("HF_HUB_OFFLINE", Path::new("TRUE"))]);
    assert_eq!((options.cache, options.offline), (at.join("c"), true));
    assert_eq!(vars(&[("XDG_CACHE_HOME", at)]).cache, at.join("huggingface/hub"));
    assert!(!vars(&[("HF_HOME", at), ("HF_HUB_OFFLINE", Path::new("0"))]).offline);
    let user = std::env::home_dir().unwrap();
    assert_eq!(vars(&[("HF_HOME", Path::new("~/x"))]).cache, user.join("x/hub"));
    assert_eq!(vars(&[("HF_HOME", Path::new(""))]).cache, user.join(".cache/huggingface/hub"));
}
