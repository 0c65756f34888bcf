//! Sequences of models whose layers have states: going back, to what was kept or to anything else, changes no bit.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use rillm::generate::{Session, Want};
use support::{exact, feed, fresh, golden, same, tokens};

/// Only states; states and keys; states and keys of a window; two layers of states for each of the model.
const MODELS: [&str; 4] = ["mamba2", "qwen3-5", "recurrent-gemma", "rwkv7"];

#[test]
fn a_sequence_goes_back_to_any_length() {
    for name in MODELS {
        let lm = exact(&golden(name), 2);
        let mut s = lm.session();
        let vocab = s.vocab();
        let prompt = tokens(40, vocab, 1);
        for to in [40, 39, 38, 36, 35, 24, 17, 16, 5, 0] {
            let sequence = s.open();
            // Two chunks of a prompt, then single tokens.
            for part in [&prompt[..16], &prompt[16..36]] {
                feed(&mut s, sequence, part, Want::Nothing).unwrap();
            }
            for token in &prompt[36..] {
                feed(&mut s, sequence, &[*token], Want::Last).unwrap();
            }
            s.truncate(sequence, to).unwrap();
            assert_eq!((s.len(sequence), s.common_prefix(sequence, &prompt)), (to, to), "{name}");
            // Further back before anything is computed again.
            let to = to.min(22);
            s.truncate(sequence, to).unwrap();
            let other = tokens(7, vocab, 2);
            let got = feed(&mut s, sequence, &other, Want::Last).unwrap();
            let wanted = fresh(&mut s, &[&prompt[..to], &other].concat());
            assert!(same(&got, &wanted), "{name}: back to {to}");
            s.close(sequence);
        }
    }
}

#[test]
fn a_batch_gives_what_its_sequences_give_alone() {
    for name in MODELS {
        let lm = exact(&golden(name), 2);
        let mut s = lm.session();
        let vocab = s.vocab();
        let prompts: Vec<_> = (0..3).map(|i| tokens(11 + 5 * i, vocab, i)).collect();
        let sequences: Vec<_> = prompts.iter().map(|_| s.open()).collect();
        let mut logits = Vec::new();
        for step in 0..3 {
            let parts: Vec<_> =
                prompts.iter().map(|p| &p[step * p.len() / 3..(step + 1) * p.len() / 3]).collect();
            let work: Vec<_> = sequences
                .iter()
                .zip(&parts)
                .map(|(&sequence, tokens)| rillm::generate::Work {
                    sequence,
                    tokens,
                    ahead: 0,
                    want: Want::Last,
                })
                .collect();
            s.step(&work, &mut logits).unwrap();
        }
        let rows: Vec<_> = logits.chunks(vocab).map(<[f32]>::to_vec).collect();
        for (row, prompt) in rows.iter().zip(&prompts) {
            assert!(same(row, &fresh(&mut s, prompt)), "{name}");
        }
    }
}
