//! [`Session`] over a model of any family on any backend, in this process and on the calling thread.

mod ahead;

use rillm_kvcache::{CacheKind, SequenceCache};
use rillm_nn::CausalLm;
use rillm_tensor_core::{Backend, Batch, Ids};

use crate::session::Picker;
use crate::{Error, Result, Session, Want, Work};
use ahead::Ahead;

/// Rows of one forward pass when a sequence has to be prefilled again.
const CHUNK: usize = 512;
/// Tokens by which a sequence's history grows at least.
const GROWTH: usize = 256;

/// A model and its sequences.
#[derive(Debug)]
pub struct LocalSession<B: Backend> {
    backend: B,
    model: Box<dyn CausalLm<B>>,
    kinds: Vec<CacheKind>,
    context: usize,
    caches: Vec<SequenceCache<B>>,
    sequences: Vec<Option<Sequence>>,
    /// Passes that were started before anybody asked for them; no two share a sequence.
    ahead: Vec<Ahead<B>>,
    // Kept between steps so that decoding allocates nothing.
    batch: Batch,
    ids: Vec<u32>,
    rows: Vec<usize>,
    part: Vec<f32>,
    picker: Picker,
    points: Vec<f32>,
}

/// What has been fed to a sequence.
#[derive(Debug, Default)]
struct Sequence {
    tokens: Vec<u32>,
    /// Which rope frequencies its caches were computed with; see [`CausalLm::rope_set`].
    rope_set: usize,
    /// Whether the caches hold fewer tokens, because they were lost to a failed step or could only go back further than
    /// was asked: the others must be computed again.
    stale: bool,
    /// Its length before the tokens that were fed last: the shortest that it can always go back to.
    latest: usize,
}

impl Sequence {
    /// Appends `tokens`; memory grows in large steps, so that decoding rarely allocates.
    fn extend(&mut self, tokens: &[u32]) {
        self.latest = self.tokens.len();
        let free = self.tokens.capacity() - self.tokens.len();
        if tokens.len() > free {
            self.tokens.reserve(tokens.len().max(GROWTH));
        }
        self.tokens.extend_from_slice(tokens);
    }
}

impl<B: Backend> LocalSession<B> {
    /// A session without sequences. They may have `context` tokens, by default as many as the model was made for.
    pub fn new(backend: B, model: Box<dyn CausalLm<B>>, context: Option<usize>) -> Self {
        let limits = [context.or(model.context()), model.max_positions()];
        Self {
            backend,
            kinds: model.caches(),
            context: limits.into_iter().flatten().min().unwrap_or(u32::MAX as usize),
            model,
            caches: Vec::new(),
            sequences: Vec::new(),
            ahead: Vec::new(),
            batch: Batch::default(),
            ids: Vec::new(),
            rows: Vec::new(),
            part: Vec::new(),
            picker: Picker::default(),
            points: Vec::new(),
        }
    }

    fn sequence(&self, number: usize) -> Result<&Sequence> {
        self.sequences.get(number).and_then(Option::as_ref).ok_or(Error::NoSuchSequence { number })
    }

    /// Checks everything that can be wrong with `work` before anything is computed.
    fn check(&self, work: &[Work<'_>]) -> Result<()> {
        let vocab = self.model.vocab();
        for (i, w) in work.iter().enumerate() {
            let len = self.sequence(w.sequence)?.tokens.len();
            if w.tokens.is_empty() {
                return Err(Error::EmptyPrompt);
            }
            if work[..i].iter().any(|other| other.sequence == w.sequence) {
                return Err(Error::RepeatedSequence { number: w.sequence });
            }
            let tokens = len.saturating_add(w.tokens.len()).saturating_add(w.ahead);
            if tokens > self.context {
                return Err(Error::ContextFull { tokens, context: self.context });
            }
            if let Some(&token) = w.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(rillm_nn::Error::from(rillm_tensor_core::Error::TokenOutOfRange {
                    token,
                    vocab,
                })
                .into());
            }
        }
        Ok(())
    }

    /// The rope set and the length it is chosen from, once `w` has run.
    fn rope(&self, w: &Work<'_>, len: usize) -> (usize, usize) {
        let total = len + w.tokens.len() + w.ahead;
        (self.model.rope_set(total), total)
    }

    /// Recomputes the caches of sequences that lost them or whose frequencies change with this work.
    fn refresh(&mut self, work: &[Work<'_>]) -> Result<()> {
        for w in work {
            let sequence = self.sequence(w.sequence)?;
            let (len, old, stale) = (sequence.tokens.len(), sequence.rope_set, sequence.stale);
            let (set, total) = self.rope(w, len);
            if (stale || set != old) && len > 0 {
                let held = if set == old { self.caches[w.sequence].len() } else { 0 };
                self.caches[w.sequence].truncate(held).map_err(rillm_nn::Error::from)?;
                for at in (held..len).step_by(CHUNK) {
                    let end = len.min(at + CHUNK);
                    self.ids.clear();
                    if let Some(Some(sequence)) = self.sequences.get(w.sequence) {
                        self.ids.extend_from_slice(&sequence.tokens[at..end]);
                    }
                    self.batch.reset(total);
                    self.batch.push(w.sequence, at, end - at);
                    self.rows.clear();
                    self.forward()?;
                }
            }
            if let Some(Some(sequence)) = self.sequences.get_mut(w.sequence) {
                (sequence.rope_set, sequence.stale) = (set, false);
            }
        }
        Ok(())
    }

    /// Runs `self.ids` as `self.batch`. Returns the logits of `self.rows`.
    ///
    /// Nobody will wait for sequences without such rows, and a lazy backend would gather passes without end: it has to
    /// compute their caches now.
    fn forward(&mut self) -> Result<Option<B::Tensor>> {
        let ids = Ids::Host(&self.ids);
        let out = self.model.forward(&self.backend, ids, &self.batch, &mut self.caches, &self.rows)?;
        let spans = self.batch.spans().iter();
        let silent = spans.filter(|span| !self.rows.iter().any(|row| span.rows.contains(row)));
        let buffers: Vec<_> = silent.flat_map(|span| self.caches[span.sequence].buffers()).collect();
        if !buffers.is_empty() {
            self.backend.evaluate(&buffers).map_err(rillm_nn::Error::from)?;
        }
        Ok(out)
    }

    /// One forward pass over work whose rope sets agree. Returns the logits of the rows wanted.
    fn run(&mut self, work: &[Work<'_>]) -> Result<Option<B::Tensor>> {
        self.ids.clear();
        self.rows.clear();
        let mut rope_len = 0;
        for w in work {
            rope_len = rope_len.max(self.rope(w, self.sequence(w.sequence)?.tokens.len()).1);
        }
        self.batch.reset(rope_len);
        for w in work {
            let (at, start) = (self.ids.len(), self.sequence(w.sequence)?.tokens.len());
            self.ids.extend_from_slice(w.tokens);
            self.batch.push(w.sequence, start, w.tokens.len());
            match w.want {
                Want::Nothing => {}
                Want::Last | Want::Draw(_) => self.rows.push(self.ids.len() - 1),
                Want::All => self.rows.extend(at..self.ids.len()),
            }
        }
        self.forward()
    }

    /// Copies logits to `self.part`.
    fn read(&mut self, logits: &B::Tensor) -> Result<()> {
        Ok(self.backend.read(logits, &mut self.part).map_err(rillm_nn::Error::from)?)
    }

    /// Pieces of work that one pass takes, once their caches are refreshed: all, or one if their rope sets differ.
    fn pieces(&self, work: &[Work<'_>]) -> usize {
        let set = |w: &Work<'_>| self.sequences[w.sequence].as_ref().map_or(0, |q| q.rope_set);
        let together = work.windows(2).all(|w| set(&w[0]) == set(&w[1]));
        if together { work.len().max(1) } else { 1 }
    }

    fn try_step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        self.refresh(work)?;
        for part in work.chunks(self.pieces(work)) {
            if let Some(out) = self.run(part)? {
                self.read(&out)?;
                logits.extend_from_slice(&self.part);
            }
        }
        Ok(())
    }

    /// Makes sequences longer by what was `done`, or else their caches as long as they were.
    fn settle(&mut self, work: &[Work<'_>], done: bool) {
        for w in work {
            match self.sequences.get_mut(w.sequence) {
                Some(Some(sequence)) if done => sequence.extend(w.tokens),
                _ => self.restore(w.sequence, 0),
            }
        }
    }

    /// Takes the caches of a sequence back to its tokens and `more`. If that can't be, because they were lost to a
    /// pass that failed while it computed old tokens again or to one that ran ahead, the next step computes them.
    fn restore(&mut self, number: usize, more: usize) {
        let Some(Some(sequence)) = self.sequences.get_mut(number) else { return };
        if self.caches[number].truncate(sequence.tokens.len() + more).is_err() {
            self.lose(number);
        }
    }

    /// Drops the caches of a sequence, to be computed again.
    fn lose(&mut self, number: usize) {
        if let Some(Some(sequence)) = self.sequences.get_mut(number) {
            self.caches[number] = SequenceCache::new(&self.kinds);
            sequence.stale = true;
        }
    }
}

impl<B: Backend> Session for LocalSession<B> {
    fn vocab(&self) -> usize {
        self.model.vocab()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn weight_bytes(&self) -> usize {
        self.model.weight_bytes(&self.backend)
    }

    fn cache_bytes(&self) -> usize {
        self.caches.iter().map(|c| c.bytes(&self.backend)).sum()
    }

    fn open(&mut self) -> usize {
        let (cache, sequence) = (SequenceCache::new(&self.kinds), Some(Sequence::default()));
        match self.sequences.iter().position(Option::is_none) {
            Some(i) => {
                (self.caches[i], self.sequences[i]) = (cache, sequence);
                i
            }
            None => {
                self.caches.push(cache);
                self.sequences.push(sequence);
                self.caches.len() - 1
            }
        }
    }

    fn close(&mut self, sequence: usize) {
        self.take_back(|other| other == sequence);
        if let Some(slot) = self.sequences.get_mut(sequence) {
            *slot = None;
            self.caches[sequence] = SequenceCache::new(&self.kinds);
        }
    }

    fn len(&self, sequence: usize) -> usize {
        self.sequence(sequence).map_or(0, |s| s.tokens.len())
    }

    fn common_prefix(&self, sequence: usize, tokens: &[u32]) -> usize {
        let own = self.sequence(sequence).map_or(&[][..], |s| &s.tokens);
        own.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        let have = self.sequence(sequence)?.tokens.len();
        if have == len {
            return Ok(());
        }
        if len > have {
            return Err(rillm_nn::Error::from(rillm_kvcache::Error::TooShort { len, have }).into());
        }
        self.take_back(|other| other == sequence);
        let &Sequence { stale, latest, .. } = self.sequence(sequence)?;
        let cache = &mut self.caches[sequence];
        let held = if stale { len.min(cache.len()) } else { len };
        if let Err(error) = cache.truncate(held) {
            let has_states = self.kinds.iter().any(|kind| matches!(kind, CacheKind::State { .. }));
            if has_states && cache.truncate(cache.nearest(held)).is_ok() {
                // The next step computes what is missing.
                if let Some(Some(s)) = self.sequences.get_mut(sequence) {
                    s.stale = true;
                }
            } else if len < latest {
                return Err(rillm_nn::Error::from(error).into());
            } else {
                // What was fed last can be taken back, but for a row that ran ahead and overwrote what is needed now.
                self.lose(sequence);
            }
        }
        if let Some(Some(s)) = self.sequences.get_mut(sequence) {
            s.tokens.truncate(len);
        }
        Ok(())
    }

    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        self.check(work)?;
        self.take_back(|sequence| work.iter().any(|w| w.sequence == sequence));
        let done = self.try_step(work, logits);
        self.settle(work, done.is_ok());
        done
    }

    fn step_picking(&mut self, work: &[Work<'_>], tokens: &mut Vec<u32>) -> Result<()> {
        tokens.clear();
        self.check(work)?;
        let done = self.try_picking(work, tokens);
        self.settle(work, done.is_ok());
        done
    }
}
