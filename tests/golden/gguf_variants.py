"""GGUF variants (make_gguf_golden.py) and the float checkpoints they are made from, which are not kept."""
from moe_variants import corrected, expert_biased
from more import G4
from variants import GEMMA, GEMMA2, GPT2, longrope, rope, s as single_layer


def s(**kw):
    return single_layer(**{"num_hidden_layers": 2, **kw})


def case(model_type, config, **kw):
    return dict(model_type=model_type, config=config, prompt_len=kw.pop("prompt_len", 24), **kw)

# Rows of the K-quants are super-blocks of 256; o_proj's 64 columns fit none.
WIDE = s(hidden_size=256, intermediate_size=256, head_dim=16, num_key_value_heads=1, num_hidden_layers=1, tie_word_embeddings=True)
NEOX = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=96, max_position_embeddings=256)
SMALL4 = {**G4, "head_dim": 8, "global_head_dim": 16, "intermediate_size": 16}
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
ROUTED = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1)
MLA = dict(ROUTED, num_key_value_heads=4, kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=32, v_head_dim=16)
YARN = rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=0.7, beta_fast=4, beta_slow=1)

THREE = dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"])
SHARED = dict(EXPERTS, shared_expert_intermediate_size=32)
GDN = dict(layer_types=["linear_attention", "full_attention"], head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
HYBRID = dict(layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=2)
FALCON = dict(num_hidden_layers=1, head_dim=8, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=16)
FALCON_FACTORS = dict(embedding_multiplier=3.0, lm_head_multiplier=0.7, mlp_multipliers=[0.8, 1.3], key_multiplier=0.6, attention_out_multiplier=1.2, attention_in_multiplier=0.9, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7], ssm_in_multiplier=1.1, ssm_out_multiplier=0.6)
NEMOTRON_H = dict(hidden_size=32, intermediate_size=64, vocab_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16, ssm_state_size=16, mamba_num_heads=4, mamba_head_dim=16, n_groups=2, chunk_size=8, max_position_embeddings=256, layers_block_type=["mamba", "mlp", "attention"])
MAMBA = dict(hidden_size=32, num_hidden_layers=2, vocab_size=96)
JAMBA = dict(num_hidden_layers=3, attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=16)
KIMI = dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], mlp_layer_types=["dense", "sparse"], num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=8, qk_nope_head_dim=32, v_head_dim=16, linear_head_dim=16, linear_num_heads=4, moe_intermediate_size=32)
GEMMA4_MOE = dict(SMALL4, intermediate_size=32, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)
NEMOTRON_MOE = dict(NEMOTRON_H, layers_block_type=["mamba", "moe", "attention"], n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, moe_shared_expert_intermediate_size=64, routed_scaling_factor=2.5)
# The factor of the models that were released; there is no key for it.
MSCALE = 1.243163121016122

def with_next(t):
    """Corrections of the choice, and a layer that predicts further tokens, as far as that is seen."""
    nextn = {f"model.layers.2.{k}": t["model.layers.1.input_layernorm.weight"] + 0 for k in ("input_layernorm.weight", "enorm.weight", "hnorm.weight")}
    return {**corrected(t), **nextn}

CASES = {
    "llama": case("llama", s(tie_word_embeddings=True)),
    "llama-wide": case("llama", WIDE),
    "llama-biases": case("llama", s(attention_bias=True)),
    "llama-rope-llama3": case("llama", s(head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "llama-rope-linear": case("llama", s(tie_word_embeddings=True, rope_parameters=rope("linear", factor=4.0))),
    "llama-rope-yarn": case("llama", s(head_dim=16, tie_word_embeddings=True, max_position_embeddings=1024, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=256, rope_theta=5000.0))),
    "mistral": case("mistral", s(head_dim=16, sliding_window=None)),
    "qwen2": case("qwen2", s(tie_word_embeddings=True, rope_parameters=rope("default", rope_theta=1e6))),
    "qwen3": case("qwen3", s(head_dim=16)),
    "gpt2": case("gpt2", dict(GPT2, n_positions=48), edit=dict(n_ctx=48)),
    "phi3": case("phi3", s(original_max_position_embeddings=256)),
    "phi3-longrope": case("phi3", s(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, original_max_position_embeddings=32, rope_parameters=longrope(original_max_position_embeddings=32)), prompt_len=20),
    "gemma": case("gemma", s(**GEMMA)),
    # GGUF has no key for query_pre_attn_scalar: it is head_dim.
    "gemma2": case("gemma2", s(**{**GEMMA2, "query_pre_attn_scalar": 16}), prompt_len=32),
    # Seven layers, so that the sixth is a global one with its own base frequency.
    "gemma3": case("gemma3_text", s(**{**GEMMA2, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}), prompt_len=32),
    "gemma4": case("gemma4_text", s(**{**SMALL4, "num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}), prompt_len=32),
    "gemma4-shared": case("gemma4_text", s(**{**SMALL4, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "layer_types": ["sliding_attention", "full_attention"] * 2}), prompt_len=32),
    "gemma4-same": case("gemma4_text", s(**{**SMALL4, "num_hidden_layers": 3, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}), prompt_len=32),
    "apertus": case("apertus", s()),
    "cohere": case("cohere", s(use_qk_norm=True, attention_bias=True, logit_scale=0.3)),
    # The keys that the converter asks for are those of the files on the hub.
    "cohere2": case("cohere2", s(num_hidden_layers=4, sliding_window=10), prompt_len=32, edit=dict(rotary_pct=1.0)),
    "ernie4-5": case("ernie4_5", s(head_dim=16, use_bias=True)),
    "exaone4": case("exaone4", s(num_hidden_layers=4, sliding_window=10, rope_parameters=LLAMA3), prompt_len=32),
    "exaone4-no-window": case("exaone4", s(sliding_window=None, layer_types=["full_attention"] * 2, tie_word_embeddings=True)),
    # The converter has no keys for the norm's epsilon and for heads of their own width.
    "glm": case("glm", s(head_dim=8, rms_norm_eps=1e-5), edit=dict(seq_length=256)),
    "glm4": case("glm4", s(head_dim=16)),
    "gpt-bigcode": case("gpt_bigcode", dict(GPT2, n_positions=48)),
    "gpt-neox": case("gpt_neox", NEOX),
    "gpt-neox-sequential": case("gpt_neox", {**NEOX, "use_parallel_residual": False}),
    "granite": case("granite", s(embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2)),
    "granite-biases": case("granite", s(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, logits_scaling=2.0)),
    # The converter takes no other base and length for a stretched rope.
    "hunyuan-dense": case("hunyuan_v1_dense", s(head_dim=16, max_position_embeddings=32768, attention_bias=True, tie_word_embeddings=True, rope_parameters=rope("dynamic", factor=1.0, alpha=100.0))),
    "internlm3": case("internlm3", s(head_dim=8, attention_bias=True, mlp_bias=True)),
    "ministral3": case("ministral3", s(head_dim=16, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.3, mscale=1.0, mscale_all_dim=1.0)), prompt_len=40),
    "nemotron": case("nemotron", s(head_dim=8, attention_bias=True, mlp_bias=True)),
    "olmo": case("olmo", s(clip_qkv=0.5, tie_word_embeddings=True)),
    "olmo2": case("olmo2", s()),
    "olmo3": case("olmo3", s(num_hidden_layers=4, sliding_window=10, rope_parameters=dict(full_attention=rope("yarn", rope_theta=5e5, factor=4.0, original_max_position_embeddings=64), sliding_attention=rope("default", rope_theta=5e5)))),
    "phi": case("phi", s(num_attention_heads=2, num_key_value_heads=2, intermediate_size=128, num_hidden_layers=1)),
    "seed-oss": case("seed_oss", s(head_dim=8)),
    "seed-oss-biases": case("seed_oss", s(num_hidden_layers=1, head_dim=16, attention_out_bias=True, mlp_bias=True)),
    "smollm3": case("smollm3", s(num_hidden_layers=4, attention_bias=True)),
    "stablelm": case("stablelm", s(num_attention_heads=2, use_qkv_bias=True)),
    "stablelm-parallel": case("stablelm", s(qk_layernorm=True, use_parallel_residual=True, rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "starcoder2": case("starcoder2", s()),
    "mixtral": case("mixtral", s(**LOCAL, sliding_window=None), prompt_len=16),
    "qwen2-moe": case("qwen2_moe", s(**EXPERTS, shared_expert_intermediate_size=64), prompt_len=16),
    "qwen3-moe": case("qwen3_moe", s(**EXPERTS, head_dim=16, norm_topk_prob=True), prompt_len=16),
    "olmoe": case("olmoe", s(num_experts=4, num_experts_per_tok=3, num_hidden_layers=1), prompt_len=16),
    "granitemoe": case("granitemoe", s(**LOCAL, embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2), prompt_len=16),
    "granitemoe-shared": case("granitemoehybrid", s(**LOCAL, layer_types=["attention"] * 2, shared_intermediate_size=64, position_embedding_type="rope", logits_scaling=3.0, mamba_n_heads=4, mamba_d_head=16), prompt_len=16),
    "gpt-oss": case("gpt_oss", s(**LOCAL, head_dim=8, sliding_window=8, rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=4, beta_slow=1, truncate=False)), prompt_len=32),
    "deepseek-v2": case("deepseek_v2", s(**MLA, q_lora_rank=None, n_shared_experts=2, topk_method="greedy", rope_parameters=YARN), prompt_len=16),
    "deepseek-v2-groups": case("deepseek_v2", s(**MLA, q_lora_rank=32, n_shared_experts=1, topk_method="group_limited_greedy", n_group=2, topk_group=1, routed_scaling_factor=2.0), prompt_len=16),
    "deepseek-v3": case("deepseek_v3", s(**MLA, q_lora_rank=32, n_shared_experts=1, n_group=2, topk_group=1, routed_scaling_factor=1.7), tensors=corrected, edit=dict(scoring_func="sigmoid"), prompt_len=16),
    "glm4-moe": case("glm4_moe", s(**ROUTED, head_dim=16, n_group=1, topk_group=1, n_shared_experts=1, use_qk_norm=True, attention_bias=True, routed_scaling_factor=1.5), tensors=with_next, edit=dict(num_nextn_predict_layers=1), prompt_len=16),
    "dots1": case("dots1", s(**ROUTED, n_shared_experts=2, norm_topk_prob=True, sliding_window=None, routed_scaling_factor=2.5), tensors=corrected, edit=dict(scoring_func="sigmoid"), prompt_len=16),
    "ernie4-5-moe": case("ernie4_5_moe", s(moe_num_experts=4, moe_k=2, moe_intermediate_size=32, moe_num_shared_experts=2, moe_layer_start_index=1, use_bias=False), tensors=corrected, prompt_len=16),
    "minimax-m2": case("minimax_m2", s(**LOCAL, head_dim=16, rope_parameters=rope("default", rope_theta=5e6, partial_rotary_factor=0.5)), tensors=corrected, edit=dict(rotary_dim=8, scoring_func="sigmoid"), prompt_len=16),
    "lfm2": case("lfm2", s(**THREE, block_auto_adjust_ff_dim=False, tie_word_embeddings=True), prompt_len=16),
    "lfm2-moe": case("lfm2_moe", s(**THREE, num_dense_layers=1, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32), tensors=expert_biased, prompt_len=16),
    "qwen3-next": case("qwen3_next", s(**GDN, **SHARED), prompt_len=16),
    "qwen3-5": case("qwen3_5_text", s(**GDN, rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)), prompt_len=16),
    "qwen3-5-moe": case("qwen3_5_moe_text", s(**{**GDN, "linear_num_key_heads": 4}, **SHARED), prompt_len=16),
    "granite-hybrid": case("granitemoehybrid", s(**HYBRID, **LOCAL, shared_intermediate_size=64, embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2), prompt_len=16),
    "granite-hybrid-dense": case("granitemoehybrid", s(**HYBRID, num_local_experts=0, intermediate_size=64, shared_intermediate_size=64, tie_word_embeddings=True), prompt_len=16),
    "nemotron-h": case("nemotron_h", NEMOTRON_H, prompt_len=16),
    "falcon-h1": case("falcon_h1", s(**FALCON, **FALCON_FACTORS), prompt_len=16),
    "falcon-h1-norm": case("falcon_h1", s(**FALCON, mamba_rms_norm=True, mamba_norm_before_gate=False), prompt_len=16),
    "mamba2": case("mamba2", dict(**MAMBA, state_size=16, head_dim=16, num_heads=4, n_groups=2, chunk_size=8), prompt_len=16),
    "mamba": case("mamba", dict(**MAMBA, state_size=8), prompt_len=16),
    "falcon-mamba": case("falcon_mamba", dict(**MAMBA, state_size=8), prompt_len=16),
    # Four layers, so that one has no rope; the converter knows chunks of 8192 only.
    "llama4": case("llama4_text", s(num_hidden_layers=4, head_dim=8, intermediate_size=32, intermediate_size_mlp=64, num_local_experts=4, interleave_moe_layer_step=2, rope_parameters=LLAMA3), prompt_len=16),
    "gemma4-moe": case("gemma4_text", s(**GEMMA4_MOE), prompt_len=32),
    "nemotron-h-moe": case("nemotron_h", dict(NEMOTRON_MOE, moe_latent_size=64), tensors=corrected, prompt_len=16),
    "nemotron-h-moe-groups": case("nemotron_h", dict(NEMOTRON_MOE, n_group=2, topk_group=1, norm_topk_prob=False), tensors=corrected, prompt_len=16),
    "phimoe": case("phimoe", s(**LOCAL, attention_bias=True, lm_head_bias=True, sliding_window=12), edit=dict(original_max_position_embeddings=256), prompt_len=32),
    "phimoe-longrope": case("phimoe", s(**LOCAL, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, rope_parameters=longrope(original_max_position_embeddings=32, short_mscale=MSCALE, long_mscale=MSCALE)), prompt_len=20),
    # The converter's is the one with SiLU.
    "bitnet": case("bitnet", s(hidden_act="silu", tie_word_embeddings=True)),
    "jamba": case("jamba", s(**JAMBA, num_experts=4), prompt_len=16),
    "jamba-dense": case("jamba", s(**JAMBA, num_experts=1, num_experts_per_tok=1), prompt_len=16),
    "kimi-linear": case("kimi_linear", s(**KIMI, num_local_experts=4, num_experts_per_tok=2), tensors=corrected, prompt_len=16),
}

# Their types; those that are not here have q8_0.
TYPES = {
    **dict.fromkeys(list(CASES)[list(CASES).index("mixtral"):], "q4_0"), "olmoe": "q5_1", "ernie4-5-moe": "q5_0",
    # The quantizer knows the lite models by their 26 or 27 layers.
    "gpt-oss": "mxfp4_moe", "deepseek-v2": "f16", "dots1": "q4_1", "falcon-h1": "q8_0", "bitnet": "q8_0",
}

# base, the type of the matrices, and what `llama-quantize --tensor-type` gives to single ones.
GGUF_CASES = {
    "gguf-llama-f32": dict(base="llama", type="f32"),
    "gguf-llama-f16": dict(base="llama", type="f16"),
    "gguf-llama-bf16": dict(base="llama", type="bf16"),
    "gguf-llama-q4_0": dict(base="llama", type="q4_0"),
    "gguf-llama-q4_1": dict(base="llama", type="q4_1"),
    "gguf-llama-q5_0": dict(base="llama", type="q5_0"),
    "gguf-llama-q5_1": dict(base="llama", type="q5_1"),
    "gguf-llama-q8_0": dict(base="llama", type="q8_0"),
    "gguf-llama-k-quants": dict(base="llama-wide", type="q4_k", tensor_types=["attn_q=q5_k", "attn_k=q6_k", "attn_v=q4_k", "attn_output=q8_0", "ffn_up=q5_k", "ffn_down=q6_k", "token_embd=q6_k"]),
    "gguf-llama-mixed": dict(base="llama", type="q4_0", tensor_types=["attn_v=q8_0", "ffn_down=f16", "token_embd=q5_1", "blk.1.ffn_up=f32"]),
    "gguf-llama-biases": dict(base="llama-biases", type="q8_0"),
    "gguf-llama-rope-llama3": dict(base="llama-rope-llama3", type="q8_0"),
    "gguf-llama-rope-linear": dict(base="llama-rope-linear", type="q4_1"),
    "gguf-llama-rope-yarn": dict(base="llama-rope-yarn", type="q8_0"),
    "gguf-mistral": dict(base="mistral", type="q4_0"),
    "gguf-qwen2": dict(base="qwen2", type="q8_0"),
    "gguf-qwen3": dict(base="qwen3", type="q4_1"),
    "gguf-gpt2": dict(base="gpt2", type="q8_0"),
    "gguf-phi3": dict(base="phi3", type="q8_0"),
    "gguf-phi3-longrope": dict(base="phi3-longrope", type="q4_0"),
    "gguf-gemma": dict(base="gemma", type="q8_0"),
    "gguf-gemma2": dict(base="gemma2", type="q8_0"),
    "gguf-gemma3": dict(base="gemma3", type="q4_0"),
    **{f"gguf-{name}": dict(base=name, type=TYPES.get(name, "q8_0")) for name in list(CASES)[list(CASES).index("gemma4"):]},
    # Its base is that of make_rwkv7_golden.py.
    "gguf-rwkv7": dict(base="base-rwkv7", type="q4_0"),
}
