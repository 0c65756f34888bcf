//! When a text ends: end tokens, stop strings, and the reason that is reported. Making text of tokens is the
//! detokenizer's.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum FinishReason {
    /// The model ended the text with one of the [`StopTokens`].
    #[serde(rename = "stop")]
    Stop,
    /// The text came to one of the [`StopStrings`].
    #[serde(rename = "stop")]
    StopString,
    /// The number of tokens asked for was reached.
    #[serde(rename = "length")]
    Length,
    /// The model's context is full.
    #[serde(rename = "length")]
    Context,
    /// The caller ended it.
    #[serde(rename = "cancelled")]
    Cancelled,
}

impl fmt::Display for FinishReason {
    /// The name that mlx-lm and OpenAI's API use: `stop` or `length`, and `cancelled`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FinishReason::Stop | FinishReason::StopString => "stop",
            FinishReason::Length | FinishReason::Context => "length",
            FinishReason::Cancelled => "cancelled",
        })
    }
}

/// `eos_token_id` of config.json and generation_config.json: one id or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EosTokenId {
    /// One id. Some checkpoints write -1 for none.
    One(i64),
    /// Several ids.
    Many(Vec<i64>),
}

impl EosTokenId {
    /// The ids; those that can't be a token's are left out.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let ids = match self {
            EosTokenId::One(id) => std::slice::from_ref(id),
            EosTokenId::Many(ids) => ids,
        };
        ids.iter().filter_map(|&id| u32::try_from(id).ok())
    }
}

/// The tokens that end a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopTokens {
    /// Ascending, each once.
    ids: Vec<u32>,
}

impl StopTokens {
    /// The end tokens of a checkpoint: those of generation_config.json, or of config.json if that names none,
    /// and the tokenizer's.
    pub fn of_checkpoint(
        generation_config: Option<&EosTokenId>,
        config: Option<&EosTokenId>,
        tokenizer: Option<u32>,
    ) -> Self {
        let named = generation_config.or(config);
        named.into_iter().flat_map(EosTokenId::ids).chain(tokenizer).collect()
    }

    /// Whether `token` ends the text.
    pub fn contains(&self, token: u32) -> bool {
        self.ids.binary_search(&token).is_ok()
    }

    /// The ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

impl Extend<u32> for StopTokens {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, ids: I) {
        self.ids.extend(ids);
        self.ids.sort_unstable();
        self.ids.dedup();
    }
}

impl FromIterator<u32> for StopTokens {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut tokens = StopTokens::default();
        tokens.extend(ids);
        tokens
    }
}

/// Finds stop strings in a text that arrives in pieces, and holds back what could be the start of one.
///
/// The text ends before the occurrence that is complete first; of several that end at the same place the
/// longest counts. That does not depend on how the text is cut into pieces.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// The end of the text so far, as long as the longest match in progress.
    held: String,
    found: Option<usize>,
}

/// A stop string and how much of it the text ends with (Knuth, Morris and Pratt, 1977).
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// `border[i]`: length of the longest proper prefix of `bytes[..=i]` that also ends it.
    border: Vec<usize>,
    matched: usize,
}

impl StopStrings {
    /// Looks for each of `strings`; with none all text passes.
    ///
    /// # Errors
    /// [`Error::Option`] if one is empty.
    pub fn new<S: AsRef<str>>(strings: impl IntoIterator<Item = S>) -> Result<Self> {
        let patterns = strings.into_iter().map(|s| Pattern::new(s.as_ref())).collect::<Result<_>>()?;
        Ok(StopStrings { patterns, held: String::new(), found: None })
    }

    /// Takes the next piece of the text and appends to `out` what is certain to come before any stop string.
    /// Returns the index of the stop string once one was found; nothing is emitted from then on.
    pub fn feed(&mut self, piece: &str, out: &mut String) -> Option<usize> {
        if self.found.is_some() || self.patterns.is_empty() {
            if self.found.is_none() {
                out.push_str(piece);
            }
            return self.found;
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            self.patterns.iter_mut().for_each(|pattern| pattern.advance(byte));
            let complete = self.patterns.iter().enumerate().filter(|(_, p)| p.matched == p.bytes.len());
            if let Some((index, pattern)) = complete.max_by_key(|(_, p)| p.matched) {
                self.found = Some(index);
                // An occurrence lies within the held text: it was a match in progress when its start came.
                self.held.truncate(before + i + 1 - pattern.bytes.len());
                self.release(0, out);
                return self.found;
            }
        }
        let keep = self.patterns.iter().map(|p| p.matched).max().unwrap_or(0);
        self.release(keep, out);
        None
    }

    /// Ends the text: appends what was held back to `out`, and begins a new text.
    pub fn finish(&mut self, out: &mut String) {
        self.release(0, out);
        self.found = None;
        self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
    }

    /// Moves all but the last `keep` bytes held to `out`. They begin like a stop string, so they start at a
    /// character.
    fn release(&mut self, keep: usize, out: &mut String) {
        out.extend(self.held.drain(..self.held.len() - keep));
    }
}

impl Pattern {
    fn new(string: &str) -> Result<Self> {
        if string.is_empty() {
            return Err(Error::Option {
                name: "stop",
                want: "strings that are not empty",
                got: "\"\"".into(),
            });
        }
        let bytes = string.as_bytes().to_vec();
        let mut border = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            let mut length = border[i - 1];
            while length > 0 && bytes[i] != bytes[length] {
                length = border[length - 1];
            }
            border[i] = length + usize::from(bytes[i] == bytes[length]);
        }
        Ok(Pattern { bytes, border, matched: 0 })
    }

    /// Takes the next byte of a text that has no complete occurrence yet.
    fn advance(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Rng;

    #[test]
    fn reasons_have_the_names_of_mlx_lm() {
        for (reason, name) in [
            (FinishReason::Stop, "stop"),
            (FinishReason::StopString, "stop"),
            (FinishReason::Length, "length"),
            (FinishReason::Context, "length"),
            (FinishReason::Cancelled, "cancelled"),
        ] {
            assert_eq!(reason.to_string(), name);
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{name}\""));
        }
    }

    #[test]
    fn stop_tokens_prefer_generation_config_and_add_the_tokenizers() {
        let many: EosTokenId = serde_json::from_str("[7, 3, 7]").unwrap();
        let one: EosTokenId = serde_json::from_str("5").unwrap();
        let none: EosTokenId = serde_json::from_str("-1").unwrap();
        let of = StopTokens::of_checkpoint;
        assert_eq!(of(Some(&many), Some(&one), Some(9)).ids(), [3, 7, 9]);
        assert_eq!(of(None, Some(&one), Some(5)).ids(), [5]);
        assert_eq!(of(Some(&none), None, None).ids(), [0u32; 0]);
        let mut tokens = of(None, Some(&one), None);
        tokens.extend([1, 5]);
        assert!(tokens.contains(1) && tokens.contains(5) && !tokens.contains(3));
    }

    /// Feeds `pieces`; the text emitted and which stop string ended it. Checks what is held along the way.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut strings = StopStrings::new(stops).unwrap();
        let (mut out, mut fed) = (String::new(), String::new());
        for piece in pieces {
            fed.push_str(piece);
            let found = strings.feed(piece, &mut out);
            assert!(fed.starts_with(&out));
            if found.is_some() {
                assert_eq!(strings.feed("more", &mut out), found);
                let end = out.clone();
                strings.finish(&mut out);
                assert_eq!(out, end, "nothing follows a stop string");
                return (out, found);
            }
            let held = &fed[out.len()..];
            let begins = |text: &str| stops.iter().any(|s| s.starts_with(text));
            assert!(held.is_empty() || begins(held), "held {held:?} for no reason");
            let longer = fed.char_indices().map(|(i, _)| &fed[i..]).find(|text| begins(text)).unwrap_or("");
            assert_eq!(held, longer, "exactly the longest possible start is held");
        }
        strings.finish(&mut out);
        assert_eq!(out, fed);
        (out, None)
    }

    /// By definition: the occurrence with the first end, of those the longest.
    fn naive(stops: &[&str], text: &str) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let complete =
                stops.iter().enumerate().filter(|(_, s)| text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some((index, stop)) = complete.max_by_key(|(_, s)| s.len()) {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        assert_eq!(run(&["</s>"], &["Hello <", "/", "s> more"]), ("Hello ".into(), Some(0)));
        assert_eq!(run(&["</s>"], &["a <", "/x"]), ("a </x".into(), None));
        assert_eq!(run(&["\n\n"], &["one\n", "two\n", "\nthree"]), ("one\ntwo".into(), Some(0)));
        assert_eq!(run(&["aab"], &["aa", "ab"]), ("a".into(), Some(0)));
        assert_eq!(run(&["abcd", "bc"], &["xab", "c", "d"]), ("xa".into(), Some(1)));
        assert_eq!(run(&["c", "abc"], &["ab", "c"]), (String::new(), Some(1)));
        assert_eq!(run(&["终止"], &["好终", "止"]), ("好".into(), Some(0)));
        assert_eq!(run(&[], &["any", "thing"]), ("anything".into(), None));
    }

    #[test]
    fn a_new_text_begins_after_finish() {
        let mut strings = StopStrings::new(["ab"]).unwrap();
        let mut out = String::new();
        assert_eq!(strings.feed("xa", &mut out), None);
        strings.finish(&mut out);
        assert_eq!(strings.feed("b", &mut out), None);
        assert_eq!(out, "xab");
        assert_eq!(strings.feed("ab", &mut out), Some(0));
    }

    #[test]
    fn an_empty_stop_string_is_an_error() {
        assert!(matches!(StopStrings::new(["a", ""]), Err(Error::Option { name: "stop", .. })));
    }

    /// Texts and stop strings over a small alphabet, so that they overlap in every way, cut at random.
    #[test]
    fn random_cuts_agree_with_a_search_of_the_whole_text() {
        let mut draws = (0..).map(|step| Rng::new(11).bits(step, 0)[0] as usize);
        let mut below = |n: usize| draws.next().unwrap() % n;
        let mut found = 0;
        for _ in 0..4000 {
            let mut word = |length: usize| -> String {
                (0..length).map(|_| ['a', 'b', 'é', '止'][below(4) * below(2)]).collect()
            };
            let text = word(40);
            let stops: Vec<String> = [1 + text.len() % 5, 4, 7].map(&mut word).into();
            let stops: Vec<&str> = stops[text.len() % 3..].iter().map(String::as_str).collect();
            let mut pieces = Vec::new();
            let mut rest = text.as_str();
            while let Some((end, _)) = rest.char_indices().nth(below(6)) {
                let (piece, others) = rest.split_at(end);
                pieces.push(piece);
                rest = others;
            }
            pieces.push(rest);
            let got = run(&stops, &pieces);
            assert_eq!(got, naive(&stops, &text), "{stops:?} in {pieces:?}");
            found += usize::from(got.1.is_some());
        }
        assert!((1000..3900).contains(&found), "both outcomes are tested: {found}");
    }
}
