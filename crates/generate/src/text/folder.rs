//! A tokenizer from the files of a Hugging Face folder, with the rules of transformers' AutoTokenizer; not the hub.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::tokenizer::{Named, Templates, Tokenizer, message};
use crate::error::{Error, Result};

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder, and what stands beside it: `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja`, `additional_chat_templates/`. What is put around a text is
    /// what `tokenizer.json` says: transformers ignores `add_bos_token` beside it, and so does this.
    ///
    /// # Errors
    /// [`Error::MissingTokenizer`] if there is no `tokenizer.json`, [`Error::TokenizerFile`] if a file
    /// can't be read. A chat template that can't is an error of [`chat_template`](Tokenizer::chat_template).
    pub fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let Some(bytes) = read(&path)? else { return Err(Error::MissingTokenizer { path }) };
        // The library panics on some files that contradict themselves, as merges longer than any token.
        let mut tokenizer = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|_| "contradicts itself".to_owned())
            .and_then(|parsed| parsed.map_err(|e| e.to_string()))
            .map_err(|message| Error::TokenizerFile { path, message })?;
        let mut config = object(dir.join("tokenizer_config.json"))?;
        for (key, value) in object(dir.join("special_tokens_map.json"))? {
            config.entry(key).or_insert(value);
        }
        let spelled = special_tokens(&config);
        add_tokens(&mut tokenizer, &config, &spelled)?;
        let named = Named {
            bos: spelled.get("bos_token").and_then(|token| tokenizer.token_to_id(token)),
            eos: spelled
                .get("eos_token")
                .and_then(|token| tokenizer.token_to_id(token))
                .into_iter()
                .collect(),
            unk: spelled.get("unk_token").and_then(|token| tokenizer.token_to_id(token)),
            spelled,
        };
        Tokenizer::new(tokenizer, named, templates(dir, &config))
    }
}

/// The bytes of a file; nothing if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::TokenizerFile { path: path.to_owned(), message: e.to_string() }),
    }
}

/// The object in a JSON file; an empty one if there is no file.
fn object(path: PathBuf) -> Result<Map<String, Value>> {
    match read(&path)? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::TokenizerFile { path, message: format!("not a JSON object: {e}") }),
        None => Ok(Map::new()),
    }
}

/// The spelling of a token that is written as a string or as an `AddedToken` object.
fn spelling(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The tokens with a role: every `.._token` of the configuration.
fn special_tokens(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let named = config.iter().filter(|(key, _)| key.ends_with("_token"));
    named.filter_map(|(key, token)| Some((key.clone(), spelling(token)?.to_owned()))).collect()
}

fn added_token(token: &Value) -> Option<AddedToken> {
    let flag = |name: &str| token.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(
        AddedToken::from(spelling(token)?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

/// Tokens that only the configuration knows, and special ones that `tokenizer.json` doesn't mark as such.
fn add_tokens(
    tokenizer: &mut tokenizers::Tokenizer,
    config: &Map<String, Value>,
    spelled: &BTreeMap<String, String>,
) -> Result<()> {
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut listed: Vec<(u32, AddedToken)> = listed
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?)))
        .collect();
    listed.sort_by_key(|(id, _)| *id);
    tokenizer.add_tokens(listed.into_iter().map(|(_, token)| token)).map_err(message)?;

    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let extra = lists.into_iter().filter_map(|key| config.get(key)).flat_map(|list| match list {
        Value::Array(tokens) => tokens.iter().collect::<Vec<_>>(),
        Value::Object(tokens) => tokens.values().collect(),
        _ => Vec::new(),
    });
    let tokens = spelled.values().map(String::as_str).chain(extra.filter_map(spelling));
    let known = tokenizer.get_added_vocabulary();
    let unmarked: Vec<AddedToken> = tokens
        .filter(|token| !known.is_special_token(token))
        .map(|token| AddedToken::from(token, true).normalized(false))
        .collect();
    tokenizer.add_special_tokens(unmarked).map_err(message)?;
    Ok(())
}

/// Template files win over those of the configuration.
fn templates(dir: &Path, config: &Map<String, Value>) -> Templates {
    let mut templates = Templates {
        looked_in: format!("{} and tokenizer_config.json", dir.join("chat_template.jinja").display()),
        ..Templates::default()
    };
    match config.get("chat_template") {
        Some(Value::String(source)) => {
            templates.sources.insert("default".into(), source.clone());
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                if let (Some(name), Some(source)) = (text("name"), text("template")) {
                    templates.sources.insert(name, source);
                }
            }
        }
        _ => {}
    }
    let mut files = vec![("default".to_owned(), dir.join("chat_template.jinja"))];
    if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|n| n.strip_suffix(".jinja"));
            if let Some(name) = name.map(str::to_owned) {
                files.push((name, path));
            }
        }
    }
    for (name, path) in files {
        match std::fs::read_to_string(&path) {
            Ok(source) => {
                templates.sources.insert(name, source);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => templates.unreadable = Some((path, e.to_string())),
        }
    }
    templates
}
