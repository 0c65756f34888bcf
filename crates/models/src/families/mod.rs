//! One file a family, named after its `model_type`; and the list of them.

mod apertus;
mod bitnet;
mod cohere;
mod cohere2;
mod common;
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
mod kimi_linear;
mod lfm2;
mod lfm2_moe;
mod llama;
mod llama4_text;
mod mamba;
mod mamba2;
mod minimax;
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
mod rwkv7;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use rillm_tensor_core::FullBackend;

use crate::{DecoderFamily, Family, FamilyInfo};

/// Families with a model of their own, or with weights that say how to read the configuration.
pub(crate) fn others<B: FullBackend>() -> [Box<dyn Family<B>>; 3] {
    [Box::new(gemma3n_text::Gemma3n), Box::new(falcon_h1::FalconH1), Box::new(ernie4_5_moe::Ernie45Moe)]
}

/// Every family of this crate.
pub(crate) const ALL: &[DecoderFamily] = &[
    apertus::FAMILY,
    bitnet::FAMILY,
    cohere2::FAMILY,
    cohere::FAMILY,
    deepseek_v2::FAMILY,
    deepseek_v3::FAMILY,
    dots1::FAMILY,
    ernie4_5::FAMILY,
    ernie4_5_moe::FAMILY,
    exaone4::FAMILY,
    falcon_h1::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma4_text::FAMILY,
    gemma::FAMILY,
    glm4::FAMILY,
    glm4_moe::FAMILY,
    glm4_moe_lite::FAMILY,
    glm::FAMILY,
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
    kimi_linear::FAMILY,
    lfm2::FAMILY,
    lfm2_moe::FAMILY,
    llama4_text::FAMILY,
    llama::FAMILY,
    mamba2::FAMILY,
    mamba::FAMILY,
    minimax::FAMILY,
    minimax_m2::FAMILY,
    ministral3::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    nemotron::FAMILY,
    nemotron_h::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    olmo::FAMILY,
    olmoe::FAMILY,
    phi3::FAMILY,
    phi::FAMILY,
    phimoe::FAMILY,
    qwen2::FAMILY,
    qwen2_moe::FAMILY,
    qwen3::FAMILY,
    qwen3_5::FAMILY,
    qwen3_moe::FAMILY,
    qwen3_next::FAMILY,
    recurrent_gemma::FAMILY,
    rwkv7::FAMILY,
    seed_oss::FAMILY,
    smollm3::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
];

/// Every `model_type` of this crate, in alphabetical order, and the models that are known under it.
pub(crate) const MODELS: &[FamilyInfo] = &[
    FamilyInfo { model_type: "apertus", models: "Apertus" },
    FamilyInfo { model_type: "bitnet", models: "BitNet b1.58" },
    FamilyInfo { model_type: "cohere", models: "Command R, R+" },
    FamilyInfo { model_type: "cohere2", models: "Command R7B, A" },
    FamilyInfo { model_type: "deepseek_v2", models: "DeepSeek-V2, V2-Lite" },
    FamilyInfo { model_type: "deepseek_v3", models: "DeepSeek-V3, R1" },
    FamilyInfo { model_type: "dots1", models: "dots.llm1" },
    FamilyInfo { model_type: "ernie4_5", models: "ERNIE 4.5, dense" },
    FamilyInfo { model_type: "ernie4_5_moe", models: "ERNIE 4.5, experts" },
    FamilyInfo { model_type: "exaone4", models: "EXAONE 4" },
    FamilyInfo { model_type: "falcon_h1", models: "Falcon-H1" },
    FamilyInfo { model_type: "falcon_mamba", models: "Falcon Mamba" },
    FamilyInfo { model_type: "gemma", models: "Gemma" },
    FamilyInfo { model_type: "gemma2", models: "Gemma 2" },
    FamilyInfo { model_type: "gemma3_text", models: "Gemma 3, text" },
    FamilyInfo { model_type: "gemma3n_text", models: "Gemma 3n, text" },
    FamilyInfo { model_type: "gemma4_text", models: "Gemma 4, text" },
    FamilyInfo { model_type: "glm", models: "GLM-4-9B" },
    FamilyInfo { model_type: "glm4", models: "GLM-4-0414" },
    FamilyInfo { model_type: "glm4_moe", models: "GLM-4.5, 4.6, 4.7" },
    FamilyInfo { model_type: "glm4_moe_lite", models: "GLM-4.7-Flash" },
    FamilyInfo { model_type: "gpt2", models: "GPT-2" },
    FamilyInfo { model_type: "gpt_bigcode", models: "StarCoder, SantaCoder" },
    FamilyInfo { model_type: "gpt_neox", models: "GPT-NeoX, Pythia" },
    FamilyInfo { model_type: "gpt_oss", models: "gpt-oss" },
    FamilyInfo { model_type: "granite", models: "Granite 3" },
    FamilyInfo { model_type: "granitemoe", models: "Granite 3, experts" },
    FamilyInfo { model_type: "granitemoehybrid", models: "Granite 4" },
    FamilyInfo { model_type: "helium", models: "Helium" },
    FamilyInfo { model_type: "hunyuan_v1_dense", models: "Hunyuan, dense" },
    FamilyInfo { model_type: "internlm3", models: "InternLM3" },
    FamilyInfo { model_type: "jamba", models: "Jamba" },
    FamilyInfo { model_type: "kimi_k2", models: "Kimi K2" },
    FamilyInfo { model_type: "kimi_linear", models: "Kimi Linear" },
    FamilyInfo { model_type: "lfm2", models: "LFM2, dense" },
    FamilyInfo { model_type: "lfm2_moe", models: "LFM2, experts" },
    FamilyInfo { model_type: "llama", models: "Llama 1, 2, 3.x, SmolLM2, TinyLlama" },
    FamilyInfo { model_type: "llama4_text", models: "Llama 4, text" },
    FamilyInfo { model_type: "mamba", models: "Mamba" },
    FamilyInfo { model_type: "mamba2", models: "Mamba 2, Codestral Mamba" },
    FamilyInfo { model_type: "minimax", models: "MiniMax-01, M1" },
    FamilyInfo { model_type: "minimax_m2", models: "MiniMax-M2" },
    FamilyInfo { model_type: "ministral3", models: "Ministral 3" },
    FamilyInfo { model_type: "mistral", models: "Mistral" },
    FamilyInfo { model_type: "mixtral", models: "Mixtral" },
    FamilyInfo { model_type: "nemotron", models: "Nemotron-3 8B, Nemotron-4, Minitron" },
    FamilyInfo { model_type: "nemotron_h", models: "Nemotron-H, Nemotron Nano 2, Nemotron 3" },
    FamilyInfo { model_type: "olmo", models: "OLMo 1" },
    FamilyInfo { model_type: "olmo2", models: "OLMo 2" },
    FamilyInfo { model_type: "olmo3", models: "OLMo 3" },
    FamilyInfo { model_type: "olmoe", models: "OLMoE" },
    FamilyInfo { model_type: "phi", models: "Phi-1, 1.5, 2" },
    FamilyInfo { model_type: "phi3", models: "Phi-3, Phi-3.5, Phi-4" },
    FamilyInfo { model_type: "phimoe", models: "Phi-3.5-MoE" },
    FamilyInfo { model_type: "qwen2", models: "Qwen2, Qwen2.5" },
    FamilyInfo { model_type: "qwen2_moe", models: "Qwen1.5-MoE, Qwen2, experts" },
    FamilyInfo { model_type: "qwen3", models: "Qwen3, dense" },
    FamilyInfo { model_type: "qwen3_5_moe_text", models: "Qwen3.5, experts" },
    FamilyInfo { model_type: "qwen3_5_text", models: "Qwen3.5, dense" },
    FamilyInfo { model_type: "qwen3_moe", models: "Qwen3, experts" },
    FamilyInfo { model_type: "qwen3_next", models: "Qwen3-Next" },
    FamilyInfo { model_type: "recurrent_gemma", models: "RecurrentGemma" },
    FamilyInfo { model_type: "rwkv7", models: "RWKV-7" },
    FamilyInfo { model_type: "seed_oss", models: "Seed-OSS" },
    FamilyInfo { model_type: "smollm3", models: "SmolLM3" },
    FamilyInfo { model_type: "stablelm", models: "StableLM 2" },
    FamilyInfo { model_type: "starcoder2", models: "StarCoder 2" },
];
