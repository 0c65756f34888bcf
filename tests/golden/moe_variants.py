"""Mixtures of experts and latent attention (make_golden.py; make_mlx_golden.py for what mlx-lm stacks and quantizes)."""
from variants import case, longrope, rope, s


def corrected(t):
    """Corrections of the choice, which a new model has as zeros."""
    import torch
    g = torch.Generator().manual_seed(5)
    return {k: 0.3 * torch.randn(v.shape, generator=g) if k.endswith("e_score_correction_bias") else v for k, v in t.items()}

def expert_biased(t):
    return {k.replace("e_score_correction_bias", "expert_bias"): v for k, v in corrected({k.replace("expert_bias", "e_score_correction_bias"): v for k, v in t.items()}).items()}

def stacked(t):
    """Experts as transformers 5 has them in memory: one stack for gates and what they open, one for the way down."""
    import re, torch
    out, experts = {}, {}
    for k, v in t.items():
        m = re.match(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", k)
        if m:
            experts.setdefault(m[1], {})[int(m[2]), m[3]] = v
        else:
            out[k] = v
    for p, e in experts.items():
        n = 1 + max(i for i, _ in e)
        out[f"{p}.gate_up_proj"] = torch.stack([torch.cat([e[i, "gate"], e[i, "up"]]) for i in range(n)])
        out[f"{p}.down_proj"] = torch.stack([e[i, "down"] for i in range(n)])
    return out

def as_mxfp4(t):
    """gpt-oss as on the hub: experts in groups of 32 of E2M1, `[experts, out, in / 32, 16]` bytes, and E8M0 scales."""
    import torch
    lut = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
    out = {}
    for k, v in t.items():
        if not k.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[k] = v
            continue
        groups = v.float().transpose(1, 2).unflatten(-1, (-1, 32))
        e = (groups.abs().amax(-1) / 6).log2().ceil().clamp(-100, 100)
        q = (groups.unsqueeze(-1) / 2 ** e[..., None, None] - lut).abs().argmin(-1).to(torch.uint8).unflatten(-1, (16, 2))
        out[k + "_blocks"], out[k + "_scales"] = q[..., 0] | q[..., 1] << 4, (e + 127).to(torch.uint8)
    return out

TWO = dict(num_hidden_layers=2)
MOE = dict(TWO, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
LOCAL = dict(TWO, num_local_experts=4, num_experts_per_tok=2)
MLA = dict(num_hidden_layers=3, num_key_value_heads=4, kv_lora_rank=12, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16)
YARN = rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.0, beta_fast=4, beta_slow=1)
ROUTED = dict(TWO, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16, first_k_dense_replace=1)
GPT_OSS = dict(LOCAL, head_dim=16, sliding_window=8, swiglu_limit=1.5, attention_bias=False, tie_word_embeddings=True, layer_types=["full_attention", "sliding_attention"])
LLAMA4 = dict(num_hidden_layers=4, head_dim=16, intermediate_size=16, intermediate_size_mlp=40, num_local_experts=4, attention_chunk_size=16, rope_parameters=rope("default", rope_theta=5e5))

CASES = {
    "mixtral-window": case("mixtral", s(**{**LOCAL, "num_experts_per_tok": 3}, head_dim=12, sliding_window=10), prompt_len=32),
    "mixtral-defaults": case("mixtral", s(**{**LOCAL, "num_local_experts": 8}, num_attention_heads=8, num_key_value_heads=8), legacy_config=True, drop=["num_local_experts", "num_experts_per_tok", "num_key_value_heads", "rope_parameters", "head_dim", "rms_norm_eps"], edit=dict(rope_theta=1e6)),
    "qwen2-moe": case("qwen2_moe", s(**{**MOE, "num_hidden_layers": 3}, shared_expert_intermediate_size=40, decoder_sparse_step=2, norm_topk_prob=True)),
    "qwen2-moe-window": case("qwen2_moe", s(**{**MOE, "num_hidden_layers": 3}, shared_expert_intermediate_size=16, mlp_only_layers=[0], qkv_bias=False, use_sliding_window=True, sliding_window=9, max_window_layers=2), prompt_len=32, drop=["layer_types"]),
    "qwen3-moe-stacked": case("qwen3_moe", s(**{**MOE, "num_experts_per_tok": 3}, attention_bias=True, norm_topk_prob=True, mlp_only_layers=[1], tie_word_embeddings=True), tensors=stacked),
    "qwen3-moe-window": case("qwen3_moe", s(**MOE, head_dim=24, use_sliding_window=True, sliding_window=11), dtype="float16", prompt_len=32, legacy_config=True),
    "olmoe": case("olmoe", s(**TWO, num_experts=6, num_experts_per_tok=3)),
    "olmoe-normed": case("olmoe", s(**TWO, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, attention_bias=True, num_key_value_heads=4, tie_word_embeddings=True), tensors=stacked),
    "phimoe": case("phimoe", s(**LOCAL, attention_bias=True, lm_head_bias=True, router_jitter_noise=0.1, sliding_window=12), prompt_len=32),
    "phimoe-longrope": case("phimoe", s(**LOCAL, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, rope_parameters=longrope(original_max_position_embeddings=32, short_mscale=1.2, long_mscale=1.2)), prompt_len=20),
    "granitemoe": case("granitemoe", s(**{**LOCAL, "num_experts_per_tok": 3}, embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2, tie_word_embeddings=True)),
    "gpt-oss-limit": case("gpt_oss", s(**GPT_OSS), prompt_len=32, seed="gpt-oss-limit"),
    "gpt-oss-no-rope-keys": case("gpt_oss", s(**GPT_OSS), prompt_len=32, seed="gpt-oss-limit", drop=["rope_parameters"]),
    "gpt-oss-mxfp4": case("gpt_oss", s(**LOCAL, head_dim=16, sliding_window=8), tensors=as_mxfp4, edit=dict(quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]))),
    "deepseek-v3-groups": case("deepseek_v3", s(**MLA, q_lora_rank=20, n_group=4, topk_group=2, n_shared_experts=2, first_k_dense_replace=1, rope_parameters=YARN, attention_bias=True), tensors=corrected),
    "deepseek-v3-halves": case("deepseek_v3", s(**MLA, q_lora_rank=None, n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=2, rope_interleave=False, norm_topk_prob=False, routed_scaling_factor=1.7, tie_word_embeddings=True), tensors=corrected, legacy_config=True, edit=dict(num_nextn_predict_layers=1)),
    "deepseek-v3-stacked": case("deepseek_v3", s(**{**MLA, "num_hidden_layers": 2}, q_lora_rank=20, n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=0), tensors=stacked),
    "kimi-k2": case("deepseek_v3", s(**{**MLA, "num_hidden_layers": 2}, q_lora_rank=20, n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=1), tensors=corrected, afterwards=dict(model_type="kimi_k2")),
    "deepseek-v2": case("deepseek_v2", s(**MLA, q_lora_rank=20, n_shared_experts=2, first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=2.0, rope_parameters=YARN)),
    "deepseek-v2-greedy": case("deepseek_v2", s(**{**MLA, "num_hidden_layers": 2}, q_lora_rank=None, n_shared_experts=1, mlp_bias=False, attention_bias=True), legacy_config=True),
    "glm4-moe": case("glm4_moe", s(**ROUTED, head_dim=16, n_group=2, topk_group=1, use_qk_norm=True, attention_bias=True, routed_scaling_factor=1.5), tensors=corrected),
    "glm4-moe-legacy": case("glm4_moe", s(**ROUTED, norm_topk_prob=False, n_shared_experts=2), tensors=corrected, legacy_config=True, edit=dict(partial_rotary_factor=0.5)),
    "glm4-moe-lite": case("glm4_moe_lite", s(**MLA, q_lora_rank=20, mlp_layer_types=["sparse", "dense", "sparse"]), tensors=corrected),
    "dots1": case("dots1", s(**{**ROUTED, "num_hidden_layers": 3}, n_shared_experts=2, norm_topk_prob=True, sliding_window=10, max_window_layers=1, routed_scaling_factor=2.5), tensors=corrected, prompt_len=32, drop=["layer_types"]),
    "ernie4-5-moe": case("ernie4_5_moe", s(num_hidden_layers=4, moe_num_experts=6, moe_k=3, moe_intermediate_size=16, moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=2, use_bias=True), tensors=corrected),
    "ernie4-5-moe-plain": case("ernie4_5_moe", s(**TWO, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=0, moe_layer_start_index=0, moe_layer_interval=2, tie_word_embeddings=False), tensors=corrected, legacy_config=True),
    "minimax-m2": case("minimax_m2", s(**LOCAL, head_dim=16, rope_parameters=rope("default", rope_theta=5e6, partial_rotary_factor=0.5)), tensors=corrected),
    "minimax-m2-legacy": case("minimax_m2", s(**LOCAL, head_dim=16, rope_parameters=rope("default", rope_theta=5e6, partial_rotary_factor=0.75)), tensors=corrected, legacy_config=True, edit=dict(rotary_dim=12, rope_theta=5e6, use_qk_norm=True)),
    "llama4": case("llama4_text", s(**LLAMA4, interleave_moe_layer_step=2), prompt_len=40),
    "llama4-two": case("llama4_text", s(**{**LLAMA4, "num_hidden_layers": 3, "attention_chunk_size": 7}, num_experts_per_tok=2, use_qk_norm=False, no_rope_layers=[1, 0, 1], floor_scale=8, attn_scale=0.3, attention_bias=True), prompt_len=32, drop=["layer_types"]),
    "lfm2-moe": case("lfm2_moe", s(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], num_dense_layers=1, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16, routed_scaling_factor=1.5), tensors=expert_biased),
    # For MLX: rows of whole groups.
    "base-qwen3-moe": case("qwen3_moe", {**s(**{**MOE, "moe_intermediate_size": 32}, head_dim=16), "hidden_size": 64, "intermediate_size": 64}, legacy_config=True, edit=dict(num_experts=6, rope_theta=1e4), drop=["num_local_experts"]),
}

MLX_CASES = {
    "mlx-qwen3-moe-4bit-g32": dict(base="base-qwen3-moe", bits=4, group_size=32),
    "mlx-qwen3-moe-mxfp4": dict(base="base-qwen3-moe", mode="mxfp4"),
}
