//! Tokenizers and detokenizers against transformers, on small vocabularies (`vectors/make_tokenizers.py`).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rillm_generate::{Error, GgufVocab, Message, Special, TemplateOptions, Tokenizer};
use rillm_nn::Gguf;
use rillm_nn::weights::Texts;
use serde_json::Value;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/tokenizers")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// What transformers says of one tokenizer, and that tokenizer from its folder and from GGUF metadata.
struct Case {
    name: String,
    want: Value,
    tokenizers: Vec<Tokenizer>,
}

fn cases() -> Vec<Case> {
    let expected = json(&vectors().join("expected.json"));
    let cases = expected.as_array().unwrap().iter().map(|want| {
        let name = want["name"].as_str().unwrap().to_owned();
        let mut tokenizers = vec![Tokenizer::from_folder(&vectors().join(&name)).unwrap()];
        let metadata = vectors().join(format!("{name}.gguf.json"));
        if metadata.exists() {
            tokenizers.push(Tokenizer::from_gguf(&gguf(&json(&metadata))).unwrap());
        }
        Case { name, want: want.clone(), tokenizers }
    });
    cases.collect()
}

/// A GGUF file without tensors that holds `metadata`.
fn gguf(metadata: &Value) -> Gguf {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    /// The type number of a value, which is then appended.
    fn value(out: &mut Vec<u8>, item: &Value) -> u32 {
        match item {
            Value::String(s) => {
                text(out, s);
                8
            }
            Value::Bool(b) => {
                out.push(u8::from(*b));
                7
            }
            Value::Number(n) if n.is_f64() => {
                out.extend((n.as_f64().unwrap() as f32).to_le_bytes());
                6
            }
            Value::Number(n) => {
                out.extend((n.as_u64().unwrap() as u32).to_le_bytes());
                4
            }
            Value::Array(items) => {
                let mut bytes = Vec::new();
                let kind = items.iter().map(|item| value(&mut bytes, item)).max().unwrap();
                out.extend(kind.to_le_bytes());
                out.extend((items.len() as u64).to_le_bytes());
                out.extend(bytes);
                9
            }
            other => panic!("{other} has no GGUF type"),
        }
    }
    let pairs = metadata.as_object().unwrap();
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    for (key, item) in pairs {
        let mut bytes = Vec::new();
        let kind = value(&mut bytes, item);
        text(&mut out, key);
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
    Gguf::from_bytes(out).unwrap()
}

#[test]
fn texts_become_the_ids_of_transformers() {
    for case in cases() {
        for (tokenizer, entry) in case
            .tokenizers
            .iter()
            .flat_map(|t| case.want["encode"].as_array().unwrap().iter().map(move |e| (t, e)))
        {
            let text = entry["text"].as_str().unwrap();
            let skip = tokenizer.encode(text, Special::Skip).unwrap();
            assert_eq!(skip, ids(&entry["skip"]), "{}: {text:?}", case.name);
            // A BOS that is spelled out is not added once more, which transformers would do.
            let begun = tokenizer.bos().is_some_and(|bos| text.starts_with(&tokenizer.token(bos).unwrap()));
            let add = tokenizer.encode(text, Special::Add).unwrap();
            assert_eq!(add, ids(&entry[if begun { "skip" } else { "add" }]), "{}: {text:?}", case.name);
        }
    }
}

#[test]
fn ordinary_text_becomes_the_ids_of_sentencepiece() {
    let mut compared = 0;
    for case in cases() {
        let entries = case.want["sentencepiece"].as_array().cloned().unwrap_or_default();
        for (tokenizer, entry) in case.tokenizers.iter().flat_map(|t| entries.iter().map(move |e| (t, e))) {
            let text = entry["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, Special::Skip).unwrap(), ids(&entry["ids"]), "{text:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 8);
}

#[test]
fn named_tokens_are_those_of_transformers() {
    for case in cases() {
        for tokenizer in &case.tokenizers {
            let id = |name: &str| case.want[name].as_u64().map(|id| id as u32);
            assert_eq!(tokenizer.bos(), id("bos"), "{}", case.name);
            assert_eq!(tokenizer.eos().first().copied(), id("eos"), "{}", case.name);
            assert_eq!(tokenizer.unk(), id("unk"), "{}", case.name);
            assert_eq!(tokenizer.vocab_size() as u64, case.want["size"].as_u64().unwrap(), "{}", case.name);
            let first = ids(&case.want["encode"][0]["add"]);
            assert_eq!(tokenizer.adds_bos(), first.first().copied() == id("bos") && id("bos").is_some());
        }
    }
}

#[test]
fn ids_become_the_text_of_transformers_at_once_and_one_by_one() {
    for case in cases() {
        for (tokenizer, entry) in case
            .tokenizers
            .iter()
            .flat_map(|t| case.want["decode"].as_array().unwrap().iter().map(move |e| (t, e)))
        {
            let (ids, want) = (ids(&entry["ids"]), entry["text"].as_str().unwrap());
            assert_eq!(tokenizer.decode(&ids).unwrap(), want, "{}: {ids:?}", case.name);
            assert_eq!(stream(tokenizer, &ids), want, "{}: {ids:?}", case.name);
        }
    }
}

/// The pieces of a streaming decoder, put together.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut detokenizer = tokenizer.detokenizer();
    let mut text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap().to_owned()).collect();
    text.push_str(detokenizer.finish().unwrap());
    text
}

#[test]
fn any_stream_is_the_text_of_all_its_ids() {
    // Numerical Recipes' linear congruential generator.
    let mut state = 1_u32;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    for case in cases() {
        let tokenizer = &case.tokenizers[0];
        let size = tokenizer.vocab_size() as u32;
        // Runs of ids close to each other: in every vocabulary here the bytes are neighbours.
        for _ in 0..2000 {
            let mut ids = Vec::new();
            for _ in 0..random(4) + 1 {
                let (start, spread) = (random(size + 5), random(80) + 1);
                ids.extend((0..random(8)).map(|_| start + random(spread)));
            }
            assert_eq!(stream(tokenizer, &ids), tokenizer.decode(&ids).unwrap(), "{}: {ids:?}", case.name);
        }
    }
}

#[test]
fn characters_come_whole_and_as_soon_as_they_are_certain() {
    let byte_level = Tokenizer::from_folder(&vectors().join("byte_level")).unwrap();
    let pieces = |tokenizer: &Tokenizer, text: &str| {
        let mut detokenizer = tokenizer.detokenizer();
        let ids = tokenizer.encode(text, Special::Skip).unwrap();
        let mut pieces: Vec<String> =
            ids.iter().map(|id| detokenizer.push(*id).unwrap().to_owned()).collect();
        pieces.push(detokenizer.finish().unwrap().to_owned());
        pieces
    };
    assert_eq!(pieces(&byte_level, "🦙 1"), ["", "", "", "🦙", " ", "1", ""]);
    let sentence_piece = Tokenizer::from_folder(&vectors().join("sentence_piece")).unwrap();
    // The space in front is the vocabulary's, not the text's.
    assert_eq!(pieces(&sentence_piece, "🦙 1"), ["", "", "", "", "", "🦙 ", "1", ""]);
    // After one byte that can't be, nothing of its run can become a character.
    let mut detokenizer = sentence_piece.detokenizer();
    let byte = |b: u8| sentence_piece.id(&format!("<0x{b:02X}>")).unwrap();
    let given: Vec<String> =
        [0xf0, 0xff, 0x41].iter().map(|b| detokenizer.push(byte(*b)).unwrap().to_owned()).collect();
    assert_eq!(given, ["", "\u{fffd}\u{fffd}", "\u{fffd}"]);
}

/// A copy of a folder with other files in it.
fn folder(name: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = vectors().join(name);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    for (file, text) in files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn templates_are_found_where_checkpoints_keep_them() {
    let render = |dir: &tempfile::TempDir, options: &TemplateOptions| {
        let template = Tokenizer::from_folder(dir.path()).unwrap().chat_template()?;
        template.render(&[Message::user("x")], options)
    };
    let plain = TemplateOptions::default();
    let tools = TemplateOptions { tools: Some(serde_json::json!([])), ..TemplateOptions::default() };

    let none = render(&folder("byte_level", &[]), &plain).unwrap_err();
    assert!(matches!(none, Error::MissingTemplate { .. }), "{none}");

    let config = r#"{"bos_token": {"content": "<|im_start|>", "lstrip": false}, "chat_template": "{{ bos_token }}string"}"#;
    let dir = folder("byte_level", &[("tokenizer_config.json", config)]);
    assert_eq!(render(&dir, &plain).unwrap(), "<|im_start|>string");

    let list = r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}"#;
    let dir = folder("byte_level", &[("tokenizer_config.json", list)]);
    assert_eq!(render(&dir, &plain).unwrap(), "plain");
    assert_eq!(render(&dir, &tools).unwrap(), "tools");

    let files = [
        ("tokenizer_config.json", list),
        ("chat_template.jinja", "file"),
        ("additional_chat_templates/tool_use.jinja", "file for tools"),
    ];
    let dir = folder("byte_level", &files);
    assert_eq!(render(&dir, &plain).unwrap(), "file");
    assert_eq!(render(&dir, &tools).unwrap(), "file for tools");

    let dir = folder("byte_level", &[("chat_template.jinja", "one\n{% if %}\n")]);
    let error = render(&dir, &plain).unwrap_err();
    assert!(matches!(error, Error::Template { line: Some(2), .. }), "{error}");
    // Text without a chat needs no template.
    assert!(Tokenizer::from_folder(dir.path()).unwrap().encode("x", Special::Add).is_ok());
}

#[test]
fn bad_files_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::MissingTokenizer { path } if path.ends_with("tokenizer.json")),
        "{error}"
    );
    // The last two contradict themselves: a merge of unknown tokens, one longer than any token.
    let merges = |merge: &str| {
        format!(r#"{{"model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1}}, "merges": ["{merge}"]}}}}"#)
    };
    for text in ["", "[]", "{}", r#"{"model": {"type": "BPE"}}"#, &merges("a c"), &merges("a b")] {
        let dir = folder("byte_level", &[("tokenizer.json", text)]);
        let error = Tokenizer::from_folder(dir.path()).unwrap_err();
        assert!(
            matches!(&error, Error::TokenizerFile { path, .. } if path.ends_with("tokenizer.json")),
            "{error}"
        );
    }
    let dir = folder("byte_level", &[("tokenizer_config.json", "[1")]);
    let error = Tokenizer::from_folder(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

#[test]
fn bad_gguf_vocabularies_are_errors_that_name_the_key() {
    let good = GgufVocab {
        model: "llama".into(),
        tokens: Texts::from_iter(["<unk>", "a"]),
        scores: vec![0.0, 0.0],
        ..GgufVocab::default()
    };
    assert!(Tokenizer::from_gguf_vocab(&good).is_ok());
    let broken: [(GgufVocab, &str); 7] = [
        (GgufVocab { model: "t5".into(), ..good.clone() }, "t5"),
        (GgufVocab { tokens: Texts::default(), ..good.clone() }, "got 0"),
        (GgufVocab { scores: vec![], ..good.clone() }, "scores"),
        (GgufVocab { scores: vec![1.0], ..good.clone() }, "scores"),
        (GgufVocab { token_types: vec![1], ..good.clone() }, "token_type"),
        (GgufVocab { eos: vec![2], ..good.clone() }, "token 2"),
        (GgufVocab { model: "gpt2".into(), pre: Some("mystery".into()), ..good.clone() }, "mystery"),
    ];
    for (vocab, part) in broken {
        let error = Tokenizer::from_gguf_vocab(&vocab).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Against tokenizers 0.23 (Python), given a tokenizer.json of Gemma 4's shape.
#[test]
fn gguf_vocabularies_of_gemma_4_have_listed_merges() {
    let tokens = [
        "<pad>", "<eos>", "<bos>", "<unk>", "<0xE2>", "<0x82>", "<0xAC>", "▁", "a", "b", "▁a", "ab", "\n",
        "\n\n", "▁ab", "<turn|>",
    ];
    let vocab = GgufVocab {
        model: "gemma4".into(),
        tokens: Texts::from_iter(tokens),
        scores: vec![0.0; tokens.len()],
        token_types: vec![3, 3, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1, 3],
        merges: Texts::from_iter(["a b", "▁ ab", "▁ a", "\n \n"]),
        bos: Some(2),
        eos: vec![1],
        unk: Some(3),
        add_bos: Some(false),
        ..GgufVocab::default()
    };
    let tokenizer = Tokenizer::from_gguf_vocab(&vocab).unwrap();
    for (text, ids) in
        [("a ab\n\n\n€ a", &[8, 14, 13, 12, 4, 5, 6, 10][..]), ("ab  ab<turn|>b", &[11, 7, 14, 15, 9])]
    {
        assert_eq!(tokenizer.encode(text, Special::Skip).unwrap(), ids, "{text:?}");
    }
    assert_eq!(tokenizer.decode(&[8, 14, 13, 12, 4, 5, 6, 10]).unwrap(), "a ab\n\n\n€ a");
    assert_eq!(tokenizer.eos(), [1, 15]);
    assert!(tokenizer.adds_bos());
    let error =
        Tokenizer::from_gguf_vocab(&GgufVocab { merges: Texts::default(), ..vocab }).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.merges"), "{error}");
}

#[test]
fn gguf_metadata_decide_about_the_bos() {
    let vocab = |model: &str, pre: &str, add_bos| GgufVocab {
        model: model.into(),
        pre: Some(pre.into()),
        tokens: Texts::from_iter(["<s>", "a"]),
        scores: vec![0.0, 0.0],
        bos: Some(0),
        add_bos,
        ..GgufVocab::default()
    };
    let adds = |vocab: GgufVocab| Tokenizer::from_gguf_vocab(&vocab).unwrap().adds_bos();
    for (model, pre, habit) in
        [("llama", "default", true), ("gpt2", "llama-bpe", true), ("gpt2", "gpt-2", false)]
    {
        assert_eq!(adds(vocab(model, pre, None)), habit, "{model} {pre}");
        assert!(adds(vocab(model, pre, Some(true))));
        assert!(!adds(vocab(model, pre, Some(false))));
    }
}

#[test]
fn gguf_control_tokens_that_end_an_answer_are_eos() {
    let vocab = |tokens: &[&str]| GgufVocab {
        model: "gpt2".into(),
        tokens: Texts::from_iter(tokens),
        token_types: tokens.iter().map(|t| if t.starts_with('<') { 3 } else { 1 }).collect(),
        eos: vec![1],
        ..GgufVocab::default()
    };
    let eos = |tokens: &[&str]| Tokenizer::from_gguf_vocab(&vocab(tokens)).unwrap().eos().to_vec();
    assert_eq!(eos(&["a", "<eos>", "<end_of_turn>"]), [1, 2]);
    assert_eq!(eos(&["a", "<|endoftext|>", "<|end|>"]), [1, 2]);
    assert_eq!(eos(&["a", "<|return|>", "<|end|>"]), [1]);
}
