//! Falcon-H1: Mamba-2 and attention side by side in every layer, with a factor on almost everything.

use rillm_nn::{Bias, GateOrder, GatedNorm, Mamba2Spec, MlpKind, MlpSpec, Origin, WeightSource};
use rillm_tensor_core::Activation;

use super::granitemoehybrid::head_dim;
use super::jamba;
use super::llama::{DEFAULTS, Defaults, attention, bias, bias_or, layer_count_or};
use super::mamba2::{divides, dt_limits};
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, HeadSpec, LayerSpec, Layout, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily { layout, ..DecoderFamily::new(&["falcon_h1"], spec) };

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let (dim, norm) = (c.count_or("hidden_size", 4096)?, c.rms_norm(1e-5)?);
    let factor = |key| Ok::<_, crate::Error>(c.number_or(key, 1.0)? as f32);
    let used = |x: f32| Some(x).filter(|x| *x != 1.0);
    let (mut attn, context) = attention(c, dim, &Defaults { eps: 1e-5, context: 8192, ..DEFAULTS })?;
    let (attn_in, key) = (factor("attention_in_multiplier")?, factor("key_multiplier")?);
    let attn_bias = bias(c, "attention_bias")?;
    if attn_bias == Bias::Added && attn_in != 1.0 {
        return Err(c.unsupported("attention_in_multiplier", "1 where there are biases"));
    }
    (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
    // What attention reads is multiplied: queries, keys and values are.
    attn.params.scale *= attn_in * attn_in * key;
    let [gate, down] = pair(c)?;
    let mlp = MlpSpec {
        kind: MlpKind::Gated,
        dim,
        hidden: c.count_or("intermediate_size", 14_336)?,
        act: c.activation("hidden_act", Activation::Silu)?,
        bias: bias(c, "mlp_bias")?,
        gate_factor: used(gate),
    };
    let branch = |name, mixer, norm_name, factor| BranchSpec {
        factor: used(factor),
        ..BranchSpec::normed(name, mixer, norm_name, norm)
    };
    let ssm_out = factor("ssm_out_multiplier")?;
    let attn_out = factor("attention_out_multiplier")? * attn_in;
    let layer = LayerSpec(vec![
        vec![
            branch("mamba", MixerSpec::Mamba2(mamba(c, dim)?), "input_layernorm", ssm_out),
            branch("self_attn", MixerSpec::Attention(attn), "input_layernorm", attn_out),
        ]
        .into(),
        vec![branch("mlp", MixerSpec::Mlp(mlp), "pre_ff_layernorm", down)].into(),
    ]);
    Ok(DecoderSpec {
        dim,
        vocab: c.count_or("vocab_size", 128_000)?,
        context,
        learned_positions: None,
        embed_scale: used(factor("embedding_multiplier")?),
        per_layer: None,
        layers: vec![layer; layer_count_or(c, "num_hidden_layers", 32)?],
        norm,
        head: HeadSpec {
            scale: used(factor("lm_head_multiplier")?),
            ..HeadSpec::plain(c.flag("tie_word_embeddings", false)?)
        },
    })
}

/// `mlp_multipliers`: of the gate, and of the result.
fn pair(c: &Config<'_>) -> Result<[f32; 2]> {
    match c.opt_numbers("mlp_multipliers")?.as_deref() {
        None => Ok([1.0; 2]),
        Some(&[gate, down]) => Ok([gate as f32, down as f32]),
        Some(_) => Err(c.unsupported("mlp_multipliers", "two numbers")),
    }
}

fn mamba(c: &Config<'_>, dim: usize) -> Result<Mamba2Spec> {
    c.only("hidden_act", "silu")?;
    let (heads, groups) = (c.count_or("mamba_n_heads", 128)?, c.count_or("mamba_n_groups", 1)?);
    let inner = match (c.has("mamba_d_ssm"), c.opt_count("mamba_d_ssm")?) {
        (_, Some(n)) => n,
        (true, None) => c.count_or("mamba_expand", 2)? * dim,
        (false, None) => 1024,
    };
    divides(c, "mamba_n_heads", heads, inner)?;
    divides(c, "mamba_n_groups", groups, heads)?;
    let order = match c.flag("mamba_norm_before_gate", true)? {
        true => GateOrder::NormFirst,
        false => GateOrder::GateFirst,
    };
    let norm = GatedNorm { eps: c.positive_or("rms_norm_eps", 1e-5)? as f32, groups, order };
    let input = c.number_or("ssm_in_multiplier", 1.0)?;
    let in_bias = bias(c, "mamba_proj_bias")?;
    if in_bias == Bias::Added && input != 1.0 {
        return Err(c.unsupported("ssm_in_multiplier", "1 where there are biases"));
    }
    let factors = match c.opt_numbers("ssm_multipliers")?.map(<[f64; 5]>::try_from) {
        None => [1.0; 5],
        Some(Ok(factors)) => factors,
        Some(Err(_)) => return Err(c.unsupported("ssm_multipliers", "five numbers")),
    };
    let factors = factors.map(|x| (x * input) as f32);
    Ok(Mamba2Spec {
        dim,
        heads,
        head_dim: head_dim(c, inner, heads)?,
        state: c.count_or("mamba_d_state", 256)?,
        groups,
        taps: c.count_or("mamba_d_conv", 4)?,
        in_bias,
        out_bias: bias(c, "projectors_bias")?,
        conv_bias: bias_or(c, "mamba_conv_bias", true)?,
        dt_limits: dt_limits(c)?,
        norm: c.flag("mamba_rms_norm", false)?.then_some(norm),
        factors: Some(factors).filter(|f| *f != [1.0; 5]),
    })
}

/// mlx-lm multiplies the factors into the weights and keeps them in the configuration: its checkpoints, known by the order
/// of their convolutions, are refused by asking for a parameter that says so.
fn layout(spec: &DecoderSpec, source: &dyn WeightSource) -> Layout {
    let conv = source.get("model.layers.0.mamba.conv1d.weight");
    if matches!(conv, Ok(Some(raw)) if raw.shape.len() == 3 && raw.shape[2] == 1 && raw.shape[1] > 1) {
        return Box::new(|name| {
            Origin::Tensor(format!("{name} without the factors that mlx-lm multiplied in"))
        });
    }
    jamba::layout(spec, source)
}
