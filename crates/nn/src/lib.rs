//! Layers of language models, and the checkpoints they load from.
//!
//! Not models: which layers make a Llama is `rillm-models`' business. A layer names its parameters, checks their
//! shapes, and computes with a [`Backend`](rillm_tensor_core::Backend).
#![deny(unsafe_code)]
#![deny(missing_docs)]

mod attention;
mod causal_lm;
mod embedding;
mod error;
mod gated_delta;
mod griffin;
mod kimi_delta;
mod lightning;
mod linear;
mod mamba;
mod mamba2;
mod mixer;
mod mla;
mod mlp;
mod moe;
mod norm;
mod per_layer;
mod recurrent;
mod rope;
mod rwkv7;
mod short_conv;
pub mod weights;

pub use attention::{Attention, AttentionSpec, KeyValues, NormOrder, NormOver, QkNorm, Temperature};
pub use causal_lm::CausalLm;
pub use embedding::Embedding;
pub use error::{Error, Result};
pub use gated_delta::{GatedDelta, GatedDeltaSpec};
pub use griffin::{Griffin, GriffinSpec};
pub use kimi_delta::{KimiDelta, KimiDeltaSpec};
pub use lightning::{Lightning, LightningSpec};
pub use linear::{Bias, Linear};
pub use mamba::{Mamba, MambaNorms, MambaSpec};
pub use mamba2::{GateOrder, GatedNorm, Mamba2, Mamba2Spec};
pub use mixer::{Mixer, Pass, Tail};
pub use mla::{Mla, MlaSpec};
pub use mlp::{Mlp, MlpKind, MlpSpec};
pub use moe::{ExpertFactors, LatentSpec, Moe, MoeSpec, RouterInput, SharedGate, SharedSpec};
pub use norm::{Norm, NormKind};
pub use per_layer::{PerLayer, PerLayerGate, PerLayerSpec};
pub use rope::{RopeScaling, RopeSpec, RotaryEmbedding};
pub use rwkv7::{ChannelMix, ChannelMixSpec, TimeMix, TimeMixSpec};
pub use short_conv::{GatedConv, GatedConvSpec};
pub use weights::{Adapted, Gguf, Lie, Origin, Quantization, Safetensors, WeightSource, Weights};
