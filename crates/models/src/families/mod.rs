//! One file a family, named after its `model_type`; and the list of them.

mod apertus;
mod cohere;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n_text;
mod gemma4_text;
mod glm;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granitemoe;
mod granitemoehybrid;
mod helium;
mod hunyuan_v1_dense;
mod internlm3;
mod jamba;
mod lfm2;
mod lfm2_moe;
mod llama;
mod llama4_text;
mod mamba;
mod mamba2;
mod minimax_m2;
mod ministral3;
mod mistral;
mod mixtral;
mod nemotron;
mod nemotron_h;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod recurrent_gemma;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use rillm_tensor_core::Backend;

use crate::{DecoderFamily, Family};

/// Families with a model of their own.
pub(crate) fn others<B: Backend>() -> [Box<dyn Family<B>>; 1] {
    [Box::new(gemma3n_text::Gemma3n)]
}

/// Every family of this crate.
pub(crate) const ALL: &[DecoderFamily] = &[
    apertus::FAMILY,
    cohere::FAMILY,
    cohere2::FAMILY,
    deepseek_v2::FAMILY,
    deepseek_v3::FAMILY,
    dots1::FAMILY,
    ernie4_5::FAMILY,
    ernie4_5_moe::FAMILY,
    exaone4::FAMILY,
    falcon_h1::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma4_text::FAMILY,
    glm::FAMILY,
    glm4::FAMILY,
    glm4_moe::FAMILY,
    glm4_moe_lite::FAMILY,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    gpt_neox::FAMILY,
    gpt_oss::FAMILY,
    granite::FAMILY,
    granitemoe::FAMILY,
    granitemoehybrid::FAMILY,
    helium::FAMILY,
    hunyuan_v1_dense::FAMILY,
    internlm3::FAMILY,
    jamba::FAMILY,
    lfm2::FAMILY,
    lfm2_moe::FAMILY,
    llama::FAMILY,
    llama4_text::FAMILY,
    mamba::FAMILY,
    mamba2::FAMILY,
    minimax_m2::FAMILY,
    ministral3::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    nemotron::FAMILY,
    nemotron_h::FAMILY,
    olmo::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    olmoe::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    phimoe::FAMILY,
    qwen2::FAMILY,
    qwen2_moe::FAMILY,
    qwen3::FAMILY,
    qwen3_5::FAMILY,
    qwen3_moe::FAMILY,
    qwen3_next::FAMILY,
    recurrent_gemma::FAMILY,
    seed_oss::FAMILY,
    smollm3::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
];
