//! Falcon-H1: Mamba-2 and attention side by side in every layer, with a factor on almost everything.

mod factors;

use rillm_nn::{CausalLm, GateOrder, GatedNorm, Mamba2Spec, MlpSpec, WeightSource};
use rillm_tensor_core::{Activation, FullBackend};

use self::factors::Factors;
use super::common::{DEFAULTS, Defaults, attention, bias, layer_count_or};
use super::jamba;
use super::mamba2;
use crate::{BranchSpec, Config, DecoderFamily, DecoderSpec, Family, HeadSpec, LayerSpec, MixerSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily {
    layout: jamba::layout,
    ..DecoderFamily::new(&["falcon_h1"], |c| spec(c, &Factors::stated(c)?))
};

/// What mlx-lm wrote: most factors are in the weights already, and all in the configuration still.
const FOLDED: DecoderFamily =
    DecoderFamily { spec: |c| spec(c, &Factors::stated(c)?.left_by_mlx_lm(c)?), ..FAMILY };

/// The family of either kind of checkpoints, known by the order of their convolutions.
#[derive(Debug)]
pub(super) struct FalconH1;

impl<B: FullBackend> Family<B> for FalconH1 {
    fn model_types(&self) -> &[&'static str] {
        FAMILY.model_types
    }

    fn load(&self, config: &Config<'_>, source: &dyn WeightSource, be: &B) -> Result<Box<dyn CausalLm<B>>> {
        let conv = source.get("model.layers.0.mamba.conv1d.weight")?;
        let folded = conv.is_some_and(|raw| matches!(raw.shape[..], [_, taps, 1] if taps > 1));
        Family::<B>::load(if folded { &FOLDED } else { &FAMILY }, config, source, be)
    }
}

fn spec(c: &Config<'_>, factors: &Factors) -> Result<DecoderSpec> {
    let (dim, norm) = (c.count_or("hidden_size", 4096)?, c.rms_norm(1e-5)?);
    let used = |x: f32| Some(x).filter(|x| *x != 1.0);
    let (mut attn, context) =
        attention(c, dim, &Defaults { eps: 1e-5, context: 8192, kv_heads: Some(8), ..DEFAULTS })?;
    let attn_bias = bias(c, "attention_bias")?;
    (attn.qkv_bias, attn.o_bias) = (attn_bias, attn_bias);
    attn.params.scale *= factors.scores;
    let mlp = MlpSpec {
        bias: bias(c, "mlp_bias")?,
        gate_factor: used(factors.gate),
        ..MlpSpec::new(
            [dim, c.count_or("intermediate_size", 14_336)?],
            c.activation("hidden_act", Activation::Silu)?,
        )
    };
    let branch = |name, mixer, norm_name, factor| BranchSpec {
        factor: used(factor),
        ..BranchSpec::normed(name, mixer, norm_name, norm)
    };
    let mamba = MixerSpec::Mamba2(mamba(c, dim, factors)?);
    let layer = LayerSpec(vec![
        vec![
            branch("mamba", mamba, "input_layernorm", factors.ssm_out),
            branch("self_attn", MixerSpec::Attention(attn), "input_layernorm", factors.attention),
        ]
        .into(),
        vec![branch("mlp", MixerSpec::Mlp(mlp), "pre_ff_layernorm", factors.down)].into(),
    ]);
    Ok(DecoderSpec {
        context,
        embed_scale: used(factors.embed),
        ..DecoderSpec::new(
            [dim, c.count_or("vocab_size", 128_000)?],
            vec![layer; layer_count_or(c, "num_hidden_layers", 32)?],
            norm,
            HeadSpec { scale: used(factors.head), ..HeadSpec::plain(c.flag("tie_word_embeddings", false)?) },
        )
    })
}

fn mamba(c: &Config<'_>, dim: usize, factors: &Factors) -> Result<Mamba2Spec> {
    let inner = match (c.has("mamba_d_ssm"), c.opt_count("mamba_d_ssm")?) {
        (_, Some(n)) => n,
        (true, None) => c.count_or("mamba_expand", 2)? * dim,
        (false, None) => 1024,
    };
    let spec = mamba2::prefixed(c, dim, inner)?;
    let order = match c.flag("mamba_norm_before_gate", true)? {
        true => GateOrder::NormFirst,
        false => GateOrder::GateFirst,
    };
    let norm = GatedNorm { eps: c.positive_or("rms_norm_eps", 1e-5)? as f32, groups: spec.groups, order };
    Ok(Mamba2Spec {
        out_bias: bias(c, "projectors_bias")?,
        norm: c.flag("mamba_rms_norm", false)?.then_some(norm),
        factors: Some(factors.ssm).filter(|f| *f != [1.0; 5]),
        ..spec
    })
}
