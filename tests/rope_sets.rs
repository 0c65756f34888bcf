//! Frequencies that change with the length of a sequence: growing across the change is starting anew beyond it,
//! in any chunks and beside sequences on the other side.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::PathBuf;

use rillm::generate::{BatchGenerator, Event, Generator, Request, Session, Want, Work, argmax};

use support::{exact, feed, fresh, goldens, greedy_reference, name, prompt, same, tokens};

/// Goldens with frequencies by length.
fn by_length() -> Vec<PathBuf> {
    let folders: Vec<_> = goldens()
        .into_iter()
        .filter(|f| name(f).contains("rope-dynamic") || name(f).contains("longrope"))
        .collect();
    assert!(folders.len() >= 12, "only {}", folders.len());
    folders
}

#[test]
fn greedy_tokens_across_the_change_are_the_references_in_any_chunks() {
    for folder in by_length() {
        let (lm, ids, wanted) = (exact(&folder, 2), prompt(&folder), greedy_reference(&folder));
        for chunk in [1, 7, usize::MAX] {
            let request = Request::new(ids.clone()).max_tokens(wanted.len());
            let generator = Generator::new(lm.session(), request).unwrap().prefill_chunk(chunk);
            let got: Vec<_> = generator.map(|t| t.unwrap().id).collect();
            assert_eq!(got, wanted, "{}: chunks of {chunk}", name(&folder));
        }
    }
}

#[test]
fn a_batch_has_sequences_on_both_sides() {
    for folder in by_length() {
        let (lm, ids, wanted) = (exact(&folder, 2), prompt(&folder), greedy_reference(&folder));
        // One is ahead of the reference's prompt, one far behind it.
        let ahead: Vec<u32> = [&ids[..], &wanted[..10]].concat();
        let behind = tokens(3, lm.info().vocab, 1);
        let prompts = [ids.clone(), ahead, behind];
        let alone = prompts.clone().map(|prompt| {
            let request = Request::new(prompt).max_tokens(14);
            Generator::new(lm.session(), request).unwrap().map(|t| t.unwrap().id).collect::<Vec<_>>()
        });
        for chunk in [1, 7, 512] {
            let mut batch = BatchGenerator::new(lm.session(), 3).prefill_chunk(chunk);
            for prompt in &prompts {
                batch.add(Request::new(prompt.clone()).max_tokens(14)).unwrap();
            }
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
            assert_eq!(got, alone, "{}: chunks of {chunk}", name(&folder));
        }
        assert_eq!(alone[0], wanted[..14], "{}", name(&folder));
        assert_eq!(alone[1], wanted[10..24], "{}", name(&folder));
    }
}

#[test]
fn logits_beyond_the_change_are_those_of_a_fresh_sequence_in_every_bit() {
    for folder in by_length() {
        let lm = exact(&folder, 2);
        let mut s = lm.session();
        let ids = tokens(60, s.vocab(), 2);
        let (a, b) = (s.open(), s.open());
        feed(&mut s, a, &ids[..30], Want::Nothing).unwrap();
        feed(&mut s, b, &ids[..2], Want::Nothing).unwrap();
        let (mut logits, vocab) = (Vec::new(), s.vocab());
        for i in 0..28 {
            let work = [(a, 30 + i), (b, 2 + i)].map(|(sequence, at)| Work {
                sequence,
                tokens: &ids[at..at + 1],
                ahead: 0,
                want: Want::Last,
            });
            s.step(&work, &mut logits).unwrap();
            let (of_a, of_b) = logits.split_at(vocab);
            assert!(same(of_a, &fresh(&mut s, &ids[..31 + i])), "{}: {i}", name(&folder));
            assert!(same(of_b, &fresh(&mut s, &ids[..3 + i])), "{}: {i}", name(&folder));
        }
        // And back again.
        s.truncate(a, 10).unwrap();
        let got = feed(&mut s, a, &ids[10..12], Want::Last).unwrap();
        assert!(same(&got, &fresh(&mut s, &ids[..12])), "{}", name(&folder));
        assert!(argmax(&got).is_ok());
    }
}
