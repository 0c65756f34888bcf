//! What is asked of a model, and the state of one answer between two steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::logprobs::TokenLogprobs;
use crate::processor::LogitsProcessor;
use crate::sampler::{Greedy, Sampler};
use crate::{Error, FinishReason, Result, Session, Want};

/// A prompt and how to continue it.
pub struct Request {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) processors: Vec<Box<dyn LogitsProcessor>>,
    pub(crate) sampler: Box<dyn Sampler>,
    pub(crate) cancel: CancelHandle,
}

impl Request {
    /// Continues `prompt` greedily for at most 256 tokens.
    pub fn new(prompt: impl Into<Vec<u32>>) -> Self {
        Self {
            prompt: prompt.into(),
            max_tokens: 256,
            stop_tokens: Vec::new(),
            logprobs: None,
            processors: Vec::new(),
            sampler: Box::new(Greedy),
            cancel: CancelHandle::default(),
        }
    }

    /// At most `n` tokens.
    pub fn max_tokens(mut self, n: usize) -> Self {
        self.max_tokens = n;
        self
    }

    /// Tokens that end the answer and are not part of it.
    pub fn stop_tokens(mut self, tokens: impl Into<Vec<u32>>) -> Self {
        self.stop_tokens = tokens.into();
        self
    }

    /// Log-probabilities of the token picked and of the `top` most likely ones, with each token.
    pub fn logprobs(mut self, top: usize) -> Self {
        self.logprobs = Some(top);
        self
    }

    /// Adds a processor, run after those added before.
    pub fn processor(mut self, processor: impl LogitsProcessor + 'static) -> Self {
        self.processors.push(Box::new(processor));
        self
    }

    /// Adds processors.
    pub fn processors(mut self, processors: impl IntoIterator<Item = Box<dyn LogitsProcessor>>) -> Self {
        self.processors.extend(processors);
        self
    }

    /// Picks tokens with `sampler` instead of greedily.
    pub fn sampler(mut self, sampler: impl Sampler + 'static) -> Self {
        self.sampler = Box::new(sampler);
        self
    }

    /// Picks tokens with `sampler` instead of greedily.
    pub fn boxed_sampler(mut self, sampler: Box<dyn Sampler>) -> Self {
        self.sampler = sampler;
        self
    }

    /// The tokens to continue.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// Ends the answer when `handle` says so.
    pub fn cancel(mut self, handle: CancelHandle) -> Self {
        self.cancel = handle;
        self
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("prompt", &self.prompt.len())
            .field("max_tokens", &self.max_tokens)
            .field("stop_tokens", &self.stop_tokens)
            .finish_non_exhaustive()
    }
}

/// Cancels a generation from anywhere; clones share it. Dropping the generator cancels as well.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Ends the generation before its next step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its log-probability and those of the likeliest tokens, if the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Tokens of an answer that memory is taken for before it begins; few answers are longer.
const RESERVED: usize = 1 << 16;

/// One answer between two steps: what was said so far, and when it ends.
pub(crate) struct Answer {
    request: Request,
    /// Prompt and answer.
    history: Vec<u32>,
    /// Of `history`, how many the session has run.
    fed: usize,
    finish: Option<FinishReason>,
    /// The logits as the sampler got them, where log-probabilities are wanted: it may overwrite them.
    kept: Vec<f32>,
}

impl Answer {
    /// Checks `request` against the vocabulary and context of `session`, which has run `fed` tokens of the prompt.
    pub(crate) fn new(mut request: Request, fed: usize, session: &impl Session) -> Result<Self> {
        let (context, vocab) = (session.context(), session.vocab());
        let mut history = std::mem::take(&mut request.prompt);
        let tokens = history.len();
        if tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        if tokens > context {
            return Err(Error::PromptTooLong { tokens, context });
        }
        if let Some(&token) = history.iter().find(|token| **token as usize >= vocab) {
            return Err(Error::TokenOutOfRange { token, vocab });
        }
        history.reserve(request.max_tokens.min(context - tokens).min(RESERVED) + 1);
        let finish = (request.max_tokens == 0).then_some(FinishReason::Length);
        Ok(Self { request, history, fed: fed.min(tokens - 1), finish, kept: Vec::new() })
    }

    /// Prompt and answer.
    pub(crate) fn history(&self) -> &[u32] {
        &self.history
    }

    /// Why the answer ended, once it has.
    pub(crate) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Ends the answer. A stop string in the last token allowed is the reason rather than the length.
    pub(crate) fn end(&mut self, why: FinishReason) {
        if self.finish.is_none() || why == FinishReason::StopString {
            self.finish = Some(why);
        }
    }

    /// The next tokens to run, at most `chunk`, and how many of the prompt follow them. Cancelled answers have none.
    pub(crate) fn next_work(&mut self, chunk: usize) -> Option<(&[u32], usize)> {
        if self.request.cancel.is_cancelled() {
            self.end(FinishReason::Cancelled);
        }
        if self.finish.is_some() {
            return None;
        }
        let end = self.history.len().min(self.fed.saturating_add(chunk.max(1)));
        Some((&self.history[self.fed..end], self.history.len() - end))
    }

    /// What the session may pick, if nothing but a token is wanted of the logits.
    pub(crate) fn want(&self) -> Option<Want> {
        let r = &self.request;
        r.sampler.want().filter(|_| r.processors.is_empty() && r.logprobs.is_none())
    }

    /// Notes that the session ran `tokens` tokens.
    pub(crate) fn ran(&mut self, tokens: usize) {
        self.fed += tokens;
    }

    /// Picks the next token from the logits that follow the history, `None` at the end of the answer.
    pub(crate) fn pick(
        &mut self,
        logits: &mut [f32],
        context: usize,
        produced: usize,
    ) -> Result<Option<Token>> {
        let r = &mut self.request;
        for p in &mut r.processors {
            p.process(&self.history, logits);
        }
        if r.logprobs.is_some() {
            self.kept.clear();
            self.kept.extend_from_slice(logits);
        }
        let id = r.sampler.sample(logits)?;
        let logprobs = match r.logprobs {
            Some(top) if !r.stop_tokens.contains(&id) => Some(TokenLogprobs::new(&self.kept, id, top)?),
            _ => None,
        };
        Ok(self.take(id, context, produced).map(|token| Token { logprobs, ..token }))
    }

    /// [`take`](Self::take) of what the session picked.
    pub(crate) fn take_picked(&mut self, id: u32, context: usize, produced: usize) -> Option<Token> {
        self.request.sampler.picked();
        self.take(id, context, produced)
    }

    /// Takes `id` for the next token, `None` at the end of the answer.
    fn take(&mut self, id: u32, context: usize, produced: usize) -> Option<Token> {
        if self.request.stop_tokens.contains(&id) {
            self.end(FinishReason::Stop);
            return None;
        }
        self.history.push(id);
        if produced + 1 >= self.request.max_tokens {
            self.end(FinishReason::Length);
        } else if self.history.len() > context {
            self.end(FinishReason::Context);
        }
        Some(Token { id, logprobs: None })
    }
}
