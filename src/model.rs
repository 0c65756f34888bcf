//! A loaded model: a handle that any thread may hold.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rillm_generate::{ChatTemplate, Generator, Request, Session, SharedSession, StopTokens, Tokenizer};
use rillm_tensor_core::cpu::{Bandwidth, Cpu};
use serde_json::Value;

use crate::{Completion, DeviceUsage, Generation, Prompt, Result};

/// A loaded model. Clones share it; generations on several threads take turns, a step at a time.
#[derive(Clone, Debug)]
pub struct LanguageModel(pub(crate) Arc<Parts>);

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) session: SharedSession,
    pub(crate) text: Text,
    pub(crate) stop_tokens: StopTokens,
    pub(crate) generation_config: Option<Value>,
    pub(crate) info: ModelInfo,
    /// The backend, if it is the CPU.
    pub(crate) cpu: Option<Cpu>,
    /// The backend, if it is MLX.
    #[cfg(feature = "mlx")]
    pub(crate) mlx: Option<rillm_tensor_core::mlx::Mlx>,
    /// What [`LanguageModel::measure_bandwidth`] found.
    pub(crate) bandwidth: OnceLock<f64>,
}

/// What turns text into tokens and back, or why that can't be done: models without it still run on tokens.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) tokenizer: Result<Tokenizer, Arc<rillm_generate::Error>>,
    pub(crate) template: Result<ChatTemplate, Arc<rillm_generate::Error>>,
}

/// What is known of a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of its configuration.
    pub model_type: String,
    /// The backend that runs it.
    pub device: String,
    /// Tokens that logits are given for.
    pub vocab: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
    /// Bytes of weights that decoding a token reads.
    pub weight_bytes: usize,
    /// Modules of the checkpoint that were left out: those that see or hear.
    pub left_out: Vec<String>,
    /// Time that loading took.
    pub load_time: Duration,
}

impl LanguageModel {
    /// Answers a message of a user, or a conversation, in the model's chat template.
    pub fn chat(&self, messages: impl Into<Prompt>) -> Generation {
        let prompt = match messages.into() {
            Prompt::Text(text) => Prompt::Chat(vec![rillm_generate::Message::user(text)]),
            other => other,
        };
        Generation::new(self.clone(), prompt)
    }

    /// Continues a text, or tokens, as they are.
    pub fn complete(&self, prompt: impl Into<Prompt>) -> Generation {
        Generation::new(self.clone(), prompt.into())
    }

    /// Runs several generations of this model in the same forward passes, at most 16 at a time.
    ///
    /// # Errors
    /// A prompt that can't be tokenized or does not fit, or a failing step.
    pub fn generate_batch(&self, generations: Vec<Generation>) -> Result<Vec<Completion>> {
        crate::generation::run_batch(self, generations)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The checkpoint has none, or it can't be read.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.text.tokenizer.as_ref().map_err(|e| rillm_generate::Error::Unavailable(Arc::clone(e)).into())
    }

    /// The chat template.
    ///
    /// # Errors
    /// The checkpoint has none, or it can't be read.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.0.text.template.as_ref().map_err(|e| rillm_generate::Error::Unavailable(Arc::clone(e)).into())
    }

    /// The tokens that end an answer: those of generation_config.json, or else of config.json, and the tokenizer's.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.0.stop_tokens
    }

    /// generation_config.json, if the checkpoint has one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.0.generation_config.as_ref()
    }

    /// The session below, for what this handle does not offer: scoring, speculation, caches of one's own.
    pub fn session(&self) -> SharedSession {
        self.0.session.clone()
    }

    /// Tokens that answer `request`, below text and templates.
    ///
    /// # Errors
    /// An empty prompt, or one longer than the context.
    pub fn tokens(&self, request: Request) -> Result<Generator<SharedSession>> {
        Ok(Generator::new(self.session(), request)?)
    }

    /// Prepares to measure how fast this machine reads memory with the threads that run the model, over a buffer as
    /// large as its weights. `None` for other devices than the CPU.
    ///
    /// # Errors
    /// No memory for the buffer.
    pub fn bandwidth(&self) -> Result<Option<Bandwidth>> {
        let cpu = self.0.cpu.as_ref();
        Ok(cpu.map(|cpu| cpu.bandwidth(self.0.info.weight_bytes)).transpose()?)
    }

    /// Measures how fast this machine reads memory, as the median of five [passes](Self::bandwidth), once: statistics
    /// of later generations then tell their share of it. In bytes a second; `None` for other devices than the CPU.
    ///
    /// # Errors
    /// No memory for the buffer.
    pub fn measure_bandwidth(&self) -> Result<Option<f64>> {
        if let (None, Some(meter)) = (self.0.bandwidth.get(), self.bandwidth()?) {
            let mut passes = [(); 5].map(|()| meter.pass());
            passes.sort_by(f64::total_cmp);
            self.0.bandwidth.get_or_init(|| passes[2]);
        }
        Ok(self.0.bandwidth.get().copied())
    }

    /// Threads that compute on the CPU; 0 on other devices.
    pub fn threads(&self) -> usize {
        self.0.cpu.as_ref().map_or(0, Cpu::threads)
    }

    /// What MLX has used since the model was loaded; `None` if another backend runs it, or if MLX does not tell.
    pub fn device_usage(&self) -> Option<DeviceUsage> {
        #[cfg(feature = "mlx")]
        if let Some(mlx) = &self.0.mlx {
            let (memory, counts) = (rillm_tensor_core::mlx::Mlx::memory().ok()?, mlx.counts());
            return Some(DeviceUsage {
                active_bytes: memory.active,
                cached_bytes: memory.cached,
                peak_bytes: memory.peak,
                submitting_s: counts.submitting.as_secs_f64(),
                waiting_s: counts.waiting.as_secs_f64(),
            });
        }
        None
    }

    /// What is known of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Bytes of the caches of all running generations.
    pub fn cache_bytes(&self) -> usize {
        self.0.session.cache_bytes()
    }
}
