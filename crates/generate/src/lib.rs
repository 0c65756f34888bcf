//! Tokens out of a model: sessions, generators, samplers, stop rules, tokenizers and chat templates.
//!
//! Knows no architecture and no file format of weights: a model is whatever implements
//! [`CausalLm`](rillm_nn::CausalLm), and applications hold it as a [`Session`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod batch;
mod candidates;
mod engine;
mod error;
mod generator;
mod local;
mod logprobs;
mod processor;
mod request;
mod rng;
mod sampler;
mod session;
mod stop;
mod text;
mod text_generator;
mod vocabulary;

pub use batch::{BatchGenerator, Event};
pub use engine::EngineSession;
pub use error::{Error, Result};
pub use generator::{Generator, Progress, Timing};
pub use local::LocalSession;
pub use logprobs::{TokenLogprobs, log_softmax, logsumexp};
pub use processor::{
    FrequencyPenalty, LogitBias, LogitsProcessor, PresencePenalty, ProcessorOptions, RepetitionPenalty,
    processors,
};
pub use request::{CancelHandle, Request, Token};
pub use rng::Rng;
pub use sampler::{Chain, Greedy, Sampler, SamplerOptions, SamplerOrder, sampler};
pub use session::{Draw, Session, SharedSession, Want, Work};
pub use stop::{EosTokenId, FinishReason, StopStrings, StopTokens};
pub use text::{
    ChatTemplate, Detokenizer, GenerationPrompt, GgufVocab, Message, Special, TemplateOptions, Tokenizer,
};
pub use text_generator::{Piece, TextGenerator};
pub use vocabulary::argmax;
