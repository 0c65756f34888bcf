//! A config.json in the making, with the keys that many families share.

use serde_json::{Map, Value};

use super::metadata::Metadata;
use super::rope::rope;
use crate::Result;

/// A config.json, or an object in it.
#[derive(Default)]
pub(super) struct Config(pub Map<String, Value>);

impl Config {
    pub fn new(m: &Metadata<'_>) -> Self {
        let mut c = Self::default();
        c.set("model_type", m.architecture.model_type);
        c
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }
}

impl From<Config> for Value {
    fn from(c: Config) -> Self {
        Self::Object(c.0)
    }
}

/// What Llama and all that follow it have in common.
pub(super) fn like_llama(m: &Metadata<'_>) -> Result<Config> {
    let mut c = varying(m)?;
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    c.set("num_key_value_heads", m.kv_heads()?);
    Ok(c)
}

/// [`like_llama`] without what may vary from layer to layer.
pub(super) fn varying(m: &Metadata<'_>) -> Result<Config> {
    let mut c = Config::new(m);
    c.set("hidden_size", m.required_count("embedding_length")?);
    c.set("num_hidden_layers", m.layers()?);
    c.set("num_attention_heads", m.heads()?);
    c.set("head_dim", m.head_dim()?);
    c.set("max_position_embeddings", m.required_count("context_length")?);
    c.set(m.architecture.eps.1, m.eps()?);
    c.set("rope_parameters", rope(m)?);
    c.set("hidden_act", m.architecture.act);
    c.set("attention_bias", m.bias("attn_q") || m.bias("attn_qkv"));
    c.set("mlp_bias", m.bias("ffn_up"));
    Ok(c)
}

pub(super) fn gpt2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = Config::new(m);
    let (key, spelt) = m.architecture.eps;
    c.set(spelt, m.required_number(key)?);
    c.set("n_embd", m.required_count("embedding_length")?);
    c.set("n_head", m.heads()?);
    c.set("n_layer", m.layers()?);
    c.set("n_positions", m.rows("position_embd.weight")?);
    // The converter writes 4 * n_embd into `feed_forward_length` whatever it is.
    c.set("n_inner", m.rows("blk.0.ffn_up.weight")?);
    c.set("activation_function", m.architecture.act);
    Ok(c)
}

/// Names of layers with and without a window.
pub(super) fn layer_types(sliding: &[bool]) -> Vec<&'static str> {
    let name = |sliding: &bool| if *sliding { "sliding_attention" } else { "full_attention" };
    sliding.iter().map(name).collect()
}
