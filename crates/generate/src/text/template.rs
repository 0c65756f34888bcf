//! Chat templates: messages into the prompt text a model was trained on, as transformers renders them; not tokenization.

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{python, strftime};
use crate::error::{Error, Result};

/// Names under which a message's reasoning is passed; the first is the one templates read today.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what the template knows besides.
    pub role: String,
    /// A string, or a list of parts (`{"type": "text", "text": ..}`); null where there is none.
    #[serde(default)]
    pub content: serde_json::Value,
    /// Everything else a template may read: `tool_calls`, `reasoning_content`, `name`, ..
    #[serde(flatten)]
    pub fields: Map<String, serde_json::Value>,
}

impl Message {
    /// A message of `role` with `content`.
    pub fn new(role: impl Into<String>, content: impl Into<serde_json::Value>) -> Self {
        Self { role: role.into(), content: content.into(), fields: Map::new() }
    }

    /// A system message.
    pub fn system(content: impl Into<serde_json::Value>) -> Self {
        Self::new("system", content)
    }

    /// A user's message.
    pub fn user(content: impl Into<serde_json::Value>) -> Self {
        Self::new("user", content)
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<serde_json::Value>) -> Self {
        Self::new("assistant", content)
    }

    /// The result of a tool call.
    pub fn tool(content: impl Into<serde_json::Value>) -> Self {
        Self::new("tool", content)
    }

    /// The same message with the field `name` set.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// The dictionary a template sees: no nulls, and reasoning under each of its names.
    fn to_template(&self) -> Map<String, serde_json::Value> {
        let mut seen = Map::new();
        let pairs = [("role", self.role.clone().into()), ("content", self.content.clone())];
        let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value));
        for (key, value) in pairs.chain(self.fields.clone()) {
            if !value.is_null() {
                seen.insert(key, value);
            }
        }
        if let Some(reasoning) = REASONING.iter().find_map(|name| seen.get(*name)).cloned() {
            seen.entry("thinking").or_insert_with(|| reasoning.clone());
            seen.insert("reasoning_content".into(), reasoning);
        }
        seen
    }
}

/// Whether the prompt ends with the header of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The prompt ends where the model's answer begins.
    #[default]
    Add,
    /// The prompt ends with the last message.
    Skip,
}

/// What a template is told besides the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateOptions {
    /// Whether an answer is to follow.
    pub generation_prompt: GenerationPrompt,
    /// JSON schemas of the tools the model may call: a list.
    pub tools: Option<serde_json::Value>,
    /// Documents for templates that ground answers in them: a list.
    pub documents: Option<serde_json::Value>,
    /// Further variables, as `enable_thinking`; they win over the tokenizer's special tokens.
    pub variables: Map<String, serde_json::Value>,
    /// The time that `strftime_now` tells, as UTC; the system's clock if absent. (transformers tells local time.)
    pub now: Option<SystemTime>,
}

/// A model's chat template, or its set of named ones, compiled.
///
/// A template is a program of the checkpoint's author. It can't reach anything outside; recursion and ranges are
/// bounded, the memory that it takes by building ever larger values is not.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`; `special_tokens` are the variables `bos_token`, `eos_token`, ..
    ///
    /// # Errors
    /// [`Error::Template`] with the line if `source` is not a template.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        Self::named([("default", source)], special_tokens)
    }

    /// Compiles a set of templates by name: `tool_use` serves where tools are given, `default` everything else.
    ///
    /// # Errors
    /// [`Error::Template`] with the line if one of them is not a template.
    pub fn named<'s>(
        sources: impl IntoIterator<Item = (&'s str, &'s str)>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| template_error("default", &e))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        python::install(&mut environment);
        for (name, source) in sources {
            environment
                .add_template_owned(name.to_owned(), without_generation_tags(source))
                .map_err(|e| template_error(name, &e))?;
        }
        Ok(Self { environment, special_tokens })
    }

    /// The prompt for `messages`. It holds its own special tokens: tokenize it with
    /// [`Special::Skip`](super::Special::Skip).
    ///
    /// # Errors
    /// [`Error::MissingTemplate`] if the set has no template for this call, [`Error::Template`] if rendering
    /// fails, also where the template refuses the conversation (`raise_exception`).
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        let name = match options.tools {
            Some(_) if self.environment.get_template("tool_use").is_ok() => "tool_use",
            _ => "default",
        };
        let template = self.environment.get_template(name).map_err(|_| Error::MissingTemplate {
            detail: format!(
                "none is named default, there are {:?}",
                self.environment.templates().map(|(name, _)| name).collect::<Vec<_>>()
            ),
        })?;
        let now = options.now;
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            context.insert(name.clone(), Value::from(token.as_str()));
        }
        for (name, value) in &options.variables {
            context.insert(name.clone(), to_value(value));
        }
        context.insert("messages".into(), messages.iter().map(|m| map_value(&m.to_template())).collect());
        context.insert("tools".into(), options.tools.as_ref().map_or(Value::from(()), to_value));
        context.insert("documents".into(), options.documents.as_ref().map_or(Value::from(()), to_value));
        context.insert(
            "add_generation_prompt".into(),
            Value::from(options.generation_prompt == GenerationPrompt::Add),
        );
        context.insert(
            "strftime_now".into(),
            Value::from_function(move |format: &str| {
                strftime::strftime(now.unwrap_or_else(SystemTime::now), format)
            }),
        );
        template.render(context).map_err(|e| template_error(name, &e))
    }
}

/// The template's view of JSON; dictionaries keep their order.
fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => (*b).into(),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        serde_json::Value::String(s) => s.as_str().into(),
        serde_json::Value::Array(items) => items.iter().map(to_value).collect(),
        serde_json::Value::Object(map) => map_value(map),
    }
}

fn map_value(map: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), to_value(value))))
}

/// `{% generation %}` marks what the model has said, for training; here its body counts as it stands.
/// The tags become a `with` block, which scopes assignments as they do.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inner = &tag[2..];
        let (open, inner) = split_sign(inner);
        let word = inner.trim_start();
        let (with, after) = if let Some(after) = word.strip_prefix("generation") {
            ("with", after)
        } else if let Some(after) = word.strip_prefix("endgeneration") {
            ("endwith", after)
        } else {
            out.push_str("{%");
            rest = &tag[2..];
            continue;
        };
        let (close, after) = split_sign(after.trim_start());
        if let Some(after) = after.strip_prefix("%}") {
            out.push_str(&format!("{{%{open} {with} {close}%}}"));
            rest = after;
        } else {
            out.push_str("{%");
            rest = &tag[2..];
        }
    }
    out.push_str(rest);
    out
}

/// A leading whitespace-control sign, and what follows it.
fn split_sign(text: &str) -> (&str, &str) {
    text.split_at(usize::from(text.starts_with(['-', '+'])))
}

fn template_error(name: &str, error: &minijinja::Error) -> Error {
    let message = match (error.kind(), error.detail()) {
        // The template's own words, as it gave them to `raise_exception`.
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::Template { name: error.name().unwrap_or(name).to_owned(), line: error.line(), message }
}
