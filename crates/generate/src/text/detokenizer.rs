//! Token ids that arrive one by one into text: the same text as decoding them all at once; not stop strings.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

const REPLACEMENT: char = '\u{fffd}';

/// How the tokens of a vocabulary become text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decoding {
    /// Every character of a token stands for a byte (GPT-2).
    ByteLevel,
    /// Tokens are text, but for `<0xNN>`, which are bytes (SentencePiece).
    ByteFallback {
        /// Substitutions within a token, as `▁` by a space.
        replace: Vec<(String, String)>,
        /// This character is cut so many times from the start of the whole text.
        strip: Option<(char, usize)>,
    },
    /// Something else: the library decodes a window of tokens.
    Window,
}

impl Decoding {
    /// Chosen by the decoder of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a decoder that the library runs unsafely.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let Some(decoder) = tokenizer.get_decoder() else { return Ok(Self::Window) };
        let decoder = serde_json::to_value(decoder).map_err(super::tokenizer::message)?;
        let steps = match (kind(&decoder), decoder.get("decoders").and_then(Value::as_array)) {
            ("Sequence", Some(steps)) => steps.as_slice(),
            _ => std::slice::from_ref(&decoder),
        };
        if steps.iter().any(|step| kind(step) == "Strip" && step["stop"] != 0) {
            // The library's index underflows on tokens shorter than what is to be cut from their end.
            return Err(Error::Tokenizer { message: "a Strip decoder that cuts the end of tokens".into() });
        }
        if let [step] = steps
            && kind(step) == "ByteLevel"
        {
            return Ok(Self::ByteLevel);
        }
        Ok(byte_fallback(steps).unwrap_or(Self::Window))
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

/// `Replace.., ByteFallback`, then nothing, `Fuse`, or `Fuse, Strip`.
fn byte_fallback(steps: &[Value]) -> Option<Decoding> {
    let at = steps.iter().position(|step| kind(step) == "ByteFallback")?;
    let mut replace = Vec::new();
    for step in &steps[..at] {
        let pattern =
            step["pattern"]["String"].as_str().filter(|p| kind(step) == "Replace" && !p.is_empty())?;
        replace.push((pattern.to_owned(), step["content"].as_str()?.to_owned()));
    }
    let strip = match &steps[at + 1..] {
        [] => None,
        [fuse] if kind(fuse) == "Fuse" => None,
        [fuse, strip] if kind(fuse) == "Fuse" && kind(strip) == "Strip" => {
            let content = strip["content"].as_str()?.chars().next()?;
            Some((content, usize::try_from(strip["start"].as_u64()?).ok()?))
        }
        _ => return None,
    };
    Some(Decoding::ByteFallback { replace, strip })
}

/// A streaming decoder: the pieces it gives, put together, are what [`Tokenizer::decode`] gives for all ids.
///
/// A piece ends at a character's end, so text may come later than its last token. Byte tokens of a SentencePiece
/// vocabulary are held until a token that isn't one, since a single bad byte makes U+FFFD of all in the run.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    state: State,
    /// The piece given last.
    out: String,
}

#[derive(Debug)]
enum State {
    /// Bytes of a character that is not complete.
    ByteLevel {
        held: Vec<u8>,
    },
    ByteFallback(Run),
    Window(Window),
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        let state = State::new(tokenizer.decoding());
        Self { tokenizer, state, out: String::new() }
    }

    /// Takes the next id and gives the text that is now complete, which is often empty.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary's decoder refuses it.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.out.clear();
        if let Some(token) = self.tokenizer.decoded_token(id) {
            match &mut self.state {
                State::ByteLevel { held } => {
                    push_byte_level(&token, held);
                    emit_complete(held, &mut self.out);
                }
                State::ByteFallback(run) => run.push(token, self.tokenizer.decoding(), &mut self.out),
                State::Window(window) => window.push(id, &self.tokenizer, &mut self.out)?,
            }
        }
        Ok(&self.out)
    }

    /// Gives the text that was held back, U+FFFD for what never became a character, and starts anew.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary's decoder refuses it.
    pub fn finish(&mut self) -> Result<&str> {
        self.out.clear();
        match &mut self.state {
            State::ByteLevel { held } => self.out.push_str(&String::from_utf8_lossy(held)),
            State::ByteFallback(run) => run.flush(&mut self.out),
            State::Window(window) => window.flush(&self.tokenizer, &mut self.out)?,
        }
        self.state = State::new(self.tokenizer.decoding());
        Ok(&self.out)
    }
}

impl State {
    fn new(decoding: &Decoding) -> Self {
        match decoding {
            Decoding::ByteLevel => Self::ByteLevel { held: Vec::new() },
            Decoding::ByteFallback { strip, .. } => {
                Self::ByteFallback(Run { strip: *strip, ..Run::default() })
            }
            Decoding::Window => Self::Window(Window::default()),
        }
    }
}

/// The bytes that a token of a byte-level vocabulary stands for. A token with any other character is its own text.
fn push_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let table = byte_of_char();
    for c in token.chars() {
        match table.get(&c) {
            Some(byte) => bytes.push(*byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on.
fn byte_of_char() -> &'static HashMap<char, u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut next = 0x100;
        let mut table = HashMap::new();
        for byte in 0..=255_u8 {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let c = if printable { Some(char::from(byte)) } else { char::from_u32(next) };
            next += u32::from(!printable);
            table.extend(c.map(|c| (c, byte)));
        }
        table
    })
}

/// Moves all but the start of a character to `out`; what can't become one turns to U+FFFD.
fn emit_complete(bytes: &mut Vec<u8>, out: &mut String) {
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                rest = &[];
            }
            Err(e) => {
                let (valid, after) = rest.split_at(e.valid_up_to());
                out.push_str(&String::from_utf8_lossy(valid));
                rest = after;
                if let Some(bad) = e.error_len() {
                    out.push(REPLACEMENT);
                    rest = &rest[bad..];
                    continue;
                }
            }
        }
        let done = bytes.len() - rest.len();
        bytes.drain(..done);
        return;
    }
}

/// SentencePiece's tokens with the run of byte tokens they end with.
#[derive(Debug, Default)]
struct Run {
    bytes: Vec<u8>,
    /// So many of `bytes` are whole characters.
    checked: usize,
    /// The run has a byte that can't be, so each of its bytes is U+FFFD; those so far were given.
    broken: bool,
    strip: Option<(char, usize)>,
}

impl Run {
    fn push(&mut self, token: String, decoding: &Decoding, out: &mut String) {
        let mut token = token;
        if let Decoding::ByteFallback { replace, .. } = decoding {
            for (pattern, content) in replace {
                if token.contains(pattern.as_str()) {
                    token = token.replace(pattern.as_str(), content);
                }
            }
        }
        match byte_token(&token) {
            Some(_) if self.broken => self.emit(&REPLACEMENT.to_string(), out),
            Some(byte) => {
                self.bytes.push(byte);
                match std::str::from_utf8(&self.bytes[self.checked..]) {
                    Ok(_) => self.checked = self.bytes.len(),
                    Err(e) if e.error_len().is_none() => self.checked += e.valid_up_to(),
                    Err(_) => {
                        self.broken = true;
                        self.emit_replacements(out);
                    }
                }
            }
            None => {
                self.flush(out);
                self.emit(&token, out);
            }
        }
    }

    fn flush(&mut self, out: &mut String) {
        self.broken = false;
        self.checked = 0;
        let bytes = std::mem::take(&mut self.bytes);
        match String::from_utf8(bytes) {
            Ok(text) => self.emit(&text, out),
            Err(e) => {
                self.bytes = e.into_bytes();
                self.emit_replacements(out);
            }
        }
    }

    fn emit_replacements(&mut self, out: &mut String) {
        let text = REPLACEMENT.to_string().repeat(self.bytes.len());
        self.bytes.clear();
        self.checked = 0;
        self.emit(&text, out);
    }

    /// Cuts what is to be cut from the start of the whole text.
    fn emit(&mut self, text: &str, out: &mut String) {
        let mut rest = text;
        while let Some((content, left)) = self.strip {
            if left == 0 {
                self.strip = None;
            } else if let Some(cut) = rest.strip_prefix(content) {
                self.strip = Some((content, left - 1));
                rest = cut;
            } else if rest.is_empty() {
                return;
            } else {
                self.strip = None;
            }
        }
        out.push_str(rest);
    }
}

/// The byte of `<0xNN>`. Two hexadecimal digits in the library's reading, which takes a sign for the first.
fn byte_token(token: &str) -> Option<u8> {
    if token.len() != 6 {
        return None;
    }
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// The ids since the text given last, and those before that their decoding depends on.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<u32>,
    /// So many of `ids` have been given as text ..
    given: usize,
    /// .. which is this.
    text: String,
}

impl Window {
    fn push(&mut self, id: u32, tokenizer: &Tokenizer, out: &mut String) -> Result<()> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        let Some(new) = text.strip_prefix(self.text.as_str()) else { return Ok(()) };
        if text.ends_with(REPLACEMENT) || new.is_empty() {
            return Ok(());
        }
        out.push_str(new);
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.text = tokenizer.decode(&self.ids)?;
        Ok(())
    }

    fn flush(&mut self, tokenizer: &Tokenizer, out: &mut String) -> Result<()> {
        let text = tokenizer.decode(&self.ids)?;
        out.push_str(text.strip_prefix(self.text.as_str()).unwrap_or_default());
        Ok(())
    }
}
