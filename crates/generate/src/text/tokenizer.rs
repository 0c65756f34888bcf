//! Text to token ids and back, as transformers' fast tokenizers do it; where the vocabulary comes from is
//! `folder.rs` and `gguf_vocab.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokenizers::PostProcessorWrapper;

use super::detokenizer::{Decoding, Detokenizer};
use super::template::ChatTemplate;
use crate::error::{Error, Result};

/// Whether special tokens are put around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Those the model was trained with: usually a BOS in front, none if the text begins with it already.
    Add,
    /// None, as for a text that a chat template has made.
    Skip,
}

/// A vocabulary and its rules. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

/// What all clones of a tokenizer share.
struct Shared {
    tokenizer: tokenizers::Tokenizer,
    decoding: Decoding,
    named: Named,
    adds_bos: bool,
    templates: Templates,
}

/// Tokens with a role, and their spellings as templates see them (`bos_token`, `eos_token`, ..).
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
    pub(super) unk: Option<u32>,
    pub(super) spelled: BTreeMap<String, String>,
}

/// Sources of chat templates by name; read where a file could be read.
#[derive(Debug, Default)]
pub(super) struct Templates {
    pub(super) sources: BTreeMap<String, String>,
    /// A template file that could not be read, and why: an error once a chat is asked for.
    pub(super) unreadable: Option<(PathBuf, String)>,
    /// Where templates were looked for.
    pub(super) looked_in: String,
}

impl Tokenizer {
    pub(super) fn new(
        mut tokenizer: tokenizers::Tokenizer,
        named: Named,
        templates: Templates,
    ) -> Result<Self> {
        // tokenizer.json may hold the padding and truncation of a training run.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(message)?;
        let decoding = Decoding::of(&tokenizer)?;
        let around = tokenizer.encode_fast("", true).map_err(message)?;
        let adds_bos = named.bos.is_some() && around.get_ids().first().copied() == named.bos;
        Ok(Self { shared: Arc::new(Shared { tokenizer, decoding, named, adds_bos, templates }) })
    }

    /// The ids of `text`. Special tokens that are spelled out in it become their ids.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary has no token for a part of the text.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let bos = self.shared.named.spelled.get("bos_token");
        let add = special == Special::Add && !bos.is_some_and(|bos| text.starts_with(bos.as_str()));
        let encoding = self.shared.tokenizer.encode_fast(text, add).map_err(message)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids` without its special tokens. Ids outside the vocabulary have no text; bytes that are
    /// not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.shared.tokenizer.decode(ids, true).map_err(message)
    }

    /// A decoder of ids that arrive one by one.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }

    /// The spelling of a token in the vocabulary, which is not its text (`Ġthe`, `▁the`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.id_to_token(id)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.shared.tokenizer.token_to_id(token)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.shared.named.bos
    }

    /// The tokens that end an answer, as far as the tokenizer knows; a checkpoint's configuration may name more.
    pub fn eos(&self) -> &[u32] {
        &self.shared.named.eos
    }

    /// The token for what has no token.
    pub fn unk(&self) -> Option<u32> {
        self.shared.named.unk
    }

    /// Whether [`Special::Add`] puts a BOS in front.
    pub fn adds_bos(&self) -> bool {
        self.shared.adds_bos
    }

    /// Number of tokens, added ones included. A model's head may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.shared.tokenizer.get_vocab_size(true)
    }

    /// The model's chat template, compiled.
    ///
    /// # Errors
    /// [`Error::MissingTemplate`] if there is none, [`Error::TokenizerFile`] if its file can't be read,
    /// [`Error::Template`] if it is not a template.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let templates = &self.shared.templates;
        if let Some((path, message)) = &templates.unreadable {
            return Err(Error::TokenizerFile { path: path.clone(), message: message.clone() });
        }
        if templates.sources.is_empty() {
            return Err(Error::MissingTemplate { detail: templates.looked_in.clone() });
        }
        let sources = templates.sources.iter().map(|(name, source)| (name.as_str(), source.as_str()));
        ChatTemplate::named(sources, self.shared.named.spelled.clone())
    }

    pub(super) fn decoding(&self) -> &Decoding {
        &self.shared.decoding
    }

    /// What a decoder is given for `id`; nothing for special tokens and ids without one.
    pub(super) fn decoded_token(&self, id: u32) -> Option<String> {
        use tokenizers::Model;
        let added = self.shared.tokenizer.get_added_vocabulary();
        let token =
            added.simple_id_to_token(id).or_else(|| self.shared.tokenizer.get_model().id_to_token(id));
        token.filter(|token| !added.is_special_token(token))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("named", &self.shared.named)
            .field("adds_bos", &self.shared.adds_bos)
            .field("decoding", &self.shared.decoding)
            .finish_non_exhaustive()
    }
}

/// A post-processor that puts `bos` before and `eos` after a text.
pub(super) fn surround(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Result<PostProcessorWrapper> {
    let special = |token: (&str, u32), kind: u32| json!({"SpecialToken": {"id": token.0, "type_id": kind}});
    let pieces = |name: &str, kind: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        bos.map(|t| special(t, kind)).into_iter().chain([text]).chain(eos.map(|t| special(t, kind))).collect()
    };
    let tokens: BTreeMap<&str, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|(token, id)| (token, json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let single = pieces("A", 0);
    let pair: Vec<Value> = single.iter().cloned().chain(pieces("B", 1)).collect();
    serde_json::from_value(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens,
    }))
    .map_err(message)
}

pub(super) fn message(error: impl fmt::Display) -> Error {
    Error::Tokenizer { message: error.to_string() }
}
