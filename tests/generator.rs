//! How a generation goes: when it ends, what it leaves behind, what it reports; alone and among others.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::{Arc, Mutex};

use rillm::generate::{
    BatchGenerator, CancelHandle, Error, Event, FinishReason, Generator, LogitBias, Request, SamplerOptions,
    Session, SharedSession, sampler,
};
use rillm::{LanguageModel, Loader};

use support::{exact, golden, greedy_reference, prompt, source, tokens};

fn llama() -> LanguageModel {
    exact(&golden("llama"), 2)
}

fn run(generator: &mut Generator<SharedSession>) -> Vec<u32> {
    generator.by_ref().map(|t| t.unwrap().id).collect()
}

#[test]
fn max_tokens_ends_an_answer() {
    let (lm, ids) = (llama(), prompt(&golden("llama")));
    let wanted = greedy_reference(&golden("llama"));
    for n in [0, 1, 5, wanted.len()] {
        let mut g = Generator::new(lm.session(), Request::new(ids.clone()).max_tokens(n)).unwrap();
        assert_eq!(run(&mut g), wanted[..n]);
        assert_eq!(g.finish_reason(), Some(FinishReason::Length));
        assert_eq!(g.tokens(), [&ids[..], &wanted[..n]].concat());
        assert!(g.next().is_none(), "over is over");
        let timing = g.timing();
        assert_eq!((timing.prompt_tokens, timing.cached_tokens, timing.generated_tokens), (ids.len(), 0, n));
    }
}

#[test]
fn limits_beyond_all_bounds_are_no_limits() {
    let (lm, ids) =
        (exact(&golden("llama-rope-dynamic-cross"), 1), prompt(&golden("llama-rope-dynamic-cross")));
    let request = Request::new(ids).max_tokens(usize::MAX);
    let mut g = Generator::new(lm.session(), request).unwrap().prefill_chunk(usize::MAX);
    assert_eq!(g.by_ref().take(40).filter(Result::is_ok).count(), 40);
    assert_eq!(g.finish_reason(), None);
}

#[test]
fn a_stop_token_ends_an_answer_and_is_no_part_of_it() {
    let (lm, ids) = (llama(), prompt(&golden("llama")));
    let wanted = greedy_reference(&golden("llama"));
    let stop = wanted[6];
    let first = wanted.iter().position(|id| *id == stop).unwrap();
    let request = Request::new(ids).stop_tokens([stop]).max_tokens(100);
    let mut g = Generator::new(lm.session(), request).unwrap();
    assert_eq!(run(&mut g), wanted[..first]);
    assert_eq!(g.finish_reason(), Some(FinishReason::Stop));
    assert_eq!(g.timing().generated_tokens, first);
}

#[test]
fn a_full_context_ends_an_answer() {
    let (ids, wanted) = (prompt(&golden("llama")), greedy_reference(&golden("llama")));
    let load = |context| Loader::new(source(&golden("llama"))).exact().context(context).load().unwrap();
    for room in [0, 1, 8] {
        let lm = load(ids.len() + room);
        assert_eq!(lm.info().context, ids.len() + room);
        let mut g = Generator::new(lm.session(), Request::new(ids.clone()).max_tokens(100)).unwrap();
        // The last token needs no room: nothing follows it.
        assert_eq!(run(&mut g), wanted[..=room]);
        assert_eq!(g.finish_reason(), Some(FinishReason::Context));
        assert_eq!(g.finish_reason().unwrap().to_string(), "length");
    }
    let lm = load(ids.len() - 1);
    assert!(matches!(
        Generator::new(lm.session(), Request::new(ids.clone())).err(),
        Some(Error::PromptTooLong { tokens, context }) if tokens == ids.len() && context == ids.len() - 1
    ));
    assert_eq!(lm.cache_bytes(), 0);
}

#[test]
fn cancelling_ends_an_answer_before_its_next_step() {
    let (lm, ids, cancel) = (llama(), prompt(&golden("llama")), CancelHandle::default());
    let request = Request::new(ids.clone()).max_tokens(20).cancel(cancel.clone());
    let mut g = Generator::new(lm.session(), request).unwrap();
    assert_eq!(g.by_ref().take(3).count(), 3);
    std::thread::spawn({
        let cancel = cancel.clone();
        move || cancel.cancel()
    })
    .join()
    .unwrap();
    assert!(g.next().is_none());
    assert_eq!(g.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(g.tokens().len(), ids.len() + 3);

    // While the prompt runs: after its second chunk.
    let cancel = CancelHandle::default();
    let request = Request::new(ids).cancel(cancel.clone());
    let done = Arc::new(Mutex::new(Vec::new()));
    let seen = done.clone();
    let mut g = Generator::new(lm.session(), request).unwrap().prefill_chunk(4).on_progress(move |p| {
        seen.lock().unwrap().push(p.done);
        if p.done == 8 {
            cancel.cancel();
        }
    });
    assert!(g.next().is_none());
    assert_eq!(g.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(*done.lock().unwrap(), [4, 8]);
}

#[test]
fn dropping_a_generator_frees_its_caches() {
    let (lm, ids) = (llama(), prompt(&golden("llama")));
    assert_eq!(lm.cache_bytes(), 0);
    let mut g = Generator::new(lm.session(), Request::new(ids.clone())).unwrap();
    g.next().unwrap().unwrap();
    assert!(lm.cache_bytes() > 0);
    drop(g);
    assert_eq!(lm.cache_bytes(), 0);

    let mut batch = BatchGenerator::new(lm.session(), 2);
    batch.add(Request::new(ids.clone())).unwrap();
    batch.add(Request::new(ids)).unwrap();
    batch.step().unwrap();
    assert!(lm.cache_bytes() > 0);
    drop(batch);
    assert_eq!(lm.cache_bytes(), 0);
}

#[test]
fn a_conversation_keeps_what_it_has_in_common() {
    for model in ["llama", "mistral-sliding", "gemma3-linear"] {
        let lm = exact(&golden(model), 2);
        let mut session = lm.session();
        let sequence = session.open();
        let answer = |request: Request| run(&mut Generator::new(lm.session(), request).unwrap());
        let ids = tokens(30, lm.info().vocab, 1);
        let mut first =
            Generator::continuing(lm.session(), sequence, Request::new(ids.clone()).max_tokens(6)).unwrap();
        assert_eq!(first.timing().cached_tokens, 0);
        let said = run(&mut first);
        assert_eq!(said, answer(Request::new(ids.clone()).max_tokens(6)), "{model}");
        drop(first);
        assert!(session.len(sequence) > 0, "{model}: it stays open");

        // The next turn repeats all that was said; the last token said was never run.
        let next = [&ids[..], &said, &tokens(5, lm.info().vocab, 9)].concat();
        let request = || Request::new(next.clone()).max_tokens(6);
        let mut second = Generator::continuing(lm.session(), sequence, request()).unwrap();
        assert_eq!(second.timing().cached_tokens, ids.len() + said.len() - 1, "{model}");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let progress = seen.clone();
        second = second.on_progress(move |p| progress.lock().unwrap().push((p.done, p.total)));
        assert_eq!(run(&mut second), answer(request()), "{model}");
        assert_eq!(*seen.lock().unwrap(), [(next.len(), next.len())], "{model}");

        // The same prompt again: its last token is run, so that there are logits.
        let mut again = Generator::continuing(lm.session(), sequence, request()).unwrap();
        assert_eq!(again.timing().cached_tokens, next.len() - 1, "{model}");
        assert_eq!(run(&mut again), answer(request()), "{model}");

        // Another beginning: nothing is kept, or what a window still has.
        let other = [&ids[..4], &tokens(20, lm.info().vocab, 5)].concat();
        let request = || Request::new(other.clone()).max_tokens(6);
        let mut third = Generator::continuing(lm.session(), sequence, request()).unwrap();
        assert!([0, 4].contains(&third.timing().cached_tokens), "{model}");
        assert_eq!(run(&mut third), answer(request()), "{model}");
        session.close(sequence);
        assert_eq!(lm.cache_bytes(), 0);
    }
}

#[test]
fn progress_counts_the_prompt() {
    let (lm, ids) = (llama(), tokens(23, 320, 3));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = seen.clone();
    let request = Request::new(ids).max_tokens(4);
    let mut g = Generator::new(lm.session(), request)
        .unwrap()
        .prefill_chunk(10)
        .on_progress(move |p| progress.lock().unwrap().push((p.done, p.total)));
    run(&mut g);
    assert_eq!(*seen.lock().unwrap(), [(10, 23), (20, 23), (23, 23)]);
}

#[test]
fn logprobs_are_those_of_a_distribution() {
    let (lm, ids) = (llama(), prompt(&golden("llama")));
    let vocab = lm.info().vocab;
    let request = Request::new(ids).max_tokens(5).logprobs(vocab);
    for token in Generator::new(lm.session(), request).unwrap() {
        let token = token.unwrap();
        let logprobs = token.logprobs.unwrap();
        assert_eq!(logprobs.top.len(), vocab);
        let sum: f64 = logprobs.top.iter().map(|(_, p)| f64::from(*p).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
        assert_eq!(
            (logprobs.top[0].0, logprobs.top[0].1),
            (token.id, logprobs.chosen),
            "greedy is the likeliest"
        );
    }
}

/// Requests of differing lengths, ends and seeds; made anew for each run, as samplers have states.
fn requests(vocab: usize) -> Vec<Request> {
    let sampled = |seed| {
        sampler(SamplerOptions { temperature: 0.9, top_p: 0.95, seed, ..SamplerOptions::default() }).unwrap()
    };
    let request = |n: usize, seed: usize| Request::new(tokens(n, vocab, seed));
    vec![
        request(3, 1).max_tokens(12),
        request(40, 2).max_tokens(3).boxed_sampler(sampled(1)),
        request(1, 3).max_tokens(20).boxed_sampler(sampled(2)),
        request(17, 4).max_tokens(1),
        request(9, 5).max_tokens(15).boxed_sampler(sampled(2)).logprobs(2),
        request(25, 6).max_tokens(0),
        request(12, 7).max_tokens(30).boxed_sampler(sampled(3)).stop_tokens((0..40).collect::<Vec<_>>()),
    ]
}

#[test]
fn a_batch_says_what_each_request_says_alone() {
    for model in ["llama", "gemma2-other-caps", "mlx-llama-4bit-g64"] {
        let lm = exact(&golden(model), 2);
        let vocab = lm.info().vocab;
        let alone: Vec<_> = requests(vocab)
            .into_iter()
            .map(|request| {
                let mut g = Generator::new(lm.session(), request).unwrap();
                let said: Vec<_> = g.by_ref().map(Result::unwrap).collect();
                (said, g.finish_reason())
            })
            .collect();
        for (slots, chunk) in [(1, 512), (3, 512), (7, 5), (16, 1)] {
            let mut batch = BatchGenerator::new(lm.session(), slots).prefill_chunk(chunk);
            let mut got = Vec::new();
            for (i, request) in requests(vocab).into_iter().enumerate() {
                assert_eq!(batch.add(request).unwrap(), i);
                got.push((Vec::new(), None));
            }
            while !batch.is_idle() {
                for event in batch.step().unwrap() {
                    match event {
                        Event::Token { id, token } => got[id].0.push(token),
                        Event::Finished { id, reason, .. } => assert_eq!(got[id].1.replace(reason), None),
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!(got, alone, "{model}: {slots} slots, chunks of {chunk}");
            assert_eq!(lm.cache_bytes(), 0, "{model}: all sequences are closed");
        }
    }
}

#[test]
fn processors_are_heard_by_greedy_requests_too() {
    let (lm, ids) = (llama(), prompt(&golden("llama")));
    let banned = greedy_reference(&golden("llama"))[0];
    let request = || {
        let ban = LogitBias::new([(banned, f32::NEG_INFINITY)]);
        Request::new(ids.clone()).max_tokens(9).processor(ban)
    };
    let said = run(&mut Generator::new(lm.session(), request()).unwrap());
    assert!(said.len() == 9 && !said.contains(&banned));
    let mut batch = BatchGenerator::new(lm.session(), 1);
    batch.add(request()).unwrap();
    let mut got = Vec::new();
    while !batch.is_idle() {
        for event in batch.step().unwrap() {
            if let Event::Token { token, .. } = event {
                got.push(token.id);
            }
        }
    }
    assert_eq!(got, said);
}

#[test]
fn seeds_decide_what_is_sampled() {
    let lm = llama();
    let said = |seed| {
        let options = SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::default() };
        let request = Request::new([5, 6, 7]).max_tokens(20).boxed_sampler(sampler(options).unwrap());
        run(&mut Generator::new(lm.session(), request).unwrap())
    };
    assert_eq!(said(1), said(1));
    assert_ne!(said(1), said(2));
}

#[test]
fn a_cancelled_request_leaves_the_batch_and_others_go_on() {
    let lm = llama();
    let cancel = CancelHandle::default();
    let mut batch = BatchGenerator::new(lm.session(), 2);
    batch.add(Request::new([1, 2, 3]).max_tokens(9).cancel(cancel.clone())).unwrap();
    batch.add(Request::new([4, 5]).max_tokens(9)).unwrap();
    batch.add(Request::new([6]).max_tokens(2)).unwrap();
    let mut reasons = [None; 3];
    for step in 0.. {
        if step == 3 {
            cancel.cancel();
        }
        if batch.is_idle() {
            break;
        }
        for event in batch.step().unwrap() {
            if let Event::Finished { id, reason, .. } = event {
                reasons[id] = Some(reason);
            }
        }
    }
    assert_eq!(
        reasons,
        [Some(FinishReason::Cancelled), Some(FinishReason::Length), Some(FinishReason::Length)]
    );
}

#[test]
fn prompts_that_can_not_be_run() {
    let (lm, vocab) = (llama(), 320);
    assert!(matches!(Generator::new(lm.session(), Request::new([])).err(), Some(Error::EmptyPrompt)));
    let long = tokens(257, vocab, 1);
    assert!(matches!(
        Generator::new(lm.session(), Request::new(long.clone())).err(),
        Some(Error::PromptTooLong { tokens: 257, context: 256 })
    ));
    let mut batch = BatchGenerator::new(lm.session(), 2);
    assert!(matches!(batch.add(Request::new([])), Err(Error::EmptyPrompt)));
    assert!(matches!(batch.add(Request::new(long)), Err(Error::PromptTooLong { .. })));
    let outside =
        |error: Option<Error>| matches!(error, Some(Error::TokenOutOfRange { token: 320, vocab: 320 }));
    assert!(outside(Generator::new(lm.session(), Request::new([1, 320])).err()));
    assert!(outside(batch.add(Request::new([1, 320])).err()));
    let mut session = lm.session();
    let sequence = session.open();
    assert!(outside(Generator::continuing(lm.session(), sequence, Request::new([320])).err()));
    assert!(batch.is_idle());
    assert_eq!(lm.cache_bytes(), 0);
}

#[test]
fn a_batch_ends_one_answer_and_leaves_the_others() {
    let lm = llama();
    let cancel = CancelHandle::default();
    let mut batch = BatchGenerator::new(lm.session(), 2);
    for prompt in [[1, 2, 3], [4, 5, 6], [7, 8, 9]] {
        batch.add(Request::new(prompt).max_tokens(9).cancel(cancel.clone())).unwrap();
    }
    let (mut produced, mut reasons) = ([0; 3], [None; 3]);
    while !batch.is_idle() {
        for event in batch.step().unwrap() {
            match event {
                Event::Token { id, .. } => produced[id] += 1,
                Event::Finished { id, reason, .. } => reasons[id] = Some(reason),
                other => panic!("{other:?}"),
            }
        }
        if produced[0] == 4 {
            batch.finish(0, FinishReason::StopString);
            // One that waits still, and one that never was.
            batch.finish(2, FinishReason::Cancelled);
            batch.finish(3, FinishReason::Cancelled);
        }
    }
    assert_eq!(produced, [4, 9, 0]);
    let wanted = [FinishReason::StopString, FinishReason::Length, FinishReason::Cancelled];
    assert_eq!(reasons, wanted.map(Some));
    assert!(!cancel.is_cancelled(), "a handle that requests share is the caller's");
}
