//! Chat templates against what transformers renders (`vectors/make_templates.py`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use rillm_generate::{ChatTemplate, Error, GenerationPrompt, Message, TemplateOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    variables: Map<String, Value>,
    special: BTreeMap<String, String>,
    now: u64,
    text: Option<String>,
    refusal: Option<String>,
}

impl Case {
    fn render(&self) -> Result<String, Error> {
        let generation_prompt =
            if self.add_generation_prompt { GenerationPrompt::Add } else { GenerationPrompt::Skip };
        let options = TemplateOptions {
            generation_prompt,
            tools: self.tools.clone(),
            variables: self.variables.clone(),
            now: Some(UNIX_EPOCH + Duration::from_secs(self.now)),
            ..TemplateOptions::default()
        };
        ChatTemplate::new(&self.template, self.special.clone())?.render(&self.messages, &options)
    }
}

#[test]
fn text_is_that_of_transformers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("vectors/templates.json")).unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        match (case.render(), &case.text, &case.refusal) {
            (Ok(text), Some(want), None) => assert_eq!(&text, want, "{}", case.name),
            (Err(error), None, Some(refusal)) => {
                // The template's own words; others are Python's and minijinja's.
                if case.template.contains("raise_exception") {
                    assert!(error.to_string().ends_with(refusal.as_str()), "{error}");
                }
            }
            (got, want, refusal) => panic!("{}: got {got:?}, want {want:?} {refusal:?}", case.name),
        }
    }
}

#[test]
fn a_bad_template_is_an_error_with_its_line() {
    for (source, line) in [("a\n{{ }}", 2), ("{% for x in %}", 1), ("\n\n{% endif %}", 3), ("{{ 'open", 1)] {
        let error = ChatTemplate::new(source, BTreeMap::new()).unwrap_err();
        assert!(matches!(&error, Error::Template { line: Some(l), .. } if *l == line), "{source:?}: {error}");
    }
    let template = ChatTemplate::new("\n{{ none.x.y }}", BTreeMap::new()).unwrap();
    let error = template.render(&[], &TemplateOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Template { line: Some(2), .. }), "{error}");
}

#[test]
fn endless_templates_are_errors() {
    let sources = [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(1000000000000) %}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
    ];
    for source in sources {
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        let error = template.render(&[], &TemplateOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error}");
    }
}

#[test]
fn tools_choose_their_template() {
    let named = [("default", "plain"), ("tool_use", "tools: {{ tools | length }}")];
    let template = ChatTemplate::named(named, BTreeMap::new()).unwrap();
    let tools = TemplateOptions { tools: Some(json!([1, 2])), ..TemplateOptions::default() };
    assert_eq!(template.render(&[], &tools).unwrap(), "tools: 2");
    assert_eq!(template.render(&[], &TemplateOptions::default()).unwrap(), "plain");
    let template = ChatTemplate::named([("rag", "documents")], BTreeMap::new()).unwrap();
    let error = template.render(&[], &TemplateOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::MissingTemplate { detail } if detail.contains("rag")), "{error}");
}

#[test]
fn messages_are_json_in_any_spelling() {
    let message: Message =
        serde_json::from_value(json!({"role": "user", "content": "hi", "name": "n"})).unwrap();
    assert_eq!(message, Message::user("hi").with("name", "n"));
    let call: Message = serde_json::from_value(json!({"role": "assistant", "tool_calls": []})).unwrap();
    assert_eq!(call, Message::assistant(Value::Null).with("tool_calls", json!([])));
}
