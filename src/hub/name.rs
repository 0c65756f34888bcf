//! Names of repositories and files, checked before they become a path or a URL; nothing here touches either.

use super::{HubError, Result};

/// `org/name[/file.gguf | :quantization][@revision]`, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RepoName {
    /// `org/name`, or `name` for the hub's oldest repositories.
    pub(super) id: String,
    pub(super) revision: String,
    pub(super) wanted: Wanted,
}

/// What of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A Hugging Face folder: configuration, tokenizer, safetensors.
    Model,
    /// The GGUF file of this name.
    File(String),
    /// The GGUF file whose name ends in this quantization.
    Quantization(String),
}

impl RepoName {
    pub(super) fn parse(name: &str, revision: &str) -> Result<Self> {
        let invalid = |why| HubError::InvalidName { name: name.to_owned(), why };
        let (rest, revision) = name.split_once('@').unwrap_or((name, revision));
        if !is_revision(revision) {
            return Err(invalid("the revision is no branch, tag or commit"));
        }
        let (rest, quantization) = match rest.split_once(':') {
            Some((rest, quantization)) => (rest, Some(quantization)),
            None => (rest, None),
        };
        let mut parts = rest.splitn(3, '/');
        let (org, repo, file) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if !is_word(org) || !repo.is_none_or(is_word) {
            return Err(invalid("letters, digits, `-`, `_` and `.` make up its one or two parts"));
        }
        let wanted = match (file, quantization) {
            (None, None) => Wanted::Model,
            (Some(file), None) if is_safe_file(file) && file.ends_with(".gguf") => {
                Wanted::File(file.to_owned())
            }
            (None, Some(quantization)) if is_word(quantization) => {
                Wanted::Quantization(quantization.to_owned())
            }
            (Some(_), _) => return Err(invalid("what follows org/name is not the name of a .gguf file")),
            (None, Some(_)) => return Err(invalid("what follows `:` is no quantization")),
        };
        let id = repo.map_or_else(|| org.to_owned(), |repo| format!("{org}/{repo}"));
        Ok(Self { id, revision: revision.to_owned(), wanted })
    }
}

/// A part of a repository's name by the hub's rules.
fn is_word(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&word.len())
        && word.chars().all(plain)
        && !word.starts_with(['-', '.'])
        && !word.ends_with(['-', '.'])
        && !word.contains("--")
        && !word.contains("..")
}

fn is_revision(revision: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let part = |part: &str| !part.is_empty() && part.chars().all(plain) && !part.starts_with('.');
    revision.len() <= 256 && revision.split('/').all(part)
}

/// Whether `text` is a full commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `etag` can name a blob: no separators, and never the `.incomplete` of another.
pub(super) fn is_etag(etag: &str) -> bool {
    (1..=128).contains(&etag.len())
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Whether a file of this name stays within its snapshot, on every system.
pub(super) fn is_safe_file(file: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    file.len() <= 1024
        && file.split('/').all(part)
        && !file.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
}

/// Whether a file is called `..-Q4_K_M.gguf`, `...Q4_K_M.gguf` or `Q4_K_M.gguf`, whatever the case.
pub(super) fn has_quantization(file: &str, quantization: &str) -> bool {
    let file = file.to_ascii_lowercase();
    let Some(stem) = file.strip_suffix(".gguf") else { return false };
    let before = stem.strip_suffix(&quantization.to_ascii_lowercase());
    before.is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_', '/']))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let parse = |name| {
            let name = RepoName::parse(name, "main").unwrap();
            (name.id, name.revision, name.wanted)
        };
        let want = |id: &str, revision: &str, wanted| (id.to_owned(), revision.to_owned(), wanted);
        assert_eq!(parse("org/name"), want("org/name", "main", Wanted::Model));
        assert_eq!(parse("gpt2"), want("gpt2", "main", Wanted::Model));
        assert_eq!(parse("org/na.me-1@refs/pr/5"), want("org/na.me-1", "refs/pr/5", Wanted::Model));
        let file = Wanted::File("sub/x.gguf".to_owned());
        assert_eq!(parse("org/name/sub/x.gguf@v1.0"), want("org/name", "v1.0", file));
        assert_eq!(
            parse("org/name:Q4_K_M"),
            want("org/name", "main", Wanted::Quantization("Q4_K_M".to_owned()))
        );
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        for name in [
            "",
            "/",
            "/etc",
            "/etc/passwd",
            "..",
            "../x",
            "org/..",
            "org/../x.gguf",
            "org/name/../../x.gguf",
            "org/name//x.gguf",
            "org/name/x.bin",
            "org\\name",
            "C:\\x",
            "org/na me",
            "org/-name",
            "org/na--me",
            "org/name@",
            "org/name@../x",
            "org/name@/x",
            "org/name@a//b",
            "org/name:",
            "org/name:a/b",
            "org/name/x.gguf:Q4_0",
            "org/name?x",
            "org/n\u{e4}me",
            "https://host/x",
        ] {
            let error = RepoName::parse(name, "main").unwrap_err();
            assert!(matches!(error, HubError::InvalidName { .. }), "{name}: {error}");
        }
        assert!(RepoName::parse("org/name", "../../x").is_err());
        for file in ["..", "../x", "/x", "a//b", "a/./b", "a\\b", "C:x", "a\0b", ""] {
            assert!(!is_safe_file(file), "{file:?}");
        }
    }

    #[test]
    fn quantizations_are_whole_words() {
        assert!(has_quantization("Model-Q4_K_M.gguf", "q4_k_m"));
        assert!(has_quantization("model.Q4_0.gguf", "Q4_0"));
        assert!(has_quantization("dir/Q8_0.gguf", "Q8_0"));
        assert!(!has_quantization("model-IQ4_0.gguf", "Q4_0"));
        assert!(!has_quantization("model-Q4_0.gguf", "Q4_K_M"));
        assert!(!has_quantization("model-Q4_0.safetensors", "Q4_0"));
    }
}
