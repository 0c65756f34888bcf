//! GGUF files as if they were Hugging Face checkpoints: the config.json that their metadata stands for, and the names
//! and layout of their parameters. Reads no file itself, knows no tokenizer.

use rillm_nn::{Gguf, Origin, WeightSource};
use serde_json::{Map, Value, json};

use crate::{Error, Layout, Result};

/// An architecture whose metadata and names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Architecture {
    /// Mistral too.
    Llama,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
    Phi3,
    Gpt2,
}

use Architecture::{Gemma, Gemma2, Gemma3, Gpt2, Llama, Phi3, Qwen2, Qwen3};

impl Architecture {
    const ALL: [Self; 8] = [Llama, Qwen2, Qwen3, Gemma, Gemma2, Gemma3, Phi3, Gpt2];

    fn of(g: &Gguf) -> Result<Self> {
        let key = "general.architecture";
        let name = g.require(key, g.str(key)?)?;
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| Error::Metadata {
            key: key.to_owned(),
            want: Self::ALL.map(Self::name).join(", "),
            got: name.to_owned(),
        })
    }

    /// In `general.architecture` and before the keys.
    const fn name(self) -> &'static str {
        match self {
            Llama => "llama",
            Qwen2 => "qwen2",
            Qwen3 => "qwen3",
            Gemma => "gemma",
            Gemma2 => "gemma2",
            Gemma3 => "gemma3",
            Phi3 => "phi3",
            Gpt2 => "gpt2",
        }
    }

    const fn model_type(self) -> &'static str {
        match self {
            Gemma3 => "gemma3_text",
            other => other.name(),
        }
    }

    const fn is_gemma(self) -> bool {
        matches!(self, Gemma | Gemma2 | Gemma3)
    }
}

/// The config.json of the checkpoint that `g` was converted from, as far as its metadata tell.
///
/// # Errors
/// [`Error::Metadata`] for an architecture or a value that is not supported; [`Error::Weights`] for a key that is
/// missing or has another type.
pub fn config(g: &Gguf) -> Result<Value> {
    let architecture = Architecture::of(g)?;
    let m = Metadata { g, architecture };
    if let Some(experts @ 1..) = m.count("expert_count")? {
        return Err(m.unsupported("expert_count", "0: no experts", experts));
    }
    let mut c = match architecture {
        Gpt2 => gpt2(&m)?,
        _ => llama(&m)?,
    };
    match architecture {
        Gemma2 => gemma2(&m, &mut c)?,
        Gemma3 => gemma3(&m, &mut c)?,
        // 0 stands for none.
        Phi3 => c.set("sliding_window", m.count("attention.sliding_window")?.filter(|n| *n > 0)),
        _ => {}
    }
    c.set("model_type", architecture.model_type());
    c.set("vocab_size", m.rows("token_embd.weight")?);
    c.set("tie_word_embeddings", g.shape("output.weight").is_none());
    c.set("bos_token_id", g.usize("tokenizer.ggml.bos_token_id")?);
    c.set("eos_token_id", eos(g)?);
    Ok(Value::Object(c.0))
}

/// A config.json in the making.
struct Config(Map<String, Value>);

impl Config {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }
}

/// The keys of one architecture.
struct Metadata<'a> {
    g: &'a Gguf,
    architecture: Architecture,
}

impl Metadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.g.usize(&self.key(name))?)
    }

    fn required_count(&self, name: &str) -> Result<usize> {
        Ok(self.g.require(&self.key(name), self.count(name)?)?)
    }

    fn number(&self, name: &str) -> Result<Option<f32>> {
        match self.g.f32(&self.key(name))? {
            Some(x) if !x.is_finite() => Err(self.unsupported(name, "a finite number", x)),
            x => Ok(x),
        }
    }

    fn required_number(&self, name: &str) -> Result<f32> {
        Ok(self.g.require(&self.key(name), self.number(name)?)?)
    }

    fn rows(&self, tensor: &str) -> Result<usize> {
        let missing = || rillm_nn::Error::MissingWeight { name: tensor.to_owned() };
        Ok(self.g.shape(tensor).and_then(|s| s.first().copied()).ok_or_else(missing)?)
    }

    /// The values of a small tensor, if it is there.
    fn values(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        let Some(raw) = self.g.get(tensor)? else { return Ok(None) };
        let values =
            raw.decode().map_err(|source| rillm_nn::Error::Quant { name: tensor.to_owned(), source })?;
        Ok(Some(values))
    }

    fn unsupported(&self, name: &str, want: &str, got: impl ToString) -> Error {
        Error::Metadata { key: self.key(name), want: want.to_owned(), got: got.to_string() }
    }

    fn heads(&self) -> Result<usize> {
        let heads = self.required_count("attention.head_count")?;
        if heads == 0 {
            return Err(self.unsupported("attention.head_count", "at least 1", heads));
        }
        Ok(heads)
    }

    fn kv_heads(&self) -> Result<usize> {
        Ok(self.count("attention.head_count_kv")?.unwrap_or(self.heads()?))
    }

    fn head_dim(&self) -> Result<usize> {
        let by_width = self.required_count("embedding_length")? / self.heads()?;
        let keys = self.count("attention.key_length")?.unwrap_or(by_width);
        let values = self.count("attention.value_length")?.unwrap_or(by_width);
        if keys != values {
            let want = format!("{keys}, the length of keys");
            return Err(self.unsupported("attention.value_length", &want, values));
        }
        Ok(keys)
    }
}

/// What Llama and all that follow it have in common.
fn llama(m: &Metadata<'_>) -> Result<Config> {
    let mut c = Config(Map::new());
    c.set("hidden_size", m.required_count("embedding_length")?);
    c.set("intermediate_size", m.required_count("feed_forward_length")?);
    c.set("num_hidden_layers", m.required_count("block_count")?);
    c.set("num_attention_heads", m.heads()?);
    c.set("num_key_value_heads", m.kv_heads()?);
    c.set("head_dim", m.head_dim()?);
    c.set("max_position_embeddings", m.required_count("context_length")?);
    c.set("rms_norm_eps", m.required_number("attention.layer_norm_rms_epsilon")?);
    c.set("rope_parameters", rope(m)?);
    c.set("hidden_act", if m.architecture.is_gemma() { "gelu_pytorch_tanh" } else { "silu" });
    if matches!(m.architecture, Llama | Qwen3) {
        c.set("attention_bias", m.g.shape("blk.0.attn_q.bias").is_some());
        c.set("mlp_bias", m.g.shape("blk.0.ffn_up.bias").is_some());
    }
    Ok(c)
}

fn gpt2(m: &Metadata<'_>) -> Result<Config> {
    let mut c = Config(Map::new());
    c.set("n_embd", m.required_count("embedding_length")?);
    c.set("n_head", m.heads()?);
    c.set("n_layer", m.required_count("block_count")?);
    c.set("n_positions", m.rows("position_embd.weight")?);
    // The converter writes 4 * n_embd into `feed_forward_length` whatever it is.
    c.set("n_inner", m.rows("blk.0.ffn_up.weight")?);
    c.set("layer_norm_epsilon", m.required_number("attention.layer_norm_epsilon")?);
    c.set("activation_function", "gelu_new");
    Ok(c)
}

fn gemma2(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    /// Layers of the 27B model, the only one whose scale is not that of `head_dim`; there is no key for it.
    const LAYERS_27B: usize = 46;
    c.set("attn_logit_softcapping", m.number("attn_logit_softcapping")?.unwrap_or(50.0));
    c.set("final_logit_softcapping", m.number("final_logit_softcapping")?.unwrap_or(30.0));
    c.set("query_pre_attn_scalar", query_scalar(m, LAYERS_27B)?);
    c.set("sliding_window", m.count("attention.sliding_window")?.unwrap_or(4096));
    c.set("layer_types", layer_types(m, 2)?);
    Ok(())
}

fn gemma3(m: &Metadata<'_>, c: &mut Config) -> Result<()> {
    /// As in [`gemma2`].
    const LAYERS_27B: usize = 62;
    // llama.cpp's default. Scaling is that of the layers without a window only.
    let local = m.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let global = rope(m)?;
    let local = json!({"rope_type": "default", "rope_theta": local});
    c.set("rope_parameters", json!({"full_attention": global, "sliding_attention": local}));
    c.set("final_logit_softcapping", m.number("final_logit_softcapping")?.filter(|x| *x != 0.0));
    c.set("query_pre_attn_scalar", query_scalar(m, LAYERS_27B)?);
    let window = m.count("attention.sliding_window")?.filter(|n| *n > 0);
    c.set("layer_types", layer_types(m, if window.is_some() { 6 } else { 1 })?);
    c.set("sliding_window", window);
    Ok(())
}

/// The square of 1 / the scale of attention scores.
fn query_scalar(m: &Metadata<'_>, layers_27b: usize) -> Result<usize> {
    if m.required_count("block_count")? == layers_27b {
        return Ok(m.required_count("embedding_length")? / m.heads()?);
    }
    m.head_dim()
}

/// Layers with and without a window: every `period`-th is without, unless the file says otherwise.
fn layer_types(m: &Metadata<'_>, period: usize) -> Result<Vec<&'static str>> {
    /// Beyond any model; keeps a hostile count from allocating.
    const MAX_LAYERS: usize = 4096;
    let key = "attention.sliding_window_pattern";
    let layers = m.required_count("block_count")?;
    if layers > MAX_LAYERS {
        return Err(m.unsupported("block_count", "at most 4096", layers));
    }
    let period = match m.g.metadata(&m.key(key)) {
        None => period,
        Some(value) => match value.as_usize() {
            Some(n @ 1..) => n,
            _ => return Err(m.unsupported(key, "a count of layers", value)),
        },
    };
    let name = |i: usize| if (i + 1).is_multiple_of(period) { "full_attention" } else { "sliding_attention" };
    Ok((0..layers).map(name).collect())
}

/// `rope_parameters`.
fn rope(m: &Metadata<'_>) -> Result<Value> {
    let mut p = Config(Map::new());
    p.set("rope_theta", m.number("rope.freq_base")?.unwrap_or(10_000.0));
    let head_dim = m.head_dim()?;
    if let Some(dims) = m.count("rope.dimension_count")?.filter(|n| *n != head_dim) {
        p.set("partial_rotary_factor", dims as f64 / head_dim as f64);
    }
    scaling(m, &mut p)?;
    Ok(Value::Object(p.0))
}

fn scaling(m: &Metadata<'_>, p: &mut Config) -> Result<()> {
    let type_key = "rope.scaling.type";
    let factor = match m.number("rope.scaling.factor")? {
        // The older name.
        None => m.number("rope.scale_linear")?,
        factor => factor,
    };
    let factor = factor.filter(|f| *f != 0.0);
    let factors = m.values("rope_freqs.weight")?;
    let long = m.values("rope_factors_long.weight")?;
    let original = m.count("rope.scaling.original_context_length")?;
    let kind = m.g.str(&m.key(type_key))?.unwrap_or("linear");
    match (kind, factor, factors, long) {
        (_, _, _, Some(long)) => {
            p.set("rope_type", "longrope");
            p.set("long_factor", long);
            p.set("short_factor", m.values("rope_factors_short.weight")?);
            p.set("attention_factor", m.number("rope.scaling.attn_factor")?);
            p.set("original_max_position_embeddings", original);
        }
        ("none", _, None, _) | ("linear", None, None, _) => p.set("rope_type", "default"),
        ("linear", Some(factor), None, _) => {
            p.set("rope_type", "linear");
            p.set("factor", factor);
        }
        ("yarn", Some(factor), None, _) => {
            p.set("rope_type", "yarn");
            p.set("factor", factor);
            p.set("original_max_position_embeddings", original);
            p.set("beta_fast", m.number("rope.scaling.yarn_beta_fast")?);
            p.set("beta_slow", m.number("rope.scaling.yarn_beta_slow")?);
            p.set("attention_factor", m.number("rope.scaling.yarn_attn_factor")?);
        }
        // Both apply where both are there.
        ("none" | "linear", factor, Some(factors), _) => {
            let factor = factor.filter(|_| kind == "linear").unwrap_or(1.0);
            p.set("rope_type", "gguf_factors");
            p.set("factors", factors.iter().map(|x| x * factor).collect::<Vec<_>>());
        }
        _ => {
            return Err(m.unsupported(type_key, "none, linear with factor, or yarn with factor alone", kind));
        }
    }
    Ok(())
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
    let architecture = Architecture::of(g)?;
    let m = Metadata { g, architecture };
    let heads = m.heads()?;
    let kv_heads = m.kv_heads()?;
    Ok(Box::new(move |name| {
        let Some(stored) = stored_name(architecture, name) else {
            return Origin::Tensor(name.to_owned());
        };
        match architecture {
            Llama if name.contains(".self_attn.q_proj.") => Origin::Unpermuted { name: stored, heads },
            Llama if name.contains(".self_attn.k_proj.") => {
                Origin::Unpermuted { name: stored, heads: kv_heads }
            }
            // Stored is what norms multiply by, 1 + w.
            _ if architecture.is_gemma() && name.ends_with("norm.weight") => {
                Origin::Shifted { name: stored, by: -1.0 }
            }
            _ => Origin::Tensor(stored),
        }
    }))
}

fn stored_name(architecture: Architecture, name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let top = match module {
        "model.embed_tokens" | "model.wte" => "token_embd",
        "model.wpe" => "position_embd",
        "model.norm" | "model.ln_f" => "output_norm",
        "lm_head" => "output",
        _ => "",
    };
    if !top.is_empty() {
        return Some(format!("{top}.{kind}"));
    }
    let (i, module) = match architecture {
        // mlx-lm's names: its matrices are `[out, in]`, as in GGUF.
        Gpt2 => module.strip_prefix("model.h.")?.split_once('.')?,
        _ => module.strip_prefix("model.layers.")?.split_once('.')?,
    };
    let four_norms = matches!(architecture, Gemma2 | Gemma3);
    let stored = match module {
        "input_layernorm" | "ln_1" => "attn_norm",
        "post_attention_layernorm" if four_norms => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" | "ln_2" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.qkv_proj" | "attn.c_attn" => "attn_qkv",
        "self_attn.o_proj" | "attn.c_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.c_fc" => "ffn_up",
        "mlp.down_proj" | "mlp.c_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{i}.{stored}.{kind}"))
}
