//! What holds for every model of every registered family: the same bits however work is divided, cached and
//! batched; lengths that can be taken back; failures that change nothing. References are in `golden.rs`.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rillm::generate::{Error, Session, Want, Work, argmax};
use rillm::kvcache::{CacheKind, SequenceCache};
use rillm::models::{Config, Family, Registry};
use rillm::nn::{CausalLm, WeightSource};
use rillm::tensor::cpu::Cpu;
use rillm::tensor::{Backend, Batch, Ids};
use rillm::{LanguageModel, Loader};

use support::{
    exact, feed, fresh, golden, goldens, greedy_reference, name, prompt, same, score, source, tokens,
};

/// Runs `check` on every golden checkpoint and reports all that fail.
fn each(check: impl Fn(&Path, &LanguageModel) -> Result<(), String>) {
    let mut wrong = Vec::new();
    for folder in goldens() {
        if let Err(what) = check(&folder, &exact(&folder, 2)) {
            wrong.push(format!("{}: {what}", name(&folder)));
        }
    }
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

#[test]
fn every_registered_family_has_a_golden() {
    let tested: BTreeSet<_> = goldens().iter().map(|f| exact(f, 1).info().model_type.clone()).collect();
    for family in Registry::<Cpu>::default().model_types() {
        assert!(tested.contains(family), "no golden checkpoint of {family}");
    }
}

#[test]
fn the_decoder_names_no_family() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/models/src/decoder.rs");
    let text = std::fs::read_to_string(path).unwrap();
    let code: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for family in Registry::<Cpu>::default().model_types() {
        let family = family.trim_end_matches("_text");
        assert!(!code.to_lowercase().contains(family), "decoder.rs names {family}");
    }
}

#[test]
fn decoding_with_a_cache_is_running_everything_again() {
    each(|folder, lm| {
        let mut s = lm.session();
        let ids = prompt(folder);
        let sequence = s.open();
        let half = ids.len() / 2;
        feed(&mut s, sequence, &ids[..half], Want::Nothing).map_err(|e| e.to_string())?;
        for n in half..ids.len().min(half + 30) {
            let cached = feed(&mut s, sequence, &ids[n..n + 1], Want::Last).map_err(|e| e.to_string())?;
            let whole = fresh(&mut s, &ids[..n + 1]);
            expect(same(&cached, &whole), || format!("other bits at position {n}"))?;
        }
        Ok(())
    });
}

#[test]
fn chunks_change_no_bit() {
    each(|folder, lm| {
        let (mut s, ids) = (lm.session(), prompt(folder));
        let whole = score(&mut s, &ids, usize::MAX);
        for chunk in [1, 2, 3, 7, 16] {
            expect(same(&score(&mut s, &ids, chunk), &whole), || format!("other bits in chunks of {chunk}"))?;
        }
        Ok(())
    });
}

#[test]
fn threads_change_no_bit() {
    for folder in goldens() {
        let ids = prompt(&folder);
        let one = score(&mut exact(&folder, 1).session(), &ids, usize::MAX);
        for threads in [2, 3] {
            let mut s = exact(&folder, threads).session();
            assert!(same(&score(&mut s, &ids, usize::MAX), &one), "{}: {threads} threads", name(&folder));
            assert!(same(&score(&mut s, &ids, 5), &one), "{}: {threads} threads, chunks", name(&folder));
        }
    }
}

/// Pieces of three prompts, a row a step: while one is prefilled in chunks, others decode, wait or begin.
const SCHEDULE: [[usize; 3]; 7] =
    [[5, 0, 9], [3, 4, 1], [1, 6, 1], [1, 1, 1], [0, 1, 6], [4, 1, 0], [1, 1, 1]];

#[test]
fn a_batch_of_three_is_one_by_one() {
    each(|_, lm| {
        let mut s = lm.session();
        let prompts = [1, 2, 3].map(|seed| tokens(24, s.vocab(), seed));
        let alone: Vec<Vec<Vec<f32>>> = (0..3)
            .map(|i| {
                let (sequence, mut at) = (s.open(), 0);
                let steps = SCHEDULE.iter().filter(|row| row[i] > 0).map(|row| {
                    at += row[i];
                    feed(&mut s, sequence, &prompts[i][at - row[i]..at], Want::All).unwrap()
                });
                let rows = steps.collect();
                s.close(sequence);
                rows
            })
            .collect();
        let (sequences, mut at, mut step) = ([(); 3].map(|()| s.open()), [0; 3], [0; 3]);
        let mut logits = Vec::new();
        for (row, counts) in SCHEDULE.iter().enumerate() {
            let busy: Vec<usize> = (0..3).filter(|i| counts[*i] > 0).collect();
            // Side by side: all rows, the last one, none.
            let want = |i: usize| [Want::All, Want::Last, Want::Nothing][(row / 2 + i) % 3];
            let work: Vec<_> = busy
                .iter()
                .map(|&i| {
                    let tokens = &prompts[i][at[i]..at[i] + counts[i]];
                    Work { sequence: sequences[i], tokens, ahead: 0, want: want(i) }
                })
                .collect();
            s.step(&work, &mut logits).map_err(|e| e.to_string())?;
            let mut wanted = Vec::new();
            for &i in &busy {
                let rows = &alone[i][step[i]];
                wanted.extend_from_slice(match want(i) {
                    Want::All => rows,
                    Want::Last | Want::Draw(_) => &rows[rows.len() - s.vocab()..],
                    Want::Nothing => &[],
                });
                (at[i], step[i]) = (at[i] + counts[i], step[i] + 1);
            }
            expect(same(&logits, &wanted), || format!("other bits in step {row}"))?;
        }
        Ok(())
    });
}

#[test]
fn what_is_wanted_changes_no_bit() {
    each(|folder, lm| {
        let (mut s, ids, vocab) = (lm.session(), prompt(folder), lm.info().vocab);
        let all = score(&mut s, &ids, usize::MAX);
        let last = fresh(&mut s, &ids);
        expect(same(&last, &all[all.len() - vocab..]), || "the last row alone has other bits".to_owned())
    });
}

#[test]
fn every_kernel_table_picks_the_references_tokens() {
    assert!(Cpu::kernel_names().contains(&"scalar"));
    for kernels in Cpu::kernel_names() {
        for folder in goldens() {
            let lm = Loader::new(source(&folder)).exact().threads(2).kernels(kernels).load().unwrap();
            let (mut s, wanted) = (lm.session(), greedy_reference(&folder));
            let (sequence, mut next) = (s.open(), prompt(&folder));
            let mut picked = Vec::new();
            while picked.len() < wanted.len() {
                let logits = feed(&mut s, sequence, &next, Want::Last).unwrap();
                next = vec![argmax(&logits).unwrap().0];
                picked.extend_from_slice(&next);
            }
            assert_eq!(picked, wanted, "{}: {kernels}", name(&folder));
        }
    }
}

/// Whether a model's layers keep more than keys and values: what the configuration says, and of GGUF the metadata.
fn has_states(folder: &Path) -> bool {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap_or_default().to_lowercase();
    let words = ["mamba", "linear_", "conv", "recurrent", "rwkv"];
    let metadata = std::fs::read(folder.join("model.gguf")).unwrap_or_default();
    let keys: [&[u8]; 4] = [b".ssm.state_size", b".shortconv.l_cache", b".wkv.head_size", b".kda.head_dim"];
    words.iter().any(|word| config.contains(word))
        || keys.iter().any(|key| metadata.windows(key.len()).any(|bytes| bytes == *key))
}

#[test]
fn a_sequence_is_taken_back_or_left_as_it_is() {
    let mut refused = BTreeSet::new();
    for folder in goldens() {
        let (lm, label) = (exact(&folder, 2), name(&folder));
        let mut s = lm.session();
        let (ids, others) = (tokens(20, s.vocab(), 4), tokens(9, s.vocab(), 8));
        let sequence = s.open();
        feed(&mut s, sequence, &ids, Want::Nothing).unwrap();
        // One at a time, so that rings do not grow and windows move on.
        for id in &others {
            feed(&mut s, sequence, &[*id], Want::Nothing).unwrap();
        }
        let (history, bytes) = ([&ids[..], &others[..]].concat(), s.cache_bytes());
        match s.truncate(sequence, 11) {
            Ok(()) => assert_eq!(s.len(sequence), 11, "{label}"),
            Err(Error::Model(rillm::nn::Error::Cache(rillm::kvcache::Error::Overwritten { .. }))) => {
                refused.insert(label.to_owned());
                assert_eq!(s.len(sequence), history.len(), "{label}");
            }
            Err(error) => panic!("{label}: {error}"),
        }
        // Keys stay where they are; states after the one gone back to are let go.
        if refused.contains(label) || !has_states(&folder) {
            assert_eq!(s.cache_bytes(), bytes, "{label}");
        } else {
            assert!(s.cache_bytes() <= bytes, "{label}");
        }
        let kept = &history[..s.len(sequence)];
        assert_eq!(s.common_prefix(sequence, &history), kept.len(), "{label}");
        let mut whole = kept.to_vec();
        for more in others.chunks(4) {
            whole.extend_from_slice(more);
            let logits = feed(&mut s, sequence, more, Want::Last).unwrap();
            assert!(
                same(&logits, &fresh(&mut s, &whole)),
                "{label}: other bits after {} tokens",
                whole.len()
            );
        }
        assert!(matches!(
            s.truncate(sequence, whole.len() + 1),
            Err(Error::Model(rillm::nn::Error::Cache(rillm::kvcache::Error::TooShort { .. })))
        ));
        assert_eq!(s.len(sequence), whole.len(), "{label}");
    }
    assert!(refused.contains("mistral-sliding"), "a window that moved on can't go back: {refused:?}");
    let free = ["llama", "mistral-no-window", "mistral-wide-window", "mistral-window-1"];
    assert!(free.iter().all(|name| !refused.contains(*name)), "all that a row sees is there: {refused:?}");
}

#[test]
fn a_sequence_is_taken_back_by_what_was_just_run() {
    each(|_, lm| {
        let mut s = lm.session();
        let ids = tokens(24, s.vocab(), 5);
        let sequence = s.open();
        feed(&mut s, sequence, &ids[..11], Want::Nothing).map_err(|e| e.to_string())?;
        feed(&mut s, sequence, &ids[12..20], Want::Nothing).map_err(|e| e.to_string())?;
        s.truncate(sequence, 11).map_err(|e| e.to_string())?;
        let logits = feed(&mut s, sequence, &ids[11..], Want::All).map_err(|e| e.to_string())?;
        let other = s.open();
        feed(&mut s, other, &ids[..11], Want::Nothing).map_err(|e| e.to_string())?;
        let wanted = feed(&mut s, other, &ids[11..], Want::All).map_err(|e| e.to_string())?;
        expect(same(&logits, &wanted), || "other bits after 8 tokens were taken back".to_owned())
    });
}

/// Steps that can't run, each with what its error says.
#[test]
fn a_refused_step_changes_nothing() {
    let lm = exact(&golden("mistral-sliding"), 2);
    let mut s = lm.session();
    let (ids, vocab) = (tokens(30, s.vocab(), 6), s.vocab());
    let (a, b) = (s.open(), s.open());
    feed(&mut s, a, &ids[..9], Want::Nothing).unwrap();
    feed(&mut s, b, &ids[3..20], Want::Nothing).unwrap();
    let context = s.context();
    let long = tokens(context, vocab, 1);
    let bad_token = [1, 2, vocab as u32];
    let work = |sequence, tokens, ahead| Work { sequence, tokens, ahead, want: Want::All };
    let refused: [(Work<'_>, &str); 6] = [
        (work(b, &bad_token, 0), "outside the vocabulary"),
        (work(b, &[], 0), "empty"),
        (work(b, &long, 0), "do not fit a context"),
        (work(b, &ids[..1], usize::MAX), "do not fit a context"),
        (work(a, &ids[..1], 0), "twice"),
        (work(99, &ids[..1], 0), "no sequence 99"),
    ];
    let mut logits = vec![1.0];
    for (second, message) in refused {
        let error = s.step(&[work(a, &ids[9..12], 0), second], &mut logits).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!((s.len(a), s.len(b)), (9, 17), "{message}");
    }
    let got = feed(&mut s, a, &ids[9..12], Want::Last).unwrap();
    assert!(same(&got, &fresh(&mut s, &ids[..12])));
    let got = feed(&mut s, b, &ids[20..21], Want::Last).unwrap();
    assert!(same(&got, &fresh(&mut s, &ids[3..21])));
    s.step(&[], &mut logits).unwrap();
    assert!(logits.is_empty(), "no work, no logits");
}

/// A model that fails after a forward pass when told to: caches have grown by then.
#[derive(Debug)]
struct Faulty {
    model: Box<dyn CausalLm<Cpu>>,
    /// Forward passes until one fails; 0 is never.
    countdown: Arc<AtomicUsize>,
}

impl CausalLm<Cpu> for Faulty {
    fn vocab(&self) -> usize {
        self.model.vocab()
    }
    fn context(&self) -> Option<usize> {
        self.model.context()
    }
    fn caches(&self) -> Vec<CacheKind> {
        self.model.caches()
    }
    fn rope_set(&self, len: usize) -> usize {
        self.model.rope_set(len)
    }
    fn weight_bytes(&self, be: &Cpu) -> usize {
        self.model.weight_bytes(be)
    }
    fn forward(
        &self,
        be: &Cpu,
        ids: Ids<'_, Cpu>,
        batch: &Batch,
        caches: &mut [SequenceCache<Cpu>],
        logits_of: &[usize],
    ) -> rillm::nn::Result<Option<<Cpu as Backend>::Tensor>> {
        let out = self.model.forward(be, ids, batch, caches, logits_of)?;
        let left = self.countdown.load(Ordering::Relaxed);
        self.countdown.store(left.saturating_sub(1), Ordering::Relaxed);
        let fault = || rillm::tensor::Error::OutOfMemory { what: "this test", bytes: 1 };
        if left == 1 { Err(fault().into()) } else { Ok(out) }
    }
}

#[derive(Debug)]
struct FaultyFamily(Arc<AtomicUsize>);

impl Family<Cpu> for FaultyFamily {
    fn model_types(&self) -> &[&'static str] {
        &["llama", "mistral"]
    }
    fn load(
        &self,
        config: &Config<'_>,
        source: &dyn WeightSource,
        be: &Cpu,
    ) -> rillm::models::Result<Box<dyn CausalLm<Cpu>>> {
        let model = Registry::default().load(config, source, be)?;
        Ok(Box::new(Faulty { model, countdown: self.0.clone() }))
    }
}

fn faulty(name: &str) -> (LanguageModel, Arc<AtomicUsize>) {
    let countdown = Arc::new(AtomicUsize::new(0));
    let loader =
        Loader::new(source(&golden(name))).exact().threads(1).family(FaultyFamily(countdown.clone()));
    (loader.load().unwrap(), countdown)
}

#[test]
fn a_step_that_fails_half_way_changes_nothing() {
    for model in ["llama", "mistral-sliding", "mistral-window-1", "llama-rope-longrope-cross"] {
        let (lm, countdown) = faulty(model);
        let mut s = lm.session();
        let ids = tokens(60, s.vocab(), 2);
        let (a, b) = (s.open(), s.open());
        let mut logits = Vec::new();
        for (sequence, n) in [(a, 9), (b, 17)] {
            feed(&mut s, sequence, &ids[..n], Want::Nothing).unwrap();
        }
        for _ in 0..2 {
            countdown.store(1, Ordering::Relaxed);
            let work = [(a, 9..10), (b, 17..39)].map(|(sequence, r)| Work {
                sequence,
                tokens: &ids[r],
                ahead: 0,
                want: Want::Last,
            });
            assert!(s.step(&work, &mut logits).is_err(), "{model}");
            assert_eq!((s.len(a), s.len(b)), (9, 17), "{model}");
        }
        assert!(
            same(&feed(&mut s, a, &ids[9..10], Want::Last).unwrap(), &fresh(&mut s, &ids[..10])),
            "{model}"
        );
        assert!(
            same(&feed(&mut s, b, &ids[17..39], Want::Last).unwrap(), &fresh(&mut s, &ids[..39])),
            "{model}"
        );
    }
}

#[test]
fn a_failure_while_old_tokens_are_run_again_loses_none() {
    let (lm, countdown) = faulty("llama-rope-dynamic-cross");
    let mut s = lm.session();
    let ids = tokens(600, s.vocab(), 3);
    let a = s.open();
    feed(&mut s, a, &ids[..590], Want::Nothing).unwrap();
    // Every step runs the old tokens again, in two passes, before the new one.
    for failing in [1, 2, 3] {
        countdown.store(failing, Ordering::Relaxed);
        assert!(feed(&mut s, a, &ids[590..591], Want::Last).is_err());
        assert_eq!((s.len(a), s.common_prefix(a, &ids)), (590, 590));
    }
    assert!(same(&feed(&mut s, a, &ids[590..591], Want::Last).unwrap(), &fresh(&mut s, &ids[..591])));
    countdown.store(2, Ordering::Relaxed);
    assert!(feed(&mut s, a, &ids[591..592], Want::Last).is_err());
    assert!(s.truncate(a, 595).is_err());
    s.truncate(a, 500).unwrap();
    assert!(same(&feed(&mut s, a, &ids[500..502], Want::Last).unwrap(), &fresh(&mut s, &ids[..502])));
}

/// Of a mixture a token reads the router and the experts that it chooses, no more.
#[test]
fn a_token_reads_the_bytes_of_its_experts() {
    let from = golden("qwen3-moe-window");
    let bytes = |top_k: usize| {
        let folder = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["num_experts_per_tok"] = top_k.into();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        std::fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        exact(folder.path(), 1).info().weight_bytes
    };
    // Two layers with experts of three matrices, 32 columns by 24 rows or (in whole blocks and units) the reverse, in f16.
    let expert = 2 * 2 * (2 * 32 * 32 + 32 * 32);
    let alone = bytes(1);
    for top_k in [2, 3, 6] {
        assert_eq!(bytes(top_k) - alone, (top_k - 1) * expert);
    }
}
