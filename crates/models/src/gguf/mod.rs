//! GGUF files as if they were Hugging Face checkpoints: the config.json that their metadata stands for, and the names
//! and layout of their parameters. Reads no file itself, knows no tokenizer.
//!
//! What there is to know about an architecture is an entry of `architecture::ALL`. The facts are those of llama.cpp's
//! converter (`conversion/`, `gguf-py/gguf/constants.py`) and of what its models do without a key (`src/models/`).

mod architecture;
mod config;
mod families;
mod gemma;
mod layout;
mod metadata;
mod mixtures;
mod recurrent;
mod rope;

use rillm_nn::Gguf;
use serde_json::Value;

use self::metadata::Metadata;
use crate::{Layout, Result};

/// The config.json of the checkpoint that `g` was converted from, as far as its metadata tell.
///
/// # Errors
/// [`Error::Metadata`](crate::Error::Metadata) for an architecture or a value that is not supported;
/// [`Error::Weights`](crate::Error::Weights) for a key that is missing or has another type.
pub fn config(g: &Gguf) -> Result<Value> {
    let m = Metadata::new(g)?;
    m.refuse()?;
    let mut c = (m.architecture.config)(&m)?;
    c.set("vocab_size", m.rows("token_embd.weight")?);
    c.set("tie_word_embeddings", !m.has("output.weight"));
    c.set("bos_token_id", g.usize("tokenizer.ggml.bos_token_id")?);
    c.set("eos_token_id", eos(g)?);
    Ok(c.into())
}

/// All tokens that end a generation: of text, turn and message.
fn eos(g: &Gguf) -> Result<Option<Vec<usize>>> {
    let mut ids = Vec::new();
    for token in ["eos", "eot", "eom"] {
        let id = g.usize(&format!("tokenizer.ggml.{token}_token_id"))?;
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(Some(ids).filter(|ids| !ids.is_empty()))
}

/// Where the parameters of the checkpoint that `g` was converted from are in it.
///
/// # Errors
/// Those of [`config`].
pub fn layout(g: &Gguf) -> Result<Layout> {
    layout::layout(&Metadata::new(g)?)
}
