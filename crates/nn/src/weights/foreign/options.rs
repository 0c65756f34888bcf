//! The options of a `quantization_config`, read key by key. An option of a value that is not known is an error that
//! names it.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// An object of the configuration, and where it is.
pub(super) struct Options<'a> {
    place: String,
    map: &'a Map<String, Value>,
}

impl<'a> Options<'a> {
    pub(super) fn new(place: &str, map: &'a Map<String, Value>) -> Self {
        Self { place: place.to_owned(), map }
    }

    /// The value of `key`; null is the same as none.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn wrong(&self, key: &str, want: &'static str) -> Error {
        let mut got = self.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        if let Some((at, _)) = got.char_indices().nth(120) {
            got.truncate(at);
            got.push('…');
        }
        Error::QuantizationOption { method: self.place.clone(), key: key.to_owned(), want, got }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string"))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// One of `known`, whatever its case.
    pub(super) fn one_of(
        &self,
        key: &str,
        default: &'static str,
        known: &[&'static str],
        want: &'static str,
    ) -> Result<&'static str> {
        let Some(text) = self.text(key)? else { return Ok(default) };
        let found = known.iter().find(|k| k.eq_ignore_ascii_case(text));
        found.copied().ok_or_else(|| self.wrong(key, want))
    }

    /// A number of bits.
    pub(super) fn bits(&self, key: &str, known: &[u32], want: &'static str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let bits = value.as_u64().and_then(|n| known.iter().find(|k| u64::from(**k) == n));
        bits.map(|b| Some(*b)).ok_or_else(|| self.wrong(key, want))
    }

    /// A group size; `None` for -1, which means the whole row.
    pub(super) fn group(&self, key: &str, default: usize) -> Result<Option<usize>> {
        let wrong = || self.wrong(key, "a group size, or -1 for whole rows");
        match self.get(key) {
            None => Ok(Some(default)),
            Some(v) if v.as_i64() == Some(-1) => Ok(None),
            Some(v) => {
                let n = v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
                n.map(Some).ok_or_else(wrong)
            }
        }
    }

    /// Rows and columns of a block.
    pub(super) fn block(&self, key: &str) -> Result<Option<[usize; 2]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let side = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        match value.as_array().map(|a| a.iter().map(side).collect::<Vec<_>>()).as_deref() {
            Some([Some(height), Some(width)]) => Ok(Some([*height, *width])),
            _ => Err(self.wrong(key, "two sizes")),
        }
    }

    /// Strings, if there are any.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value
            .as_array()
            .and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// An object inside, if there is one.
    pub(super) fn object(&self, key: &str) -> Result<Option<Options<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, "an object"))?;
        Ok(Some(Options { place: format!("{}: {key}", self.place), map }))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// What would change the result and is not done: `key` must be absent, false or empty.
    pub(super) fn refuse(&self, key: &str) -> Result<()> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(Value::Array(list)) if list.is_empty() => Ok(()),
            Some(_) => Err(self.wrong(key, "nothing: this is not supported")),
        }
    }
}
