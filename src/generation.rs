//! One question to a model: what to ask, how to pick tokens, and the answer as a stream or as a whole.

use rillm_generate::{
    BatchGenerator, CancelHandle, Event, FinishReason, Generator, LogitsProcessor, Message, Piece,
    ProcessorOptions, Progress, Request, Sampler, SamplerOptions, SharedSession, Special, StopStrings,
    TemplateOptions, TextGenerator, processors, sampler,
};
use serde::Serialize;

use crate::{LanguageModel, Result, Statistics};

/// What a model is asked.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text to continue, tokenized with the model's special tokens.
    Text(String),
    /// A conversation to answer, in the model's chat template.
    Chat(Vec<Message>),
    /// Tokens to continue.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Self::Chat(messages)
    }
}
impl From<&[Message]> for Prompt {
    fn from(messages: &[Message]) -> Self {
        Self::Chat(messages.to_vec())
    }
}
impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

type OnProgress = Box<dyn FnMut(Progress) + Send>;

/// A generation to be: set what matters, then [`stream`](Self::stream) or [`run`](Self::run).
///
/// Greedy and at most 256 tokens unless said otherwise, as mlx-lm's library.
pub struct Generation {
    model: LanguageModel,
    prompt: Prompt,
    max_tokens: usize,
    sampling: SamplerOptions,
    penalties: ProcessorOptions,
    sampler: Option<Box<dyn Sampler>>,
    processors: Vec<Box<dyn LogitsProcessor>>,
    stop: Vec<String>,
    extra_stop_tokens: Vec<u32>,
    ignore_eos: bool,
    logprobs: Option<usize>,
    chunk: usize,
    sequence: Option<usize>,
    template: TemplateOptions,
    cancel: CancelHandle,
    on_progress: Option<OnProgress>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("prompt", &self.prompt)
            .field("max_tokens", &self.max_tokens)
            .field("sampling", &self.sampling)
            .finish_non_exhaustive()
    }
}

impl Generation {
    pub(crate) fn new(model: LanguageModel, prompt: Prompt) -> Self {
        Self {
            model,
            prompt,
            max_tokens: 256,
            sampling: SamplerOptions::default(),
            penalties: ProcessorOptions::default(),
            sampler: None,
            processors: Vec::new(),
            stop: Vec::new(),
            extra_stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            chunk: Generator::<SharedSession>::PREFILL_CHUNK,
            sequence: None,
            template: TemplateOptions::default(),
            cancel: CancelHandle::default(),
            on_progress: None,
        }
    }

    /// At most `n` tokens.
    pub fn max_tokens(mut self, n: usize) -> Self {
        self.max_tokens = n;
        self
    }

    /// How tokens are drawn: temperature, top-p and so on, and the seed.
    pub fn sampling(mut self, options: SamplerOptions) -> Self {
        self.sampling = options;
        self
    }

    /// Biases and penalties on logits.
    pub fn penalties(mut self, options: ProcessorOptions) -> Self {
        self.penalties = options;
        self
    }

    /// Draws tokens with `sampler` instead.
    pub fn sampler(mut self, sampler: impl Sampler + 'static) -> Self {
        self.sampler = Some(Box::new(sampler));
        self
    }

    /// Adds a processor of logits, run after the penalties.
    pub fn processor(mut self, processor: impl LogitsProcessor + 'static) -> Self {
        self.processors.push(Box::new(processor));
        self
    }

    /// Ends the answer before `text`.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Ends the answer at `token`, besides the model's own end tokens.
    pub fn stop_token(mut self, token: u32) -> Self {
        self.extra_stop_tokens.push(token);
        self
    }

    /// Goes on past the model's own end tokens.
    pub fn ignore_eos(mut self) -> Self {
        self.ignore_eos = true;
        self
    }

    /// Log-probabilities of each token and of the `top` likeliest ones.
    pub fn logprobs(mut self, top: usize) -> Self {
        self.logprobs = Some(top);
        self
    }

    /// Runs the prompt `tokens` at a time.
    pub fn prefill_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens.max(1);
        self
    }

    /// Continues `sequence` of the model's [session](LanguageModel::session), keeping what its cache has in common
    /// with the prompt; it stays open afterwards.
    pub fn sequence(mut self, sequence: usize) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// What the chat template is told besides the messages.
    pub fn template(mut self, options: TemplateOptions) -> Self {
        self.template = options;
        self
    }

    /// Ends the answer when `handle` says so.
    pub fn cancel(mut self, handle: CancelHandle) -> Self {
        self.cancel = handle;
        self
    }

    /// Calls `f` after each chunk of the prompt.
    pub fn on_progress(mut self, f: impl FnMut(Progress) + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(f));
        self
    }

    /// The tokens of the prompt.
    ///
    /// # Errors
    /// A tokenizer or template that is missing or refuses.
    pub fn prompt_tokens(&self) -> Result<Vec<u32>> {
        match &self.prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(text) => Ok(self.model.tokenizer()?.encode(text, Special::Add)?),
            Prompt::Chat(messages) => {
                let text = self.model.chat_template()?.render(messages, &self.template)?;
                // The template has written the special tokens.
                Ok(self.model.tokenizer()?.encode(&text, Special::Skip)?)
            }
        }
    }

    fn request(&mut self) -> Result<Request> {
        let mut stop_tokens = std::mem::take(&mut self.extra_stop_tokens);
        if !self.ignore_eos {
            stop_tokens.extend(self.model.stop_tokens().ids());
        }
        let request = Request::new(self.prompt_tokens()?)
            .max_tokens(self.max_tokens)
            .stop_tokens(stop_tokens)
            .processors(processors(&self.penalties)?)
            .processors(std::mem::take(&mut self.processors))
            .cancel(self.cancel.clone());
        let sampler = match self.sampler.take() {
            Some(sampler) => sampler,
            None => sampler(self.sampling.clone())?,
        };
        let request = request.boxed_sampler(sampler);
        Ok(match self.logprobs {
            Some(top) => request.logprobs(top),
            None => request,
        })
    }

    /// Starts the generation: an iterator over pieces of text. Dropping it ends it.
    ///
    /// # Errors
    /// A prompt that can't be tokenized or does not fit, options out of range.
    pub fn stream(mut self) -> Result<Stream> {
        let request = self.request()?;
        let session = self.model.session();
        let mut tokens = match self.sequence {
            Some(sequence) => Generator::continuing(session, sequence, request)?,
            None => Generator::new(session, request)?,
        }
        .prefill_chunk(self.chunk);
        if let Some(f) = self.on_progress.take() {
            tokens = tokens.on_progress(f);
        }
        let detokenizer = self.model.tokenizer()?.detokenizer();
        let stop = StopStrings::new(&self.stop)?;
        Ok(Stream { text: TextGenerator::new(tokens, detokenizer, stop), model: self.model })
    }

    /// Runs the generation to its end.
    ///
    /// # Errors
    /// Those of [`stream`](Self::stream), or a failing step.
    pub fn run(self) -> Result<Completion> {
        let mut stream = self.stream()?;
        let mut completion = Completion::default();
        for piece in &mut stream {
            let piece = piece?;
            completion.text.push_str(&piece.text);
            completion.tokens.extend(piece.token.map(|t| t.id));
        }
        completion.finish_reason = stream.finish_reason();
        completion.statistics = stream.statistics();
        Ok(completion)
    }
}

/// A running generation.
pub struct Stream {
    text: TextGenerator<SharedSession>,
    model: LanguageModel,
}

impl Stream {
    /// Why the answer ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.text.tokens().finish_reason()
    }

    /// Figures so far.
    pub fn statistics(&self) -> Statistics {
        let info = self.model.info();
        let bandwidth = self.model.0.bandwidth.get().copied();
        let load_s = info.load_time.as_secs_f64();
        Statistics {
            device: self.model.device_usage(),
            ..Statistics::new(self.text.tokens().timing(), load_s, info.weight_bytes, bandwidth)
        }
    }

    /// Prompt and answer so far.
    pub fn tokens(&self) -> &[u32] {
        self.text.tokens().tokens()
    }
}

impl Iterator for Stream {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.text.next().map(|piece| piece.map_err(Into::into))
    }
}

/// A finished generation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Completion {
    /// The answer.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Figures.
    #[serde(flatten)]
    pub statistics: Statistics,
}

/// Requests of a batch that run at a time.
const SLOTS: usize = 16;

/// Runs `generations` together. The rate of a completion is its tokens over the time from the start of the batch to
/// its end; times to the first token are not told apart.
pub(crate) fn run_batch(model: &LanguageModel, generations: Vec<Generation>) -> Result<Vec<Completion>> {
    let started = std::time::Instant::now();
    let mut batch = BatchGenerator::new(model.session(), SLOTS);
    let mut done: Vec<Completion> = Vec::with_capacity(generations.len());
    let mut texts = Vec::with_capacity(generations.len());
    for mut generation in generations {
        let request = generation.request()?;
        let prompt = request.prompt().len();
        batch.add(request)?;
        let stop = StopStrings::new(&generation.stop)?;
        texts.push((model.tokenizer()?.detokenizer(), stop));
        let mut completion = Completion::default();
        completion.statistics.prompt_tokens = prompt;
        done.push(completion);
    }
    while !batch.is_idle() {
        for event in batch.step()? {
            match event {
                Event::Token { id, token } => {
                    let (completion, (detokenizer, stop)) = (&mut done[id], &mut texts[id]);
                    completion.tokens.push(token.id);
                    if stop.feed(detokenizer.push(token.id)?, &mut completion.text).is_some() {
                        completion.finish_reason = Some(FinishReason::StopString);
                        batch.finish(id, FinishReason::StopString);
                    }
                }
                Event::Finished { id, reason, .. } => {
                    let (completion, (detokenizer, stop)) = (&mut done[id], &mut texts[id]);
                    if completion.finish_reason.is_none() {
                        stop.feed(detokenizer.finish()?, &mut completion.text);
                        stop.finish(&mut completion.text);
                        completion.finish_reason = Some(reason);
                    }
                    completion.statistics.generated_tokens = completion.tokens.len();
                    completion.statistics.generation_tps =
                        completion.tokens.len() as f64 / started.elapsed().as_secs_f64();
                }
                Event::Failed { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
    }
    let info = model.info();
    for completion in &mut done {
        completion.statistics.load_s = info.load_time.as_secs_f64();
        completion.statistics.weight_bytes_per_token = info.weight_bytes;
        completion.statistics.peak_memory_bytes = crate::peak_memory_bytes();
        completion.statistics.device = model.device_usage();
    }
    Ok(done)
}
