//! Greedy decoding that runs ahead of what was read: the same tokens as without, whatever comes between, and the device
//! is asked once for each pass.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/lazy.rs"]
mod lazy;
mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use rillm::generate::{
    BatchGenerator, Draw, Error, Event, FinishReason, Generator, Request, Result, Rng, SamplerOptions,
    Session, SharedSession, Want, Work, argmax, sampler,
};
use rillm::tensor::Sampling;
use rillm::{LanguageModel, Loader};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use lazy::{Call, Lazy};
use support::{exact, feed, fresh, golden, goldens, greedy_reference, name, prompt, same, source, tokens};

/// Ordinary caches, windows, and what depends on lengths.
const MODELS: [&str; 9] = [
    "llama",
    "mistral-sliding",
    "mistral-window-1",
    "mistral-window-cross",
    "gemma3-linear",
    "qwen2-window-layers",
    "gpt2-openai",
    "llama-rope-longrope-cross",
    "llama-rope-dynamic-cross",
];

fn run(generator: &mut Generator<SharedSession>) -> Vec<u32> {
    generator.by_ref().map(|t| t.unwrap().id).collect()
}

fn greedy(s: &mut impl Session, sequence: usize, tokens: &[u32]) -> Result<u32> {
    let mut picked = vec![7; 3];
    s.step_picking(&[Work { sequence, tokens, ahead: 0, want: Want::Last }], &mut picked)?;
    assert_eq!(picked.len(), 1);
    Ok(picked[0])
}

#[test]
fn every_golden_says_what_its_reference_says() {
    for folder in goldens() {
        let lazy = Lazy::new(2);
        let (lm, ids, wanted) = (lazy.load(&folder), prompt(&folder), greedy_reference(&folder));
        for chunk in [usize::MAX, 7] {
            lazy.calls();
            let request = Request::new(ids.clone()).max_tokens(wanted.len());
            let mut g = Generator::new(lm.session(), request).unwrap().prefill_chunk(chunk);
            assert_eq!(run(&mut g), wanted, "{}: chunks of {chunk}", name(&folder));
            let calls = lazy.calls();
            // Gemma 3n mixes its streams by numbers of the host.
            let read = calls.contains(&Call::Read) && !name(&folder).starts_with("gemma3n");
            assert!(!read, "{}: logits stay where they are", name(&folder));
        }
    }
}

#[test]
fn each_chunk_is_computed_once_and_each_pass_is_started_before_the_last_is_read() {
    let (lazy, folder) = (Lazy::new(1), golden("llama"));
    let lm = lazy.load(&folder);
    let chunk = [Call::Host, Call::Evaluate(2 * layers(&folder))];
    let request = Request::new(tokens(23, lm.info().vocab, 1)).max_tokens(5);
    let mut g = Generator::new(lm.session(), request).unwrap().prefill_chunk(10);
    lazy.calls();
    g.next().unwrap().unwrap();
    let last = [Call::Host, Call::Submit, Call::Device, Call::Submit, Call::ReadIds];
    assert_eq!(lazy.calls(), [&chunk[..], &chunk, &last].concat());
    for _ in 1..5 {
        g.next().unwrap().unwrap();
        assert_eq!(lazy.calls(), [Call::Device, Call::Submit, Call::ReadIds]);
    }
    assert!(g.next().is_none());
    assert_eq!(lazy.calls(), []);

    // Old tokens that are computed again are a prompt, too.
    let folder = golden("llama-rope-dynamic-cross");
    let chunk = [Call::Host, Call::Evaluate(2 * layers(&folder))];
    let lm = lazy.load(&folder);
    let mut s = lm.session();
    let ids = tokens(600, s.vocab(), 3);
    let a = s.open();
    feed(&mut s, a, &ids[..590], Want::Nothing).unwrap();
    lazy.calls();
    greedy(&mut s, a, &ids[590..591]).unwrap();
    assert_eq!(lazy.calls(), [&chunk[..], &chunk, &[Call::Host, Call::Submit, Call::ReadIds]].concat());
}

#[test]
fn a_chunk_beside_answers_is_computed_once() {
    let (lazy, folder) = (Lazy::new(1), golden("mistral-sliding"));
    let lm = lazy.load(&folder);
    let mut batch = BatchGenerator::new(lm.session(), 2).prefill_chunk(10);
    batch.add(Request::new(tokens(5, lm.info().vocab, 1)).max_tokens(9)).unwrap();
    batch.step().unwrap();
    batch.add(Request::new(tokens(12, lm.info().vocab, 2)).max_tokens(9)).unwrap();
    lazy.calls();
    // What ran ahead alone is taken back: the pass is run again beside the chunk.
    batch.step().unwrap();
    let chunk = [Call::Host, Call::Evaluate(2 * layers(&folder)), Call::Submit, Call::ReadIds];
    assert_eq!(lazy.calls(), chunk);
    batch.step().unwrap();
    assert_eq!(lazy.calls(), [Call::Host, Call::Submit, Call::Device, Call::Submit, Call::ReadIds]);
    batch.step().unwrap();
    assert_eq!(lazy.calls(), [Call::Device, Call::Submit, Call::ReadIds]);
}

/// Rows for fewer tokens than there are: ids that only the device knows can't be told apart, so nothing runs ahead.
#[test]
fn tokens_without_rows_for_each_layer_wait_for_the_host() {
    for model in ["gemma4-shared", "gemma3n"] {
        let (lazy, cut) = (Lazy::new(2), tempfile::tempdir().unwrap());
        let vocab = fewer_rows(&golden(model), cut.path());
        let lm = lazy.load(cut.path());
        // All of them without a row.
        let ids: Vec<u32> = (vocab..lm.info().vocab as u32).collect();
        let mut g = Generator::new(lm.session(), Request::new(ids.clone()).max_tokens(12)).unwrap();
        lazy.calls();
        let picked = run(&mut g);
        assert_eq!((picked.len(), lazy.calls().contains(&Call::Device)), (12, false), "{model}");
        let mut s = exact(cut.path(), 2).session();
        let (sequence, mut next) = (s.open(), ids);
        for id in picked {
            let logits = feed(&mut s, sequence, &next, Want::Last).unwrap();
            next = vec![argmax(&logits).unwrap().0];
            assert_eq!(next, [id], "{model}");
        }
    }
}

/// Copies a checkpoint whose per-layer table has 8 rows less than its vocabulary, and returns how many it has.
fn fewer_rows(folder: &Path, to: &Path) -> u32 {
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize - 8;
    config["vocab_size_per_layer_input"] = vocab.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let shorter = tensors.tensors().into_iter().map(|(name, tensor)| {
        let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data());
        if name.ends_with("embed_tokens_per_layer.weight") {
            data = &data[..data.len() / shape[0] * vocab];
            shape[0] = vocab;
        }
        (name, TensorView::new(tensor.dtype(), shape, data).unwrap())
    });
    safetensors::serialize_to_file(shorter, None, &to.join("model.safetensors")).unwrap();
    vocab as u32
}

/// Layers of a golden checkpoint.
fn layers(folder: &Path) -> usize {
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["num_hidden_layers"].as_u64().unwrap() as usize
}

#[test]
fn generations_in_turns_keep_what_ran_ahead() {
    for model in MODELS {
        let (lazy, folder) = (Lazy::new(2), golden(model));
        let (lm, ids, wanted) = (lazy.load(&folder), prompt(&folder), greedy_reference(&folder));
        let request = |n: usize| Request::new(ids.clone()).max_tokens(n);
        let mut a = Generator::new(lm.session(), request(12)).unwrap();
        let mut b = Generator::new(lm.session(), request(9)).unwrap();
        let (mut said, mut other) = (Vec::new(), Vec::new());
        for turn in 0..12 {
            lazy.calls();
            said.extend(a.next().map(|t| t.unwrap().id));
            let calls = lazy.calls();
            let dynamic = model.contains("dynamic") || model.contains("longrope");
            if turn > 0 && !dynamic {
                let count = |call| calls.iter().filter(|c| **c == call).count();
                assert_eq!((count(Call::Submit), count(Call::ReadIds)), (1, 1), "{model}: {calls:?}");
            }
            other.extend(b.next().map(|t| t.unwrap().id));
        }
        assert_eq!(said, wanted[..12], "{model}");
        assert_eq!(other, wanted[..9], "{model}");
    }
}

#[test]
fn nothing_runs_beyond_the_context() {
    let (folder, wanted) = (golden("llama"), greedy_reference(&golden("llama")));
    let ids = prompt(&folder);
    for room in [0, 1, 5] {
        let lazy = Lazy::new(1);
        let loader = Loader::new(source(&folder)).context(ids.len() + room);
        let lm = loader.load_on(lazy.clone(), &rillm::models::Registry::default()).unwrap();
        let mut g = Generator::new(lm.session(), Request::new(ids.clone()).max_tokens(100)).unwrap();
        assert_eq!(run(&mut g), wanted[..=room]);
        assert_eq!(g.finish_reason(), Some(FinishReason::Context));
        assert_eq!(lazy.calls().iter().filter(|c| **c == Call::Device).count(), room);
    }
    // A table of learned positions has an end.
    let (lazy, folder) = (Lazy::new(1), golden("gpt2-openai"));
    let (lm, cpu) = (lazy.load(&folder), exact(&folder, 1));
    let ids = tokens(lm.info().context - 3, lm.info().vocab, 2);
    let said = |lm: &LanguageModel| {
        let mut g = Generator::new(lm.session(), Request::new(ids.clone()).max_tokens(100)).unwrap();
        (run(&mut g), g.finish_reason())
    };
    assert_eq!(said(&lm), said(&cpu));
}

/// What a conversation of three turns says, and how much of each prompt was cached.
fn conversation(lm: &LanguageModel) -> Vec<(Vec<u32>, usize)> {
    let mut session = lm.session();
    let sequence = session.open();
    let mut turns = Vec::new();
    let mut turn = |request: Request| {
        let mut g = Generator::continuing(lm.session(), sequence, request).unwrap();
        let said = run(&mut g);
        turns.push((said.clone(), g.timing().cached_tokens));
        (said, g.tokens().to_vec())
    };
    let (vocab, ids) = (lm.info().vocab, tokens(30, lm.info().vocab, 1));
    let (_, all) = turn(Request::new(ids.clone()).max_tokens(6));
    let next = [&all[..], &tokens(5, vocab, 9)].concat();
    let (said, _) = turn(Request::new(next.clone()).max_tokens(6));
    // The same again, until a token that ends it.
    turn(Request::new(next.clone()).max_tokens(6).stop_tokens([said[4]]));
    // What was fed last is still under way; its continuation is not what ran ahead.
    let other = [&next[..], &said[..1], &tokens(1, vocab, 3)].concat();
    turn(Request::new(other).max_tokens(4));
    // Another beginning.
    let other = [&ids[..4], &tokens(20, vocab, 5)].concat();
    turn(Request::new(other.clone()).max_tokens(6));
    // Sampling in the same sequence.
    let options = SamplerOptions { temperature: 1.0, seed: 3, ..SamplerOptions::default() };
    turn(Request::new(other.clone()).max_tokens(4).boxed_sampler(sampler(options).unwrap()));
    turn(Request::new(other).max_tokens(4).logprobs(1));
    session.close(sequence);
    assert_eq!(lm.cache_bytes(), 0);
    turns
}

#[test]
fn a_conversation_goes_as_without() {
    for model in MODELS {
        let folder = golden(model);
        let (ahead, plain) = (conversation(&Lazy::new(2).load(&folder)), conversation(&exact(&folder, 2)));
        for (turn, (ahead, plain)) in ahead.iter().zip(&plain).enumerate() {
            assert_eq!(ahead.0, plain.0, "{model}: turn {turn}");
            // The row that ran ahead has moved a window on by one.
            assert!([plain.1, 0].contains(&ahead.1), "{model}: turn {turn}: {} cached", ahead.1);
            assert!(ahead.1 == plain.1 || model.contains("window"), "{model}: turn {turn}");
        }
    }
}

#[test]
fn what_was_fed_last_can_be_taken_back() {
    for folder in goldens() {
        let (lm, cpu) = (Lazy::new(2).load(&folder), exact(&folder, 2));
        let (mut s, mut plain) = (lm.session(), cpu.session());
        let ids = tokens(24, s.vocab(), 5);
        let a = s.open();
        // One at a time: a window has room for no more than it needs, and the row ahead overwrites some of that.
        for id in &ids[..19] {
            greedy(&mut s, a, &[*id]).unwrap();
        }
        s.truncate(a, 18).unwrap();
        assert_eq!((s.len(a), s.common_prefix(a, &ids)), (18, 18));
        let got = feed(&mut s, a, &ids[19..21], Want::Last).unwrap();
        let whole = [&ids[..18], &ids[19..21]].concat();
        assert!(same(&got, &fresh(&mut plain, &whole)), "{}: one", name(&folder));
        greedy(&mut s, a, &ids[21..24]).unwrap();
        s.truncate(a, 20).unwrap();
        let got = feed(&mut s, a, &ids[..1], Want::Last).unwrap();
        let whole = [&whole[..], &ids[..1]].concat();
        assert!(same(&got, &fresh(&mut plain, &whole)), "{}: three", name(&folder));
    }
}

#[test]
fn a_guess_about_a_closed_sequence_is_none_about_its_successor() {
    for model in MODELS {
        let folder = golden(model);
        let (lm, cpu) = (Lazy::new(1).load(&folder), exact(&folder, 1));
        let (mut s, mut plain) = (lm.session(), cpu.session());
        let ids = tokens(9, s.vocab(), 5);
        let (a, b) = (s.open(), s.open());
        let work = |tokens| Work { sequence: a, tokens, ahead: 0, want: Want::Last };
        let mut picked = Vec::new();
        s.step_picking(&[work(&ids), Work { sequence: b, ..work(&ids[..4]) }], &mut picked).unwrap();
        let token = picked[0];
        s.close(a);
        assert_eq!(s.open(), a);
        let first = argmax(&fresh(&mut plain, &[token])).unwrap().0;
        assert_eq!(greedy(&mut s, a, &[token]).unwrap(), first, "{model}");
        // The same of a sequence alone.
        s.close(a);
        assert_eq!(s.open(), a);
        assert_eq!(greedy(&mut s, a, &[token]).unwrap(), first, "{model}");
        s.close(a);
        assert_eq!(s.open(), a);
        let second = argmax(&fresh(&mut plain, &[first])).unwrap().0;
        assert_eq!(greedy(&mut s, a, &[first]).unwrap(), second, "{model}");
        let whole = [&ids[..4], &[7]].concat();
        let got = feed(&mut s, b, &[7], Want::Last).unwrap();
        assert!(same(&got, &fresh(&mut plain, &whole)), "{model}");
    }
}

#[test]
fn sequences_of_different_frequencies_do_not_run_ahead() {
    let (lazy, folder) = (Lazy::new(1), golden("llama-rope-longrope-cross"));
    let lm = lazy.load(&folder);
    let mut s = lm.session();
    let (long, short) = (s.open(), s.open());
    let ids = tokens(100, s.vocab(), 1);
    let work = |sequence, tokens| Work { sequence, tokens, ahead: 0, want: Want::Last };
    lazy.calls();
    s.step_picking(&[work(long, &ids), work(short, &ids[..2])], &mut Vec::new()).unwrap();
    assert_eq!(lazy.calls(), [Call::Host, Call::ReadIds, Call::Host, Call::ReadIds]);
}

#[test]
fn a_batch_of_three_says_what_each_says_alone() {
    for model in MODELS {
        let (lazy, folder) = (Lazy::new(2), golden(model));
        let (lm, cpu) = (lazy.load(&folder), exact(&folder, 2));
        let vocab = lm.info().vocab;
        let sampled = |seed| {
            let options = SamplerOptions { temperature: 0.9, seed, ..SamplerOptions::default() };
            sampler(options).unwrap()
        };
        let requests =
            || [(3, 12), (20, 5), (9, 15)].map(|(n, max)| Request::new(tokens(n, vocab, n)).max_tokens(max));
        let mixed = || {
            let [a, b, c] = requests();
            [a, b.boxed_sampler(sampled(1)), c.logprobs(0)]
        };
        let drawn = || {
            let [a, b, c] = requests();
            [a.boxed_sampler(sampled(4)), b.boxed_sampler(sampled(5)), c.boxed_sampler(sampled(6))]
        };
        for make in [&requests as &dyn Fn() -> [Request; 3], &mixed, &drawn] {
            let alone = make().map(|request| run(&mut Generator::new(cpu.session(), request).unwrap()));
            for (slots, chunk) in [(3, 512), (2, 512), (3, 5), (3, 1)] {
                let mut batch = BatchGenerator::new(lm.session(), slots).prefill_chunk(chunk);
                make().into_iter().for_each(|request| assert!(batch.add(request).is_ok()));
                let mut got = [const { Vec::new() }; 3];
                while !batch.is_idle() {
                    for event in batch.step().unwrap() {
                        match event {
                            Event::Token { id, token } => got[id].push(token.id),
                            Event::Failed { error, .. } => panic!("{error}"),
                            _ => {}
                        }
                    }
                }
                assert_eq!(got, alone, "{model}: {slots} slots, chunks of {chunk}");
                assert_eq!(lm.cache_bytes(), 0, "{model}");
            }
        }
        for make in [&requests as &dyn Fn() -> [Request; 3], &drawn] {
            let mut batch = BatchGenerator::new(lm.session(), 3);
            make().into_iter().for_each(|request| assert!(batch.add(request).is_ok()));
            batch.step().unwrap();
            lazy.calls();
            batch.step().unwrap();
            if model == "llama" {
                assert_eq!(lazy.calls(), [Call::Device, Call::Submit, Call::ReadIds], "one for all three");
            }
        }
    }
}

/// Sessions with and without a device that picks, side by side: what is asked of one is asked of the other.
struct Pair {
    ahead: SharedSession,
    plain: SharedSession,
    open: Vec<usize>,
    /// What each sequence was last told to say.
    said: Vec<u32>,
    /// How often it was drawn from.
    draws: Vec<u64>,
}

/// How a step ends.
#[derive(Clone, Copy)]
enum End {
    Logits,
    Picks,
    Draws(f32),
}

impl Pair {
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, f: impl Fn(&mut SharedSession) -> T) -> T {
        let (a, b) = (f(&mut self.ahead), f(&mut self.plain));
        assert_eq!(a, b);
        a
    }

    fn open(&mut self) {
        let number = self.both(SharedSession::open);
        self.open.push(number);
        self.said.push(1);
        self.draws.push(0);
    }

    /// Feeds these of the open sequences what they said, or else a few other tokens.
    fn step(&mut self, which: &[usize], other: Option<&[u32]>, end: End) {
        let said: Vec<_> = which.iter().map(|i| [self.said[*i]]).collect();
        let numbers: Vec<_> = which.iter().map(|i| self.open[*i]).collect();
        let want = |i: usize| match end {
            End::Draws(temperature) => {
                let how = Sampling { temperature, tempered: true, top_p: 0.9, min_p: 0.0, top_k: 20 };
                Want::Draw(Draw { how, rng: Rng::new(i as u64), step: self.draws[i] })
            }
            _ => Want::Last,
        };
        let wants: Vec<_> = which.iter().map(|i| want(*i)).collect();
        which.iter().for_each(|i| self.draws[*i] += 1);
        let tokens = self.both(|s| {
            let work: Vec<_> = numbers
                .iter()
                .zip(&said)
                .zip(&wants)
                .map(|((sequence, said), want)| Work {
                    sequence: *sequence,
                    tokens: other.unwrap_or(said),
                    ahead: 0,
                    want: *want,
                })
                .collect();
            if !matches!(end, End::Logits) {
                let mut tokens = Vec::new();
                s.step_picking(&work, &mut tokens).map(|()| tokens).map_err(|e| e.to_string())
            } else {
                let (mut logits, vocab) = (Vec::new(), s.vocab());
                let done = s.step(&work, &mut logits).map_err(|e| e.to_string());
                done.map(|()| logits.chunks_exact(vocab).map(|row| argmax(row).unwrap().0).collect())
            }
        });
        for (i, token) in which.iter().zip(tokens.unwrap_or_default()) {
            self.said[*i] = token;
        }
    }

    /// Takes one back, or both to nothing where only the plain one can. Lengths below what was fed last are the
    /// cache's to refuse, and a row that ran ahead may have overwritten one position more.
    fn truncate(&mut self, i: usize, len: usize) {
        let sequence = self.open[i];
        match (self.ahead.truncate(sequence, len), self.plain.truncate(sequence, len)) {
            (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
            (Err(_), Ok(())) => {
                self.plain.truncate(sequence, 0).unwrap();
                self.ahead.truncate(sequence, 0).unwrap();
            }
            (Ok(()), Err(error)) => panic!("only plain: {error}"),
        }
    }
}

#[test]
fn whatever_comes_between_changes_nothing() {
    for model in MODELS {
        let folder = golden(model);
        let (lm, cpu) = (Lazy::new(1).load(&folder), exact(&folder, 1));
        let vocab = lm.info().vocab;
        let mut pair = Pair {
            ahead: lm.session(),
            plain: cpu.session(),
            open: Vec::new(),
            said: Vec::new(),
            draws: Vec::new(),
        };
        let rng = Rng::new(11);
        (0..3).for_each(|_| pair.open());
        for step in 0..300 {
            let draw = |n: u32, below: usize| (rng.uniform_f32(step, n) * below as f32) as usize;
            let some = [&[0][..], &[1], &[2], &[0, 1], &[1, 0], &[0, 1, 2], &[0, 1, 2]][draw(0, 7)];
            let ids = tokens(1 + draw(1, 6), vocab, step as usize);
            match draw(2, 15) {
                0..=5 => pair.step(some, None, End::Picks),
                6 => pair.step(some, Some(&ids), End::Picks),
                7 => pair.step(some, None, End::Logits),
                8 => pair.step(some, Some(&ids), End::Logits),
                12..=13 => pair.step(some, None, End::Draws(1.1)),
                14 => pair.step(some, None, End::Draws(0.8)),
                9 => {
                    let (i, back) = (draw(3, 3), draw(4, 5));
                    let sequence = pair.open[i];
                    let len = pair.both(|s| s.len(sequence));
                    pair.truncate(i, len.saturating_sub(back));
                }
                10 => {
                    let (i, part) = (draw(3, 3), draw(4, 1000));
                    let sequence = pair.open[i];
                    let len = pair.both(|s| s.len(sequence));
                    pair.truncate(i, len * part / 1000);
                }
                _ if draw(3, 4) == 0 => {
                    let number = pair.open.remove(0);
                    pair.said.remove(0);
                    pair.both(|s| s.close(number));
                    pair.open();
                }
                _ => {
                    // Full: an error on both sides.
                    let long = tokens(lm.info().context.min(300) + 1, vocab, 1);
                    if lm.info().context < 301 {
                        pair.step(some, Some(&long), End::Picks);
                    }
                }
            }
            for sequence in pair.open.clone() {
                let known = pair.both(|s| s.len(sequence));
                assert!(known <= lm.info().context, "{model}");
                pair.both(|s| s.common_prefix(sequence, &ids));
            }
        }
    }
}

#[test]
fn a_pass_ahead_that_fails_is_not_missed() {
    for model in MODELS {
        let (lazy, folder) = (Lazy::new(1), golden(model));
        let (lm, ids, wanted) = (lazy.load(&folder), prompt(&folder), greedy_reference(&folder));
        let request = || Request::new(ids.clone()).max_tokens(wanted.len());
        // Before it has changed a cache.
        for times in [usize::MAX, 3] {
            lazy.fail(Call::Device, times);
            assert_eq!(run(&mut Generator::new(lm.session(), request()).unwrap()), wanted, "{model}");
        }
        // When all have grown: every other time, for a pass that nothing ran ahead of has to be submitted. Where
        // frequencies change nothing runs ahead.
        if model.contains("rope") {
            continue;
        }
        let mut said = Vec::new();
        for token in Generator::new(lm.session(), request()).unwrap() {
            said.push(token.unwrap().id);
            lazy.fail(Call::Submit, said.len() % 2);
        }
        assert_eq!(said, wanted, "{model}");
        lazy.fail(Call::Submit, 0);
    }
}

#[test]
fn a_step_that_can_not_be_read_changes_nothing() {
    for model in MODELS {
        let (lazy, folder) = (Lazy::new(1), golden(model));
        let (lm, ids, wanted) = (lazy.load(&folder), prompt(&folder), greedy_reference(&folder));
        let mut s = lm.session();
        let a = s.open();
        let (mut next, mut said) = (ids, Vec::new());
        while said.len() < wanted.len() {
            let len = s.len(a);
            if said.len() % 3 != 1 {
                lazy.fail(Call::ReadIds, 1);
                assert!(greedy(&mut s, a, &next).is_err());
                assert_eq!(s.len(a), len, "{model}");
            }
            said.push(greedy(&mut s, a, &next).unwrap());
            assert_eq!(s.len(a), len + next.len(), "{model}");
            next = said[said.len() - 1..].to_vec();
        }
        assert_eq!(said, wanted, "{model}");
    }
}

/// A session without a model: the logits of the sequences that `broken` says are no numbers.
struct Scripted {
    lens: Vec<usize>,
    broken: Arc<Mutex<Vec<usize>>>,
}

impl Session for Scripted {
    fn vocab(&self) -> usize {
        4
    }
    fn context(&self) -> usize {
        100
    }
    fn weight_bytes(&self) -> usize {
        0
    }
    fn cache_bytes(&self) -> usize {
        0
    }
    fn open(&mut self) -> usize {
        self.lens.push(0);
        self.lens.len() - 1
    }
    fn close(&mut self, _: usize) {}
    fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }
    fn common_prefix(&self, _: usize, _: &[u32]) -> usize {
        0
    }
    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        self.lens[sequence] = len;
        Ok(())
    }
    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        for w in work {
            self.lens[w.sequence] += w.tokens.len();
            let broken = self.broken.lock().unwrap().contains(&w.sequence);
            let last = w.tokens[w.tokens.len() - 1] as usize;
            logits.extend((0..4).map(|i| if broken { f32::NAN } else { f32::from(u8::from(i > last % 3)) }));
        }
        Ok(())
    }
}

#[test]
fn broken_logits_fail_one_request_and_leave_sequences_as_they_were() {
    let broken = Arc::new(Mutex::new(vec![1]));
    let mut s = Scripted { lens: Vec::new(), broken: broken.clone() };
    let (a, b) = (s.open(), s.open());
    let work = |sequence| Work { sequence, tokens: &[0, 1], ahead: 0, want: Want::Last };
    let mut picked = vec![9];
    s.step_picking(&[work(a)], &mut picked).unwrap();
    assert_eq!(picked, [2]);
    assert!(matches!(s.step_picking(&[work(a), work(b)], &mut picked), Err(Error::NanLogits { index: 0 })));
    assert_eq!(s.lens, [2, 0]);
    s.step_picking(&[], &mut picked).unwrap();
    assert!(picked.is_empty());

    let s = Scripted { lens: Vec::new(), broken };
    let mut batch = BatchGenerator::new(s, 3);
    for _ in 0..3 {
        batch.add(Request::new([0]).max_tokens(4)).unwrap();
    }
    let (mut said, mut failed) = ([const { Vec::new() }; 3], Vec::new());
    while !batch.is_idle() {
        for event in batch.step().unwrap() {
            match event {
                Event::Token { id, token } => said[id].push(token.id),
                Event::Failed { id, error: Error::NanLogits { index: 0 } } => failed.push(id),
                Event::Finished { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(failed, [1]);
    assert_eq!(said, [vec![1, 2, 3, 1], vec![], vec![1, 2, 3, 1]]);
}
