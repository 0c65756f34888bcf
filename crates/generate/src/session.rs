//! The object-safe boundary: a model and its sequences, with backend and architecture erased.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rillm_tensor_core::Sampling;

use crate::sampler::Chain;
use crate::{Result, Rng, argmax};

/// Which rows of a piece of work need logits, and which token [`Session::step_picking`] takes of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// None: a chunk of a prompt that is not its last.
    Nothing,
    /// Those that follow the last token, or the most likely of them.
    Last,
    /// Those that follow the last token, or a draw from them.
    Draw(Draw),
    /// Those that follow every token, or the most likely of each: scoring, verification.
    All,
}

impl Want {
    /// What the step after this one will want if answers go on as they do.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Draw(draw) => Self::Draw(Draw { step: draw.step + 1, ..draw }),
            other => other,
        }
    }
}

/// One draw of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// What it is drawn from.
    pub how: Sampling,
    /// The answer's random numbers.
    pub rng: Rng,
    /// Which of the answer's draws this is.
    pub step: u64,
}

impl Draw {
    /// Where in the cumulative distribution it falls, in single precision: a multiple of 2^-24 in `[0, 1)`.
    pub(crate) fn point(&self) -> f32 {
        // Rounded towards 0: nothing lies above a point of 1.
        const PARTS: u32 = 1 << 24;
        let point = self.rng.uniform_f64(self.step, Chain::CHOICE) * f64::from(PARTS);
        point.floor() as f32 / PARTS as f32
    }
}

/// Tokens for one sequence in one forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// A number that [`Session::open`] gave.
    pub sequence: usize,
    /// Tokens that continue the sequence.
    pub tokens: &'a [u32],
    /// Tokens of the same prompt that later work will bring. Frequencies that depend on the length are chosen
    /// from the whole prompt, so that chunks don't change the result.
    pub ahead: usize,
    /// Rows that need logits.
    pub want: Want,
}

/// A model and any number of sequences. One virtual call a step, none an operation.
///
/// `&mut self`, because a forward pass changes the caches; [`SharedSession`] lets several threads take turns.
pub trait Session: Send {
    /// Tokens that logits are given for.
    fn vocab(&self) -> usize;
    /// The longest sequence, in tokens.
    fn context(&self) -> usize;
    /// Bytes of weights that the decoding of one token reads.
    fn weight_bytes(&self) -> usize;
    /// Bytes of the caches of all sequences.
    fn cache_bytes(&self) -> usize;
    /// Starts an empty sequence and returns its number.
    fn open(&mut self) -> usize;
    /// Ends a sequence and frees its caches; its number may be given again. Unknown numbers are ignored.
    fn close(&mut self, sequence: usize);
    /// Tokens of the sequence so far.
    fn len(&self, sequence: usize) -> usize;
    /// How many of `tokens`, from the first, are the sequence's own.
    fn common_prefix(&self, sequence: usize, tokens: &[u32]) -> usize;
    /// Forgets the tokens from `len` on. Where layers have states, these go back to the nearest one that was kept, and
    /// the next step computes what is missing.
    ///
    /// # Errors
    /// The caches can't go back that far; nothing has changed then.
    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()>;
    /// Runs all of `work` in one forward pass (more where frequencies depend on differing lengths) and writes the
    /// logits wanted to `logits`, rows of [`vocab`](Self::vocab) values in the order of `work`.
    ///
    /// # Errors
    /// A context that is full, a token outside the vocabulary, a failing backend. The sequences are as before.
    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()>;

    /// Like [`step`](Self::step), but picks a token of each row of logits wanted and writes it to `tokens`: the most
    /// likely, the first of equals, or what [`Want::Draw`] says.
    ///
    /// A session may guess that the next call feeds each sequence the token that was picked for it, and wants the draw
    /// after this one. It may start on that before it returns, and takes the guess back when something else is asked:
    /// nothing but time tells.
    ///
    /// # Errors
    /// Those of [`step`](Self::step), and [`NanLogits`](crate::Error::NanLogits) or
    /// [`NoCandidates`](crate::Error::NoCandidates) if a row is no distribution. The sequences are as before. A device
    /// that picks itself does not look for NaN: it gives some token then.
    fn step_picking(&mut self, work: &[Work<'_>], tokens: &mut Vec<u32>) -> Result<()> {
        let mut logits = Vec::new();
        tokens.clear();
        self.step(work, &mut logits)?;
        let picked = Picker::default().pick(&mut logits, self.vocab(), work, tokens);
        if picked.is_err() {
            for w in work {
                self.truncate(w.sequence, self.len(w.sequence).saturating_sub(w.tokens.len()))?;
            }
        }
        picked
    }
}

/// Picks tokens on the host; memory is kept from step to step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picker(Option<Chain>);

impl Picker {
    /// A token for each of `rows` of `vocab` logits, which are those that `work` wants, appended to `tokens`.
    pub(crate) fn pick(
        &mut self,
        rows: &mut [f32],
        vocab: usize,
        work: &[Work<'_>],
        tokens: &mut Vec<u32>,
    ) -> Result<()> {
        let mut rows = rows.chunks_exact_mut(vocab.max(1));
        for w in work {
            let count = match w.want {
                Want::Nothing => 0,
                Want::Last | Want::Draw(_) => 1,
                Want::All => w.tokens.len(),
            };
            for row in rows.by_ref().take(count) {
                tokens.push(match w.want {
                    Want::Draw(draw) => self.0.get_or_insert_with(|| Chain::plain(&draw)).draw(&draw, row)?,
                    _ => argmax(row)?.0,
                });
            }
        }
        Ok(())
    }
}

impl<S: Session + ?Sized> Session for &mut S {
    fn vocab(&self) -> usize {
        (**self).vocab()
    }
    fn context(&self) -> usize {
        (**self).context()
    }
    fn weight_bytes(&self) -> usize {
        (**self).weight_bytes()
    }
    fn cache_bytes(&self) -> usize {
        (**self).cache_bytes()
    }
    fn open(&mut self) -> usize {
        (**self).open()
    }
    fn close(&mut self, sequence: usize) {
        (**self).close(sequence);
    }
    fn len(&self, sequence: usize) -> usize {
        (**self).len(sequence)
    }
    fn common_prefix(&self, sequence: usize, tokens: &[u32]) -> usize {
        (**self).common_prefix(sequence, tokens)
    }
    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        (**self).truncate(sequence, len)
    }
    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        (**self).step(work, logits)
    }
    fn step_picking(&mut self, work: &[Work<'_>], tokens: &mut Vec<u32>) -> Result<()> {
        (**self).step_picking(work, tokens)
    }
}

/// A session that several threads use in turn, a step at a time: clones share it.
#[derive(Clone)]
pub struct SharedSession(Arc<Mutex<Box<dyn Session>>>);

impl SharedSession {
    /// Shares `session`.
    pub fn new(session: impl Session + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(session))))
    }

    /// A step leaves a session as it was when it fails, so a panic elsewhere has not broken it.
    fn lock(&self) -> MutexGuard<'_, Box<dyn Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SharedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSession")
    }
}

impl Session for SharedSession {
    fn vocab(&self) -> usize {
        self.lock().vocab()
    }
    fn context(&self) -> usize {
        self.lock().context()
    }
    fn weight_bytes(&self) -> usize {
        self.lock().weight_bytes()
    }
    fn cache_bytes(&self) -> usize {
        self.lock().cache_bytes()
    }
    fn open(&mut self) -> usize {
        self.lock().open()
    }
    fn close(&mut self, sequence: usize) {
        self.lock().close(sequence);
    }
    fn len(&self, sequence: usize) -> usize {
        self.lock().len(sequence)
    }
    fn common_prefix(&self, sequence: usize, tokens: &[u32]) -> usize {
        self.lock().common_prefix(sequence, tokens)
    }
    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        self.lock().truncate(sequence, len)
    }
    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        self.lock().step(work, logits)
    }
    fn step_picking(&mut self, work: &[Work<'_>], tokens: &mut Vec<u32>) -> Result<()> {
        self.lock().step_picking(work, tokens)
    }
}
