//! The text part of a checkpoint that also sees or hears: its configuration and its parameters. Builds no model.

use std::collections::BTreeSet;

use rillm_nn::{Result, WeightSource};
use rillm_quant::RawTensor;
use serde_json::Value;

/// `config` as its text part's: the object `text_config` with what only the whole configuration says, if there is one.
/// Whether the embedding is the head, `source` tells: the configurations disagree.
pub fn text_config<S: WeightSource>(config: &Value, source: &TextPart<S>) -> Option<Value> {
    let whole = config.as_object()?;
    let mut text = whole.get("text_config")?.as_object()?.clone();
    if text.get("model_type").is_none_or(Value::is_null) {
        let name = whole.get("model_type")?.as_str()?;
        text.insert("model_type".to_owned(), format!("{name}_text").into());
    }
    let tied = !source.names().iter().any(|name| name == "lm_head.weight");
    text.insert("tie_word_embeddings".to_owned(), tied.into());
    for key in ["eos_token_id", "bos_token_id", "quantization", "quantization_config"] {
        if let (None, Some(value)) = (text.get(key), whole.get(key)) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    Some(Value::Object(text))
}

/// Where the text part's parameters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// `language_model.model.` and `language_model.lm_head.`: mlx-lm, and transformers before 4.52.
    Whole,
    /// `model.language_model.` and `lm_head.`: transformers since.
    Inner,
    /// There are no other parts.
    Alone,
}

/// A checkpoint of which only the text part is there.
pub struct TextPart<S> {
    source: S,
    place: Place,
}

impl<S: WeightSource> TextPart<S> {
    /// The text part of `source`.
    pub fn new(source: S) -> Self {
        let names = source.names();
        let any = |prefix: &str| names.iter().any(|n| n.starts_with(prefix));
        let place = match (any("language_model."), any("model.language_model.")) {
            (true, _) => Place::Whole,
            (_, true) => Place::Inner,
            _ => Place::Alone,
        };
        Self { source, place }
    }

    /// The modules whose parameters are left out, each once, in alphabetical order.
    pub fn left_out(&self) -> Vec<String> {
        let others = self.source.names().into_iter().filter(|n| self.of_text(n).is_none());
        let module = |name: String| {
            let parts: Vec<&str> = name.split('.').collect();
            let depth = if parts.first() == Some(&"model") { 2 } else { 1 };
            parts[..depth.min(parts.len())].join(".")
        };
        others.map(module).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn stored(&self, name: &str) -> String {
        match (self.place, name.strip_prefix("model.")) {
            (Place::Whole, _) => format!("language_model.{name}"),
            (Place::Inner, Some(rest)) => format!("model.language_model.{rest}"),
            _ => name.to_owned(),
        }
    }

    /// The text part's name of a stored one; `None` for other parts'.
    fn of_text(&self, stored: &str) -> Option<String> {
        match self.place {
            Place::Whole => stored.strip_prefix("language_model.").map(str::to_owned),
            Place::Inner => match stored.strip_prefix("model.language_model.") {
                Some(rest) => Some(format!("model.{rest}")),
                None => Some(stored.to_owned()).filter(|n| n.starts_with("lm_head.")),
            },
            Place::Alone => Some(stored.to_owned()),
        }
    }
}

impl<S: WeightSource> WeightSource for TextPart<S> {
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        self.source.get(&self.stored(name))
    }

    fn get_shaped(&self, name: &str, want: &[usize]) -> Result<Option<RawTensor<'_>>> {
        self.source.get_shaped(&self.stored(name), want)
    }

    fn stored_name(&self, name: &str) -> String {
        self.source.stored_name(&self.stored(name))
    }

    fn release(&self, bytes: &[u8]) {
        self.source.release(bytes);
    }

    fn names(&self) -> Vec<String> {
        self.source.names().iter().filter_map(|n| self.of_text(n)).collect()
    }
}
