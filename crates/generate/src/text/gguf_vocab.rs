//! A tokenizer from the vocabulary in a GGUF file's metadata; not a reader of the file.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer>. Token types are those of
//! SentencePiece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.

use std::collections::BTreeMap;

use rillm_nn::Gguf;
use rillm_nn::weights::Texts;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper};

use super::pre_tokenizer::{NormalForm, PreTokenizer, WholeTokens};
use super::tokenizer::{Named, Templates, Tokenizer, message, surround};
use crate::error::{Error, Result};

const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Longer pieces are not taken apart: finding their halves would take the square of their length.
const MAX_PIECE: usize = 1024;

/// Control tokens that end an answer, whether or not the file says so.
const ENDS: [&str; 11] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
];

/// The vocabulary of a GGUF file, each field the key of its name under `tokenizer.ggml`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level merges), `llama` (SentencePiece), or `gemma4` (SentencePiece with the merges of `gpt2`).
    pub model: String,
    /// How `gpt2` splits text before merging; `default` if absent.
    pub pre: Option<String>,
    /// The spelling of each token.
    pub tokens: Texts,
    /// The score of each token of `llama`: higher ones are merged first.
    pub scores: Vec<f32>,
    /// The type of each token; all normal if empty.
    pub token_types: Vec<i64>,
    /// The merges of `gpt2` and `gemma4`, two spellings with a space between, best first.
    pub merges: Texts,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The tokens that end an answer.
    pub eos: Vec<u32>,
    /// The token for what has no token.
    pub unk: Option<u32>,
    /// Whether a text gets a BOS; the kind's habit if absent.
    pub add_bos: Option<bool>,
    /// Whether a text gets an EOS; none if absent.
    pub add_eos: Option<bool>,
    /// Whether `llama` puts a space before a text; it does if absent.
    pub add_space_prefix: Option<bool>,
    /// Chat templates by name; the main one is `default`.
    pub chat_templates: BTreeMap<String, String>,
}

impl GgufVocab {
    /// Reads the metadata of a file.
    ///
    /// # Errors
    /// [`Error::Model`] if a key is missing or of another type than it should be.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| Ok::<_, Error>(gguf.strings(&key(name))?.cloned());
        let token = |name: &str| -> Result<Option<u32>> {
            Ok(gguf.usize(&key(name))?.and_then(|id| u32::try_from(id).ok()))
        };
        let model = gguf.require(&key("model"), gguf.str(&key("model"))?)?.to_owned();
        let tokens = gguf.require(&key("tokens"), strings("tokens")?)?;
        let mut chat_templates = BTreeMap::new();
        let names = gguf.strings("tokenizer.chat_templates")?;
        let names = names.into_iter().flat_map(Texts::iter);
        let named = names.map(|name| (name, format!("tokenizer.chat_template.{name}")));
        for (name, key) in named.chain([("default", "tokenizer.chat_template".to_owned())]) {
            if let Some(source) = gguf.str(&key)? {
                chat_templates.insert(name.to_owned(), source.to_owned());
            }
        }
        let mut eos = Vec::new();
        for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            eos.extend(token(name)?);
        }
        Ok(Self {
            model,
            pre: gguf.str(&key("pre"))?.map(str::to_owned),
            tokens,
            scores: gguf.floats(&key("scores"))?.unwrap_or_default(),
            token_types: gguf.integers(&key("token_type"))?.unwrap_or_default(),
            merges: strings("merges")?.unwrap_or_default(),
            bos: token("bos_token_id")?,
            eos,
            unk: token("unknown_token_id")?,
            add_bos: gguf.bool(&key("add_bos_token"))?,
            add_eos: gguf.bool(&key("add_eos_token"))?,
            add_space_prefix: gguf.bool(&key("add_space_prefix"))?,
            chat_templates,
        })
    }

    /// Whether a text gets a BOS and an EOS.
    fn ends(&self, adds_bos: bool) -> (bool, bool) {
        (self.add_bos.unwrap_or(adds_bos), self.add_eos.unwrap_or(false))
    }

    fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        let error = |message: String| Err(Error::GgufVocab { message });
        if count == 0 || u32::try_from(count).is_err() {
            return error(format!("wanted 1 to 2^32 tokens, got {count}"));
        }
        for (name, got) in [("scores", self.scores.len()), ("token_type", self.token_types.len())] {
            if got != 0 && got != count {
                return error(format!("{name}: wanted one for each of {count} tokens, got {got}"));
            }
        }
        for id in self.bos.iter().chain(&self.eos).chain(&self.unk) {
            if *id as usize >= count {
                return error(format!("token {id} is outside the vocabulary of {count}"));
            }
        }
        Ok(())
    }

    fn kind(&self, id: usize) -> i64 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    fn spelling(&self, id: Option<u32>) -> Option<(&str, u32)> {
        let id = id?;
        Some((self.tokens.get(id as usize)?, id))
    }

    fn ids(&self) -> Vocab {
        self.tokens.iter().zip(0..).map(|(token, id)| (token.to_owned(), id)).collect()
    }

    /// Byte-level merges: GPT-2 and its many descendants.
    fn byte_level(&self, pre: &PreTokenizer) -> Result<tokenizers::Tokenizer> {
        let ids = self.ids();
        let merges = self.listed_merges(&ids);
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(pre.whole_tokens == WholeTokens::Keep)
            .build()
            .map_err(message)?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        if pre.normal_form == NormalForm::Composed {
            tokenizer.with_normalizer(Some(normalizer(json!({"type": "NFC"}))?)).map_err(message)?;
        }
        tokenizer.with_pre_tokenizer(Some(pre.build()?));
        tokenizer.with_decoder(Some(decoder(
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        )?));
        Ok(tokenizer)
    }

    /// The merges of the file, those of tokens that there are.
    fn listed_merges(&self, ids: &Vocab) -> Vec<(String, String)> {
        let known = |pair: &(String, String)| {
            let whole = format!("{}{}", pair.0, pair.1);
            [&pair.0, &pair.1, &whole].into_iter().all(|token| ids.contains_key(token))
        };
        let pairs = self.merges.iter().filter_map(|merge| {
            let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
            Some((merge[..space].to_owned(), merge[space + 1..].to_owned()))
        });
        pairs.filter(known).collect()
    }

    /// SentencePiece's BPE: the best-scored piece that two neighbours make is merged first.
    fn scored(&self) -> Result<tokenizers::Tokenizer> {
        if self.scores.is_empty() {
            return Err(Error::GgufVocab { message: "tokenizer.ggml.scores is missing".into() });
        }
        let ids = self.ids();
        let merges = self.scored_merges(&ids);
        self.sentence_piece(ids, merges, self.add_space_prefix.unwrap_or(true))
    }

    /// SentencePiece's pieces, merged as the file lists them.
    fn listed(&self) -> Result<tokenizers::Tokenizer> {
        if self.merges.is_empty() {
            return Err(Error::GgufVocab { message: "tokenizer.ggml.merges is missing".into() });
        }
        let ids = self.ids();
        let merges = self.listed_merges(&ids);
        self.sentence_piece(ids, merges, false)
    }

    /// Pieces in which a space is a letter; what has no piece falls back to bytes.
    fn sentence_piece(
        &self,
        ids: Vocab,
        merges: Vec<(String, String)>,
        prefixed: bool,
    ) -> Result<tokenizers::Tokenizer> {
        let mut model = BPE::builder().vocab_and_merges(ids, merges).fuse_unk(true).byte_fallback(true);
        if let Some((unk, _)) = self.spelling(self.unk) {
            model = model.unk_token(unk.to_owned());
        }
        let mut tokenizer = tokenizers::Tokenizer::new(model.build().map_err(message)?);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut before = vec![spaces];
        let mut after = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefixed {
            before.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            after.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let before = normalizer(json!({"type": "Sequence", "normalizers": before}))?;
        tokenizer.with_normalizer(Some(before)).map_err(message)?;
        tokenizer.with_decoder(Some(decoder(json!({"type": "Sequence", "decoders": after}))?));
        Ok(tokenizer)
    }

    /// All pairs of pieces that make a piece, best score first; among equals the longer left piece, then the
    /// longer right one, as transformers orders them.
    fn scored_merges(&self, ids: &Vocab) -> Vec<(String, String)> {
        let normal = |piece: &str| ids.get(piece).is_some_and(|id| self.kind(*id as usize) == NORMAL);
        let mut merges: Vec<(f32, &str, &str)> = Vec::new();
        for (id, piece) in self.tokens.iter().enumerate() {
            if self.kind(id) != NORMAL || piece.len() > MAX_PIECE {
                continue;
            }
            let score = self.scores.get(id).copied().unwrap_or(0.0);
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if normal(left) && normal(right) {
                    merges.push((score, left, right));
                }
            }
        }
        let length = |text: &str| text.chars().count();
        merges.sort_by(|a, b| {
            let scores = b.0.total_cmp(&a.0);
            scores.then_with(|| (length(b.1), length(b.2)).cmp(&(length(a.1), length(a.2))))
        });
        merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
    }

    /// Tokens that are found in a text before anything else.
    fn added_tokens(&self) -> Vec<AddedToken> {
        // Phi-3's role tokens swallow the white space after them; its files have no key for that.
        let phi3 = self.model == "llama" && self.tokens.iter().any(|token| token == "<|placeholder1|>");
        let plain = ["<unk>", "<s>", "<|endoftext|>"];
        let tokens = self.tokens.iter().enumerate().map(|(id, token)| (self.kind(id), token));
        tokens
            .filter(|(kind, token)| matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty())
            .map(|(kind, token)| {
                AddedToken::from(token, kind != USER_DEFINED)
                    .normalized(false)
                    .rstrip(phi3 && !plain.contains(&token))
            })
            .collect()
    }

    fn named(&self) -> Named {
        let mut eos = self.eos.clone();
        // The harmony format closes every message with <|end|>, and an answer may have several.
        let harmony = self.tokens.iter().any(|token| token == "<|return|>");
        for (token, id) in self.tokens.iter().zip(0..) {
            let ends = ENDS.contains(&token) && self.kind(id as usize) == CONTROL;
            if ends && !(harmony && token == "<|end|>") {
                eos.push(id);
            }
        }
        let mut seen = std::collections::HashSet::new();
        eos.retain(|id| seen.insert(*id));
        let roles =
            [("bos_token", self.bos), ("eos_token", self.eos.first().copied()), ("unk_token", self.unk)];
        let spelled = roles
            .into_iter()
            .filter_map(|(role, id)| Some((role.to_owned(), self.spelling(id)?.0.to_owned())))
            .collect();
        Named { bos: self.bos, eos, unk: self.unk, spelled }
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file's vocabulary.
    ///
    /// # Errors
    /// [`Error::GgufVocab`] if the fields don't fit together or the model is not a known one,
    /// [`Error::UnknownPreTokenizer`] if its way of splitting is unknown.
    pub fn from_gguf_vocab(vocab: &GgufVocab) -> Result<Self> {
        vocab.check()?;
        let (mut tokenizer, adds_bos) = match vocab.model.as_str() {
            "gpt2" => {
                let pre = PreTokenizer::named(vocab.pre.as_deref().unwrap_or("default"))?;
                (vocab.byte_level(pre)?, pre.adds_bos)
            }
            "llama" => (vocab.scored()?, true),
            "gemma4" => (vocab.listed()?, true),
            model => {
                let message = format!("tokenizer.ggml.model: wanted gpt2, llama or gemma4, got {model:?}");
                return Err(Error::GgufVocab { message });
            }
        };
        tokenizer.add_tokens(vocab.added_tokens()).map_err(message)?;
        let (bos, eos) = vocab.ends(adds_bos);
        // The first files say no, and are wrong.
        let bos = bos || vocab.model == "gemma4";
        let bos = vocab.spelling(vocab.bos).filter(|_| bos);
        let eos = vocab.spelling(vocab.eos.first().copied()).filter(|_| eos);
        tokenizer.with_post_processor(Some(surround(bos, eos)?));
        let templates = Templates {
            sources: vocab.chat_templates.clone(),
            unreadable: None,
            looked_in: "tokenizer.chat_template of the GGUF file".into(),
        };
        Tokenizer::new(tokenizer, vocab.named(), templates)
    }

    /// Builds the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// Those of [`GgufVocab::read`] and [`from_gguf_vocab`](Self::from_gguf_vocab).
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::from_gguf_vocab(&GgufVocab::read(gguf)?)
    }
}

fn normalizer(spec: Value) -> Result<NormalizerWrapper> {
    serde_json::from_value(spec).map_err(message)
}

fn decoder(spec: Value) -> Result<DecoderWrapper> {
    serde_json::from_value(spec).map_err(message)
}
