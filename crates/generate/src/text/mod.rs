//! Text in and out: tokenizers, streaming detokenizers and chat templates; not sampling, not models.

mod detokenizer;
mod folder;
mod gguf_vocab;
mod pre_tokenizer;
mod python;
mod strftime;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use gguf_vocab::GgufVocab;
pub use template::{ChatTemplate, GenerationPrompt, Message, TemplateOptions};
pub use tokenizer::{Special, Tokenizer};
