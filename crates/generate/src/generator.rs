//! Tokens of one request, one `next` at a time.

use std::time::{Duration, Instant};

use crate::request::Answer;
use crate::{FinishReason, Request, Result, Session, Token, Want, Work};

/// How far the prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens of the prompt that were run or found in the cache.
    pub done: usize,
    /// All tokens of the prompt.
    pub total: usize,
}

/// How long a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the cache had already.
    pub cached_tokens: usize,
    /// Tokens generated, not counting the one that ended the answer.
    pub generated_tokens: usize,
    /// From the start to the first token.
    pub first_token: Duration,
    /// From the first token to the latest.
    pub after_first: Duration,
}

/// Iterates over the tokens that continue a prompt. Dropping it ends the generation.
///
/// The sequence is closed on drop unless it was given with [`continuing`](Self::continuing).
pub struct Generator<S: Session> {
    session: S,
    sequence: usize,
    owned: bool,
    answer: Answer,
    chunk: usize,
    on_progress: Option<Box<dyn FnMut(Progress) + Send>>,
    logits: Vec<f32>,
    /// What the session picked, where it was asked to.
    picked: Vec<u32>,
    started: Option<Instant>,
    timing: Timing,
}

impl<S: Session> Generator<S> {
    /// Tokens of prompt that one forward pass takes, unless [`prefill_chunk`](Self::prefill_chunk) says otherwise.
    pub const PREFILL_CHUNK: usize = 512;

    /// Answers `request` in a sequence of its own.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context, or tokens outside the vocabulary.
    pub fn new(mut session: S, request: Request) -> Result<Self> {
        let answer = Answer::new(request, 0, &session)?;
        let sequence = session.open();
        Ok(Self::with(session, sequence, true, answer))
    }

    /// Answers `request` in `sequence`, whose tokens are kept as far as they agree with the prompt.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context, or tokens outside the vocabulary; the sequence has then lost
    /// what did not agree.
    pub fn continuing(mut session: S, sequence: usize, request: Request) -> Result<Self> {
        let known = session.common_prefix(sequence, &request.prompt);
        // The last token of the prompt is always run: its logits are the first that are needed.
        let keep = known.min(request.prompt.len().saturating_sub(1));
        let keep = match session.truncate(sequence, keep) {
            Ok(()) => keep,
            // A window has moved on: start again.
            Err(_) => session.truncate(sequence, 0).map(|()| 0)?,
        };
        let answer = Answer::new(request, keep, &session)?;
        Ok(Self::with(session, sequence, false, answer))
    }

    fn with(session: S, sequence: usize, owned: bool, answer: Answer) -> Self {
        let timing = Timing {
            prompt_tokens: answer.history().len(),
            cached_tokens: session.len(sequence),
            ..Timing::default()
        };
        Self {
            session,
            sequence,
            owned,
            answer,
            chunk: Self::PREFILL_CHUNK,
            on_progress: None,
            logits: Vec::new(),
            picked: Vec::new(),
            started: None,
            timing,
        }
    }

    /// Runs the prompt `tokens` at a time.
    pub fn prefill_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens.max(1);
        self
    }

    /// Calls `f` after each chunk of the prompt.
    pub fn on_progress(mut self, f: impl FnMut(Progress) + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(f));
        self
    }

    /// Prompt and answer so far.
    pub fn tokens(&self) -> &[u32] {
        self.answer.history()
    }

    /// Why the answer ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.answer.finish()
    }

    /// Ends the answer after the tokens given so far.
    pub fn finish(&mut self, why: FinishReason) {
        self.answer.end(why);
    }

    /// How long it took so far.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// The session that runs the model.
    pub fn session(&self) -> &S {
        &self.session
    }

    /// Runs what the session has not seen yet, in chunks. False if there is nothing to run: the answer is over.
    fn advance(&mut self) -> Result<bool> {
        let picks = self.answer.want();
        loop {
            let (session, logits) = (&mut self.session, &mut self.logits);
            let Some((tokens, ahead)) = self.answer.next_work(self.chunk) else { return Ok(false) };
            let want = if ahead == 0 { picks.unwrap_or(Want::Last) } else { Want::Nothing };
            let ran = tokens.len();
            let work = [Work { sequence: self.sequence, tokens, ahead, want }];
            match picks {
                Some(_) if ahead == 0 => session.step_picking(&work, &mut self.picked)?,
                _ => session.step(&work, logits)?,
            }
            self.answer.ran(ran);
            if self.timing.generated_tokens == 0
                && let Some(f) = &mut self.on_progress
            {
                let total = self.timing.prompt_tokens;
                f(Progress { done: total - ahead, total });
            }
            if ahead == 0 {
                return Ok(true);
            }
        }
    }

    fn step(&mut self) -> Result<Option<Token>> {
        let started = *self.started.get_or_insert_with(Instant::now);
        if !self.advance()? {
            return Ok(None);
        }
        let (produced, context) = (self.timing.generated_tokens, self.session.context());
        let token = match self.picked.pop() {
            Some(id) => self.answer.take_picked(id, context, produced),
            None => self.answer.pick(&mut self.logits, context, produced)?,
        };
        if token.is_some() {
            self.timing.generated_tokens += 1;
        }
        let elapsed = started.elapsed();
        match produced {
            0 => self.timing.first_token = elapsed,
            _ => self.timing.after_first = elapsed - self.timing.first_token,
        }
        Ok(token)
    }
}

impl<S: Session> Iterator for Generator<S> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Ok(token) => token.map(Ok),
            Err(error) => {
                self.answer.end(FinishReason::Cancelled);
                Some(Err(error))
            }
        }
    }
}

impl<S: Session> Drop for Generator<S> {
    fn drop(&mut self) {
        if self.owned {
            self.session.close(self.sequence);
        }
    }
}
