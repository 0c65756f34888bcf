//! A decoder stated layer by layer: the vocabulary that families describe their models in. Loads and computes nothing.

use rillm_nn::{
    Attention, AttentionSpec, Bias, ChannelMix, ChannelMixSpec, GatedConv, GatedConvSpec, GatedDelta,
    GatedDeltaSpec, Griffin, GriffinSpec, KimiDelta, KimiDeltaSpec, Lightning, LightningSpec, Mamba, Mamba2,
    Mamba2Spec, MambaSpec, Mixer, Mla, MlaSpec, Mlp, MlpSpec, Moe, MoeSpec, NormKind, PerLayerGate,
    PerLayerSpec, Result, TimeMix, TimeMixSpec, Weights,
};
use rillm_tensor_core::FullBackend;

/// A decoder: an embedding, layers in order, a norm and a head.
#[derive(Clone, Debug)]
pub struct DecoderSpec {
    /// Width of the model.
    pub dim: usize,
    /// Tokens.
    pub vocab: usize,
    /// Positions the model was made for; `None` if its rope stretches without limit.
    pub context: Option<usize>,
    /// Rows of a table of learned positions, added to the embedding.
    pub learned_positions: Option<usize>,
    /// Factor on the embedding.
    pub embed_scale: Option<f32>,
    /// What tokens bring to each layer besides.
    pub per_layer: Option<PerLayerSpec>,
    /// Layers in order.
    pub layers: Vec<LayerSpec>,
    /// The norm before the head.
    pub norm: NormKind,
    /// What makes logits.
    pub head: HeadSpec,
}

/// From the last rows to logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// Whether the embedding table is the head.
    pub tied: bool,
    /// Whether the head, if it is not tied, has a bias.
    pub bias: Bias,
    /// Factor on the logits.
    pub scale: Option<f32>,
    /// Logits become `cap * tanh(logit / cap)`, after the factor.
    pub softcap: Option<f32>,
}

impl HeadSpec {
    /// A matrix and no more.
    pub const fn plain(tied: bool) -> Self {
        Self { tied, bias: Bias::None, scale: None, softcap: None }
    }
}

/// One decoder layer: groups of branches, one group after the other.
#[derive(Clone, Debug)]
pub struct LayerSpec(pub Vec<GroupSpec>);

/// Branches that read the same rows `x`, to which what they give is added: `x = keep x + post_norm(Σ branch(x))`.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// The branches, in the order in which they are added.
    pub branches: Vec<BranchSpec>,
    /// The norm that `x` is replaced by before (minimax).
    pub entry: Option<NormSpec>,
    /// Factor on `x`.
    pub keep: Option<f32>,
    /// The norm of their sum.
    pub post_norm: Option<NormSpec>,
    /// The name of a number of the layer that everything is multiplied by afterwards.
    pub scalar: Option<&'static str>,
}

impl From<Vec<BranchSpec>> for GroupSpec {
    fn from(branches: Vec<BranchSpec>) -> Self {
        Self { branches, entry: None, keep: None, post_norm: None, scalar: None }
    }
}

/// `factor * post_norm(mixer(norm(x)))`.
#[derive(Clone, Debug)]
pub struct BranchSpec {
    /// Under which name the mixer's parameters are in a layer.
    pub name: &'static str,
    /// What is computed.
    pub mixer: MixerSpec,
    /// The norm before.
    pub norm: Option<NormSpec>,
    /// The norm after.
    pub post_norm: Option<NormSpec>,
    /// Factor on what is added.
    pub factor: Option<f32>,
    /// The layer whose cache it reads, if not its own.
    pub cache_of: Option<usize>,
}

impl BranchSpec {
    /// `x += mixer(norm(x))`.
    pub fn new(name: &'static str, mixer: MixerSpec, norm: Option<NormSpec>) -> Self {
        Self { name, mixer, norm, post_norm: None, factor: None, cache_of: None }
    }

    /// `x += mixer(norm(x))`, where the norm of this kind has parameters called `norm`.
    pub fn normed(name: &'static str, mixer: MixerSpec, norm: &'static str, kind: NormKind) -> Self {
        Self::new(name, mixer, Some(NormSpec { name: norm, kind }))
    }
}

/// A norm of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Under which name its parameters are in the layer.
    pub name: &'static str,
    /// Which norm.
    pub kind: NormKind,
}

/// What a branch computes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MixerSpec {
    /// Grouped-query self-attention.
    Attention(AttentionSpec),
    /// A dense feed-forward layer.
    Mlp(MlpSpec),
    /// Multi-head latent attention.
    Mla(MlaSpec),
    /// A mixture of experts.
    Moe(MoeSpec),
    /// The gate of per-layer embeddings.
    PerLayerGate(PerLayerSpec),
    /// A gated short convolution.
    GatedConv(GatedConvSpec),
    /// A selective state space.
    Mamba(MambaSpec),
    /// A state space with one decay for each head.
    Mamba2(Mamba2Spec),
    /// The gated delta rule.
    GatedDelta(GatedDeltaSpec),
    /// A gated linear recurrent unit.
    Griffin(GriffinSpec),
    /// The delta rule with a decay for each value of a key.
    KimiDelta(KimiDeltaSpec),
    /// Linear attention with constant decays.
    Lightning(LightningSpec),
    /// RWKV-7's time mixing.
    TimeMix(TimeMixSpec),
    /// RWKV-7's channel mixing.
    ChannelMix(ChannelMixSpec),
}

impl MixerSpec {
    /// Loads the parameters of a mixer of layer `layer`.
    pub(crate) fn load<B: FullBackend>(&self, w: &Weights<'_, B>, layer: usize) -> Result<Box<dyn Mixer<B>>> {
        Ok(match self {
            Self::Attention(spec) => Box::new(Attention::load(w, spec.clone())?),
            Self::Mlp(spec) => Box::new(Mlp::load(w, *spec)?),
            Self::Mla(spec) => Box::new(Mla::load(w, spec.clone())?),
            Self::Moe(spec) => Box::new(Moe::load(w, *spec)?),
            Self::PerLayerGate(spec) => Box::new(PerLayerGate::load(w, *spec, layer)?),
            Self::GatedConv(spec) => Box::new(GatedConv::load(w, *spec)?),
            Self::Mamba(spec) => Box::new(Mamba::load(w, *spec)?),
            Self::Mamba2(spec) => Box::new(Mamba2::load(w, spec.clone())?),
            Self::GatedDelta(spec) => Box::new(GatedDelta::load(w, *spec)?),
            Self::Griffin(spec) => Box::new(Griffin::load(w, *spec)?),
            Self::KimiDelta(spec) => Box::new(KimiDelta::load(w, *spec)?),
            Self::Lightning(spec) => Box::new(Lightning::load(w, *spec)?),
            Self::TimeMix(spec) => Box::new(TimeMix::load(w, *spec)?),
            Self::ChannelMix(spec) => Box::new(ChannelMix::load(w, *spec)?),
        })
    }
}

/// Where the norms of a layer of attention and feed-forward layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the feed-forward layer (llama).
    Pre,
    /// Before and after each (gemma2).
    PreAndPost,
    /// After each (olmo2).
    Post,
    /// Both read the same norm and run side by side (cohere, phi).
    Parallel,
    /// Both run side by side, each with a norm of its own (gpt_neox).
    ParallelTwo,
}

impl LayerSpec {
    /// Each branch reads what the one before it has been added to.
    pub fn in_turn<const N: usize>(branches: [BranchSpec; N]) -> Self {
        Self(branches.map(|branch| vec![branch].into()).into())
    }

    /// A layer of `attn` and `mlp` with norms of `kind`, under the names that Llama's, Gemma's and Olmo's have.
    pub fn new(attn: MixerSpec, mlp: MixerSpec, norms: Norms, kind: NormKind) -> Self {
        let norm = |name| Some(NormSpec { name, kind });
        let (before, after) = (norm("input_layernorm"), norm("post_attention_layernorm"));
        let post = norm("post_feedforward_layernorm");
        let [attn_norms, mlp_norms] = match norms {
            Norms::Pre | Norms::ParallelTwo => [(before, None), (after, None)],
            Norms::PreAndPost => [(before, after), (norm("pre_feedforward_layernorm"), post)],
            Norms::Post => [(None, after), (None, post)],
            Norms::Parallel => [(before, None); 2],
        };
        let branch =
            |name, mixer, (norm, post_norm)| BranchSpec { post_norm, ..BranchSpec::new(name, mixer, norm) };
        let branches = [branch("self_attn", attn, attn_norms), branch("mlp", mlp, mlp_norms)];
        Self(match norms {
            Norms::Parallel | Norms::ParallelTwo => vec![Vec::from(branches).into()],
            _ => branches.into_iter().map(|b| vec![b].into()).collect(),
        })
    }

    /// All branches, in order.
    pub fn branches(&self) -> impl Iterator<Item = &BranchSpec> {
        self.0.iter().flat_map(|g| &g.branches)
    }

    /// All branches, in order.
    pub fn branches_mut(&mut self) -> impl Iterator<Item = &mut BranchSpec> {
        self.0.iter_mut().flat_map(|g| &mut g.branches)
    }

    /// Its attention, if it has one.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        self.branches().find_map(|b| match &b.mixer {
            MixerSpec::Attention(spec) => Some(spec),
            _ => None,
        })
    }

    /// Its mixture of experts, if it has one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        self.branches().find_map(|b| match &b.mixer {
            MixerSpec::Moe(spec) => Some(spec),
            _ => None,
        })
    }

    /// Its dense feed-forward layer, if it has one.
    pub fn mlp(&self) -> Option<&MlpSpec> {
        self.branches().find_map(|b| match &b.mixer {
            MixerSpec::Mlp(spec) => Some(spec),
            _ => None,
        })
    }
}

impl DecoderSpec {
    /// Layers between an embedding of `vocab` tokens in `dim` values and a norm and a head, and nothing else.
    pub fn new([dim, vocab]: [usize; 2], layers: Vec<LayerSpec>, norm: NormKind, head: HeadSpec) -> Self {
        let (context, learned_positions, embed_scale, per_layer) = (None, None, None, None);
        Self { dim, vocab, context, learned_positions, embed_scale, per_layer, layers, norm, head }
    }

    /// The attention of each layer that has one, in order.
    pub fn attentions(&mut self) -> impl Iterator<Item = &mut AttentionSpec> {
        self.branches().filter_map(|b| match &mut b.mixer {
            MixerSpec::Attention(spec) => Some(spec),
            _ => None,
        })
    }

    /// The dense feed-forward layers, in order.
    pub fn mlps(&mut self) -> impl Iterator<Item = &mut MlpSpec> {
        self.branches().filter_map(|b| match &mut b.mixer {
            MixerSpec::Mlp(spec) => Some(spec),
            _ => None,
        })
    }

    /// The mixtures of experts, in order.
    pub fn moes(&mut self) -> impl Iterator<Item = &mut MoeSpec> {
        self.branches().filter_map(|b| match &mut b.mixer {
            MixerSpec::Moe(spec) => Some(spec),
            _ => None,
        })
    }

    /// Makes mixtures of experts of the feed-forward layers, by number, for which `of` gives one.
    pub fn mix(&mut self, of: impl Fn(usize, &MlpSpec) -> Option<MoeSpec>) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for branch in layer.branches_mut() {
                if let MixerSpec::Mlp(mlp) = &branch.mixer
                    && let Some(moe) = of(i, mlp)
                {
                    branch.mixer = MixerSpec::Moe(moe);
                }
            }
        }
    }

    /// The branches of all layers, in order.
    pub fn branches(&mut self) -> impl Iterator<Item = &mut BranchSpec> {
        self.layers.iter_mut().flat_map(LayerSpec::branches_mut)
    }

    /// Gives layers of attention and feed-forward layer another arrangement of norms.
    pub fn arrange(&mut self, norms: Norms) {
        for layer in &mut self.layers {
            let mixers: Vec<MixerSpec> = layer.branches().map(|b| b.mixer.clone()).collect();
            if let Ok([attn, mlp]) = <[MixerSpec; 2]>::try_from(mixers) {
                *layer = LayerSpec::new(attn, mlp, norms, self.norm);
            }
        }
    }

    /// Gives every norm but those inside mixers the kind that `of` makes of its own.
    pub fn map_norms(&mut self, of: impl Fn(NormKind) -> NormKind) {
        self.norm = of(self.norm);
        for norm in self.branches().flat_map(|b| [&mut b.norm, &mut b.post_norm]).flatten() {
            norm.kind = of(norm.kind);
        }
    }
}
