//! Gemma 3n (text): its configuration. The model is not a list of residual branches: [`model`] has it.

mod altup;
mod model;

use std::sync::Arc;

use rillm_nn::{
    AttentionSpec, CausalLm, KeyValues, NormKind, PerLayerSpec, QkNorm, RotaryEmbedding, WeightSource,
    Weights,
};
use rillm_tensor_core::{Activation, AttnParams, Backend};
use serde_json::Value;

use super::common::layer_count;
use super::gemma3::local_rope;
use crate::{Config, Family, Result};

/// The family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemma3n;

impl<B: Backend> Family<B> for Gemma3n {
    fn model_types(&self) -> &[&'static str] {
        &["gemma3n_text"]
    }

    fn load(&self, config: &Config<'_>, source: &dyn WeightSource, be: &B) -> Result<Box<dyn CausalLm<B>>> {
        let spec = Spec::new(config)?;
        let ignored = |name: &str| spec.ignores(name);
        let model = Weights::load(source, be, ignored, |w| model::Model::load(w, spec.clone()))?;
        Ok(Box::new(model))
    }
}

/// What a configuration says.
#[derive(Clone, Debug)]
struct Spec {
    dim: usize,
    vocab: usize,
    context: usize,
    tied: bool,
    norm: NormKind,
    act: Activation,
    softcap: Option<f32>,
    /// Streams of hidden states, and the one that layers compute with.
    streams: usize,
    active: usize,
    /// Whether the corrected stream is multiplied by learned factors on its way to the per-layer gate.
    scaled: bool,
    laurel_rank: usize,
    per_layer: PerLayerSpec,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    attn: AttentionSpec,
    /// The layer whose keys and values it reads, if not its own.
    shares: Option<usize>,
    hidden: usize,
    /// Gates below mean + this many standard deviations of their row are closed.
    cutoff: Option<f32>,
}

const COUNTS: [(&str, usize); 8] = [
    ("vocab_size", 262_400),
    ("hidden_size", 2048),
    ("num_hidden_layers", 35),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 2),
    ("altup_num_inputs", 4),
    ("laurel_rank", 64),
    ("hidden_size_per_layer_input", 256),
];

/// More streams than any model has.
const MAX_STREAMS: usize = 64;

impl Spec {
    fn new(c: &Config<'_>) -> Result<Self> {
        let c = &c.with_counts(&COUNTS);
        let (dim, norm) = (c.count("hidden_size")?, c.rms_norm(1e-6)?);
        let layers = layer_count(c, "num_hidden_layers")?;
        let act = c.activation("hidden_activation", Activation::GeluTanh)?;
        let streams = c.count("altup_num_inputs")?;
        let active = index(c, "altup_active_idx", 0)?;
        if streams > MAX_STREAMS || active >= streams {
            return Err(c.unsupported("altup_active_idx", &format!("below altup_num_inputs, {streams}")));
        }
        let (vocab, width) =
            (c.count_or("vocab_size_per_layer_input", 262_144)?, c.count("hidden_size_per_layer_input")?);
        let softcap = match c.has("final_logit_softcapping") {
            true => c.opt_number("final_logit_softcapping")?,
            false => Some(30.0),
        };
        Ok(Self {
            dim,
            vocab: c.count("vocab_size")?,
            context: c.count_or("max_position_embeddings", 32_768)?,
            tied: c.flag("tie_word_embeddings", true)?,
            norm,
            act,
            softcap: softcap.map(|x| x as f32),
            streams,
            active,
            scaled: c.flag("altup_correct_scale", true)?,
            laurel_rank: c.count("laurel_rank")?,
            per_layer: PerLayerSpec { dim, vocab, layers, width, act, norm },
            layers: self::layers(c, dim, norm, layers)?,
        })
    }

    /// Layers that read the keys of others may have projections that nobody uses.
    fn ignores(&self, name: &str) -> bool {
        let unused = crate::names::layer_of(name).is_some_and(|(i, rest)| {
            let module = rest.strip_prefix("self_attn.").and_then(|rest| rest.split('.').next());
            let shared = self.layers.get(i).is_some_and(|l| l.shares.is_some());
            shared && matches!(module, Some("k_proj" | "v_proj" | "k_norm" | "v_norm"))
        });
        unused || name.ends_with("rotary_emb.inv_freq") || (self.tied && name.starts_with("lm_head."))
    }
}

fn layers(c: &Config<'_>, dim: usize, norm: NormKind, n: usize) -> Result<Vec<Layer>> {
    let (heads, kv_heads) = (c.count("num_attention_heads")?, c.count("num_key_value_heads")?);
    if !heads.is_multiple_of(kv_heads) {
        return Err(c.unsupported("num_key_value_heads", &format!("a divisor of {heads} heads")));
    }
    let head_dim = c.count_or("head_dim", 256)?;
    let global = Arc::new(RotaryEmbedding::new(c.rope(head_dim, 1e6, Some("full_attention"))?));
    let local = Arc::new(RotaryEmbedding::new(local_rope(c, head_dim)?));
    let window = c.count_or("sliding_window", 512)?;
    let bias = super::common::bias(c, "attention_bias")?;
    let sliding = c.sliding_layers(n, |i| (i + 1) % 5 != 0)?;
    let first_shared = n.checked_sub(index(c, "num_kv_shared_layers", 15)?);
    let first_shared =
        first_shared.ok_or_else(|| c.unsupported("num_kv_shared_layers", &format!("at most {n}")))?;
    let (hidden, cutoffs) = (hidden(c, n)?, cutoffs(c, n)?);
    let layer = |i: usize| {
        let shares = match i >= first_shared {
            true => {
                let source = (0..first_shared).rposition(|j| sliding[j] == sliding[i]);
                let want = "a layer of each kind with keys of its own";
                Some(source.ok_or_else(|| c.unsupported("num_kv_shared_layers", want))?)
            }
            false => None,
        };
        let params = AttnParams {
            scale: 1.0,
            window: sliding[i].then_some(window),
            ..AttnParams::new(heads, kv_heads, head_dim)
        };
        let attn = AttentionSpec {
            qkv_bias: bias,
            o_bias: bias,
            kv: if shares.is_some() { KeyValues::Shared } else { KeyValues::Projected },
            qk_norm: Some(QkNorm::heads(norm)),
            v_norm: Some(NormKind::RmsPlain { eps: norm.eps() }),
            rope: Some(if sliding[i] { local.clone() } else { global.clone() }),
            ..AttentionSpec::new(dim, params)
        };
        Ok(Layer { attn, shares, hidden: hidden[i], cutoff: cutoffs[i] })
    };
    (0..n).map(layer).collect()
}

/// A number that may be 0.
fn index(c: &Config<'_>, key: &str, default: usize) -> Result<usize> {
    let Some(value) = c.get(key) else { return Ok(default) };
    let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
    n.ok_or_else(|| c.unsupported(key, "a whole number"))
}

/// Widths of the feed-forward layers: one for all, or one for each.
fn hidden(c: &Config<'_>, n: usize) -> Result<Vec<usize>> {
    let key = "intermediate_size";
    let Some(list) = c.get(key).and_then(Value::as_array) else {
        return Ok(vec![c.count_or(key, 16_384)?; n]);
    };
    let width = |v: &Value| v.as_u64().filter(|n| (1..=1 << 24).contains(n)).map(|n| n as usize);
    let widths: Option<Vec<usize>> = list.iter().map(width).collect();
    widths.filter(|w| w.len() == n).ok_or_else(|| c.unsupported(key, &format!("{n} positive whole numbers")))
}

/// Of each layer the share of gates that are closed, as standard deviations above the mean.
fn cutoffs(c: &Config<'_>, n: usize) -> Result<Vec<Option<f32>>> {
    let key = "activation_sparsity_pattern";
    let sparse = |i| if n > 10 && i < 10 { 0.95 } else { 0.0 };
    let shares = match c.get(key) {
        Some(Value::Number(_)) => vec![c.number_or(key, 0.0)?; n],
        _ => c.opt_numbers(key)?.unwrap_or_else(|| (0..n).map(sparse).collect()),
    };
    if shares.len() != n || shares.iter().any(|s| !(0.0..1.0).contains(s)) {
        return Err(c.unsupported(key, &format!("{n} numbers from 0 to below 1")));
    }
    Ok(shares.into_iter().map(|s| (s > 0.0).then(|| quantile(s) as f32)).collect())
}

/// Where the normal distribution function is `p`: Newton's method on Marsaglia's series (2004).
fn quantile(p: f64) -> f64 {
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let below = |x: f64| {
        let (mut sum, mut term, mut k) = (x, x, 3.0);
        while term.abs() > 1e-17 * sum.abs() && k < 1000.0 {
            term *= x * x / k;
            sum += term;
            k += 2.0;
        }
        0.5 + sum * density(x)
    };
    let mut x = 0.0;
    for _ in 0..100 {
        let step = ((below(x) - p) / density(x)).clamp(-0.5, 0.5);
        x -= step;
        if step.abs() < 1e-13 {
            break;
        }
    }
    x.clamp(-8.0, 8.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn quantiles_are_the_published_ones() {
        // National Institute of Standards and Technology, e-Handbook, 1.3.6.7.1.
        for (p, x) in [(0.5, 0.0), (0.95, 1.644_853_626_951_472_7), (0.975, 1.959_963_984_540_054)] {
            assert!((super::quantile(p) - x).abs() < 1e-12);
        }
    }
}
