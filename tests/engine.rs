//! A model on a thread of its own is the model: the same tokens, facts and errors.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/lazy.rs"]
mod lazy;
mod support;

use std::path::Path;

use rillm::generate::{
    BatchGenerator, Error as GenerateError, Event, Generator, Request, SamplerOptions, Session, Want, sampler,
};
use rillm::models::Registry;
use rillm::tensor::cpu::{Cpu, Precision};
use rillm::{Error, LanguageModel, Loader};

use lazy::Lazy;
use support::{exact, feed, fresh, golden, greedy_reference, prompt, same, source, tokens};

fn on_thread(folder: &Path) -> LanguageModel {
    let cpu = || Cpu::builder().threads(2).precision(Precision::Exact).build();
    Loader::new(source(folder)).load_on_thread(cpu, Registry::default()).unwrap()
}

#[test]
fn it_says_the_same() {
    for model in ["llama", "mistral-sliding", "gguf-llama-q8_0", "gpt2-openai"] {
        let folder = golden(model);
        let (lm, here) = (on_thread(&folder), exact(&folder, 2));
        let facts = |lm: &LanguageModel| {
            let info = lm.info().clone();
            (info.model_type, info.device, info.vocab, info.context, info.weight_bytes)
        };
        assert_eq!(facts(&lm), facts(&here));
        assert_eq!(lm.stop_tokens(), here.stop_tokens());
        let (ids, wanted) = (prompt(&folder), greedy_reference(&folder));
        let sampled = |seed| {
            let options = SamplerOptions { temperature: 0.8, seed, ..SamplerOptions::default() };
            Request::new(ids.clone()).max_tokens(9).boxed_sampler(sampler(options).unwrap())
        };
        let said = |lm: &LanguageModel, request: Request| {
            let g = Generator::new(lm.session(), request).unwrap().prefill_chunk(7);
            g.map(|t| t.unwrap().id).collect::<Vec<_>>()
        };
        assert_eq!(said(&lm, Request::new(ids.clone()).max_tokens(wanted.len())), wanted, "{model}");
        assert_eq!(said(&lm, sampled(4)), said(&here, sampled(4)), "{model}");
        assert_eq!(lm.cache_bytes(), 0, "{model}");

        let (mut s, mut plain) = (lm.session(), here.session());
        let a = s.open();
        let logits = feed(&mut s, a, &ids[..9], Want::Last).unwrap();
        assert!(same(&logits, &fresh(&mut plain, &ids[..9])), "{model}");
        assert_eq!((s.len(a), s.common_prefix(a, &ids), s.common_prefix(a, &[])), (9, 9, 0));
        assert!(s.cache_bytes() > 0);
        s.truncate(a, 5).unwrap();
        let logits = feed(&mut s, a, &ids[5..9], Want::All).unwrap();
        assert!(same(&logits[3 * s.vocab()..], &fresh(&mut plain, &ids[..9])), "{model}");
        s.close(a);
        assert_eq!(s.cache_bytes(), 0);
    }
}

#[test]
fn threads_and_batches_share_it() {
    let folder = golden("llama");
    let (lm, wanted) = (on_thread(&folder), greedy_reference(&folder));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let request = Request::new(prompt(&folder)).max_tokens(wanted.len());
                let said: Vec<_> =
                    Generator::new(lm.session(), request).unwrap().map(|t| t.unwrap().id).collect();
                assert_eq!(said, wanted);
            });
        }
    });
    let mut batch = BatchGenerator::new(lm.session(), 2);
    for n in [3, 9, wanted.len()] {
        batch.add(Request::new(prompt(&folder)).max_tokens(n)).unwrap();
    }
    let mut said = [const { Vec::new() }; 3];
    while !batch.is_idle() {
        for event in batch.step().unwrap() {
            if let Event::Token { id, token } = event {
                said[id].push(token.id);
            }
        }
    }
    assert_eq!(said, [&wanted[..3], &wanted[..9], &wanted]);
}

#[test]
fn it_runs_ahead() {
    let (lazy, folder) = (Lazy::new(1), golden("mistral-sliding"));
    let backend = lazy.clone();
    let loader = Loader::new(source(&folder));
    let lm = loader.load_on_thread(move || Ok(backend), Registry::default()).unwrap();
    let wanted = greedy_reference(&folder);
    let request = Request::new(prompt(&folder)).max_tokens(wanted.len());
    let mut g = Generator::new(lm.session(), request).unwrap();
    let first = g.next().unwrap().unwrap().id;
    lazy.calls();
    let said: Vec<_> = g.map(|t| t.unwrap().id).collect();
    assert_eq!([&[first], &said[..]].concat(), wanted);
    assert_eq!(lazy.calls().iter().filter(|c| **c == lazy::Call::Submit).count(), wanted.len() - 1);
    assert_eq!(lm.info().device, "lazy");
}

#[test]
fn errors_come_back() {
    let lm = on_thread(&golden("llama"));
    let mut s = lm.session();
    let a = s.open();
    assert!(matches!(feed(&mut s, 7, &[1], Want::Last), Err(GenerateError::NoSuchSequence { number: 7 })));
    assert!(matches!(feed(&mut s, a, &[], Want::Last), Err(GenerateError::EmptyPrompt)));
    let long = tokens(257, s.vocab(), 1);
    assert!(matches!(feed(&mut s, a, &long, Want::Last), Err(GenerateError::ContextFull { .. })));
    assert!(s.truncate(a, 3).is_err());
    assert!(feed(&mut s, a, &[1, 2], Want::Last).is_ok());

    let cpu = || Cpu::builder().threads(1).build();
    let load = |name: String| Loader::new(name).load_on_thread(cpu, Registry::default());
    assert!(matches!(load("./no-such-folder".to_owned()), Err(Error::NotFound { .. })));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "none"}"#).unwrap();
    assert!(load(folder.path().to_str().unwrap().to_owned()).is_err());
    let loader = || Loader::new(source(&golden("llama")));
    let refuses = || Err::<Cpu, _>(rillm::tensor::Error::NoDeviceIds);
    let error = loader().load_on_thread(refuses, Registry::default()).unwrap_err();
    assert!(matches!(error, Error::Backend(rillm::tensor::Error::NoDeviceIds)), "{error}");
    let panics = || -> rillm::tensor::Result<Cpu> { panic!("no such device") };
    let error = loader().load_on_thread(panics, Registry::default()).unwrap_err();
    assert!(matches!(error, Error::Generate(GenerateError::SessionThread { .. })), "{error}");
    assert!(error.to_string().contains("no such device"), "{error}");
}
