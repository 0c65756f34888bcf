//! Several requests at once: every step decodes all running answers and takes a chunk of a waiting prompt along.

use std::collections::VecDeque;

use crate::request::Answer;
use crate::{Error, FinishReason, Request, Result, Session, Token, Want, Work};

/// What a step brought for one request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The next token of request `id`.
    Token {
        /// Number that [`BatchGenerator::add`] gave.
        id: usize,
        /// The token.
        token: Token,
    },
    /// Request `id` is answered.
    Finished {
        /// Number that [`BatchGenerator::add`] gave.
        id: usize,
        /// Why.
        reason: FinishReason,
        /// Prompt and answer.
        tokens: Vec<u32>,
    },
    /// Request `id` failed; the others go on.
    Failed {
        /// Number that [`BatchGenerator::add`] gave.
        id: usize,
        /// Why.
        error: Error,
    },
}

struct Running {
    id: usize,
    sequence: usize,
    answer: Answer,
    produced: usize,
}

/// Generates for any number of requests in the same forward passes.
///
/// A request's tokens do not depend on what else is in the batch (bit for bit where the backend computes exactly).
pub struct BatchGenerator<S: Session> {
    session: S,
    waiting: VecDeque<(usize, Answer)>,
    running: Vec<Running>,
    slots: usize,
    chunk: usize,
    added: usize,
    logits: Vec<f32>,
    /// What the session picked, where it was asked to.
    picked: Vec<u32>,
}

impl<S: Session> BatchGenerator<S> {
    /// Runs at most `slots` requests at a time; the others wait in order.
    pub fn new(session: S, slots: usize) -> Self {
        Self {
            session,
            waiting: VecDeque::new(),
            running: Vec::new(),
            slots: slots.max(1),
            chunk: 512,
            added: 0,
            logits: Vec::new(),
            picked: Vec::new(),
        }
    }

    /// Takes at most `tokens` tokens of prompts into one forward pass.
    pub fn prefill_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens.max(1);
        self
    }

    /// Queues `request` and returns its number.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context, or tokens outside the vocabulary.
    pub fn add(&mut self, request: Request) -> Result<usize> {
        let answer = Answer::new(request, 0, &self.session)?;
        self.added += 1;
        self.waiting.push_back((self.added - 1, answer));
        Ok(self.added - 1)
    }

    /// Ends the answer of request `id` after the tokens given so far; the next step says that it is finished.
    pub fn finish(&mut self, id: usize, why: FinishReason) {
        let waiting = self.waiting.iter_mut().map(|(id, answer)| (*id, answer));
        let running = self.running.iter_mut().map(|r| (r.id, &mut r.answer));
        if let Some((_, answer)) = waiting.chain(running).find(|(other, _)| *other == id) {
            answer.end(why);
        }
    }

    /// Whether every request is answered.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Runs one forward pass and returns what it brought.
    ///
    /// # Errors
    /// The pass failed; no request has moved.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        while self.running.len() < self.slots
            && let Some((id, answer)) = self.waiting.pop_front()
        {
            let sequence = self.session.open();
            self.running.push(Running { id, sequence, answer, produced: 0 });
        }
        let (mut room, mut may_pick) = (self.chunk, true);
        let mut work = Vec::with_capacity(self.running.len());
        for r in &mut self.running {
            // A decoding answer has one token to run; prompts share what room is left.
            let chunk = if r.produced > 0 { 1 } else { room };
            if chunk == 0 {
                continue;
            }
            let sequence = r.sequence;
            let (produced, picks) = (r.produced, r.answer.want());
            if let Some((tokens, ahead)) = r.answer.next_work(chunk) {
                room -= if produced > 0 { 0 } else { tokens.len() };
                let want = if ahead == 0 { picks.unwrap_or(Want::Last) } else { Want::Nothing };
                may_pick &= picks.is_some() || ahead > 0;
                work.push(Work { sequence, tokens, ahead, want });
            }
        }
        self.logits.clear();
        if !may_pick || !let_pick(&mut self.session, &work, &mut self.picked)? {
            self.picked.clear();
            self.session.step(&work, &mut self.logits)?;
        }
        let ran: Vec<_> = work.iter().map(|w| (w.sequence, w.tokens.len(), w.want)).collect();
        Ok(self.pick(&ran))
    }

    /// Picks a token for each row of logits and lets go of the answers that ended.
    fn pick(&mut self, ran: &[(usize, usize, Want)]) -> Vec<Event> {
        let (vocab, context) = (self.session.vocab(), self.session.context());
        let mut events = Vec::new();
        let mut picked = self.picked.drain(..);
        let mut rows = self.logits.chunks_exact_mut(vocab.max(1));
        for &(sequence, tokens, want) in ran {
            let Some(r) = self.running.iter_mut().find(|r| r.sequence == sequence) else { continue };
            r.answer.ran(tokens);
            if want == Want::Nothing {
                continue;
            }
            let token = match (picked.next(), rows.next()) {
                (Some(id), _) => Ok(r.answer.take_picked(id, context, r.produced)),
                (None, Some(row)) => r.answer.pick(row, context, r.produced),
                (None, None) => continue,
            };
            match token {
                Ok(Some(token)) => {
                    r.produced += 1;
                    events.push(Event::Token { id: r.id, token });
                }
                Ok(None) => {}
                Err(error) => {
                    r.answer.end(FinishReason::Cancelled);
                    events.push(Event::Failed { id: r.id, error });
                }
            }
        }
        let session = &mut self.session;
        self.running.retain(|r| {
            let Some(reason) = r.answer.finish() else { return true };
            session.close(r.sequence);
            let failed = events.iter().any(|e| matches!(e, Event::Failed { id, .. } if *id == r.id));
            if !failed {
                events.push(Event::Finished { id: r.id, reason, tokens: r.answer.history().to_vec() });
            }
            false
        });
        events
    }
}

/// Lets the session pick. Where logits of one answer are broken it does not say whose: false, and nothing has moved.
fn let_pick(session: &mut impl Session, work: &[Work<'_>], picked: &mut Vec<u32>) -> Result<bool> {
    match session.step_picking(work, picked) {
        Ok(()) => Ok(true),
        Err(Error::NanLogits { .. } | Error::NoCandidates { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl<S: Session> Drop for BatchGenerator<S> {
    fn drop(&mut self) {
        for r in &self.running {
            self.session.close(r.sequence);
        }
    }
}
