"""Layers with a state: state spaces, gated delta rule, short convolutions, and hybrids with attention (make_golden.py).

`python3 recurrent.py` then copies some with parameters as mlx-lm stores them: taps before the channel, norms with the 1 added.
"""
from moe_variants import corrected
from variants import S, s, case, rope


def bare(t):
    """Experts as transformers 5 has them in memory: a stack for the way up, one for the way down."""
    import torch
    def of(k): return [v for n, v in sorted(t.items()) if n.rsplit(".experts.", 1)[0] == k[0] and n.endswith(f".{k[1]}.weight") and ".experts." in n]
    stacks = {(k.rsplit(".experts.", 1)[0], part) for k in t if ".experts." in k for part in ("up_proj", "down_proj")}
    return {**{k: v for k, v in corrected(t).items() if ".experts." not in k}, **{f"{k[0]}.experts.{k[1]}": torch.stack(of(k)) for k in stacks}}


MAMBA = dict(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=96)
MAMBA2 = dict(hidden_size=32, num_hidden_layers=2, state_size=8, head_dim=8, num_heads=8, n_groups=2, vocab_size=96, chunk_size=8)
GDN = dict(num_hidden_layers=4, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=12)
GRANITE = dict(num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=2, num_local_experts=0, shared_intermediate_size=32)
JAMBA = dict(num_hidden_layers=3, attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4)
FALCON_H1 = dict(num_hidden_layers=2, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=8)
FALCON_H1_FACTORS = dict(embedding_multiplier=3.0, lm_head_multiplier=0.7, mlp_multipliers=[0.8, 1.3], key_multiplier=0.6, attention_out_multiplier=1.2, attention_in_multiplier=0.9, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7], ssm_in_multiplier=1.1, ssm_out_multiplier=0.6)
NEMOTRON_H = dict(hidden_size=32, intermediate_size=48, vocab_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16, ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=8, n_groups=2, chunk_size=8, max_position_embeddings=256)
NEMOTRON_MOE = dict(NEMOTRON_H, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, moe_shared_expert_intermediate_size=24)
MINIMAX = s(num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], num_local_experts=4, head_dim=12, block_size=8, full_attn_alpha_factor=0.9, full_attn_beta_factor=1.1, linear_attn_alpha_factor=0.8, linear_attn_beta_factor=1.2, mlp_alpha_factor=0.7, mlp_beta_factor=1.3)
GRIFFIN = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, intermediate_size=64, vocab_size=96, attention_window_size=12)

QWEN_MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24)
KIMI = dict(num_hidden_layers=3, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12, linear_head_dim=16, linear_num_heads=3, linear_conv_kernel_dim=3, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, layer_types=["linear_attention", "full_attention", "linear_attention"], mlp_layer_types=["dense", "sparse", "sparse"])

CASES = {
    "mamba": case("mamba", MAMBA),
    "mamba2": case("mamba2", {**MAMBA2, "n_groups": 1}),
    "lfm2": case("lfm2", s(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False)),
    "granite-hybrid": case("granitemoehybrid", s(**{**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2}, position_embedding_type="rope")),
    "qwen3-next": case("qwen3_next", s(**GDN, **QWEN_MOE), legacy_config=True),
    "qwen3-5-moe": case("qwen3_5_moe_text", s(**{**GDN, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}, **QWEN_MOE)),
    "jamba": case("jamba", s(**JAMBA, num_experts=4)),
    # Decays are stored: in float32, so that they are what the formula gives.
    "minimax": case("minimax", MINIMAX, seed="minimax", dtype="float32"),
    "minimax-epsilon": case("minimax", {**MINIMAX, "rms_norm_eps": 0.05}, seed="minimax", dtype="float32"),
    "kimi-linear": case("kimi_linear", s(**KIMI)),
    "mamba-biases": case("mamba", dict(**MAMBA, use_bias=True, use_conv_bias=False, conv_kernel=3, time_step_rank=5, tie_word_embeddings=False), legacy_config=True),
    "falcon-mamba": case("falcon_mamba", dict(**MAMBA, mixer_rms_eps=1e-3)),
    "mamba2-groups": case("mamba2", dict(**MAMBA2, use_bias=True, time_step_limit=(0.02, 0.2), tie_word_embeddings=True)),
    "lfm2-adjusted": case("lfm2", s(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], conv_bias=True, conv_L_cache=4, intermediate_size=60, block_multiple_of=16, block_ffn_dim_multiplier=1.3), edit=dict(full_attn_idxs=[1]), drop=["layer_types"]),
    "granite-hybrid-dense": case("granitemoehybrid", s(**GRANITE, embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2, tie_word_embeddings=True)),
    "granite-hybrid-rope": case("granitemoehybrid", s(**{**GRANITE, "mamba_n_groups": 1, "position_embedding_type": "rope", "attention_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False})),
    "qwen3-next-dense": case("qwen3_next", s(**GDN, num_experts=0, mlp_only_layers=[0, 1, 2, 3], attention_bias=True)),
    "qwen3-5": case("qwen3_5_text", s(**{**GDN, "linear_num_key_heads": 4}, rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5))),
    "jamba-dense": case("jamba", s(**JAMBA, num_experts=1)),
    "falcon-h1": case("falcon_h1", s(**FALCON_H1, **FALCON_H1_FACTORS)),
    "falcon-h1-norm": case("falcon_h1", s(**FALCON_H1, mamba_rms_norm=True, mamba_norm_before_gate=False, tie_word_embeddings=True)),
    "falcon-h1-norm-first": case("falcon_h1", s(**{**FALCON_H1, "num_hidden_layers": 1}, mamba_rms_norm=True, attention_bias=True, mlp_bias=True, projectors_bias=True)),
    "nemotron-h": case("nemotron_h", dict(**NEMOTRON_H, layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention"])),
    # Layers, without a list: Mamba-2, experts, attention, a feed-forward layer.
    "nemotron-h-moe": case("nemotron_h", dict(NEMOTRON_MOE, n_group=3, topk_group=2, routed_scaling_factor=2.5), tensors=bare, drop=["layers_block_type", "layer_types", "num_hidden_layers"]),
    "nemotron-h-latent": case("nemotron_h", dict(NEMOTRON_MOE, moe_latent_size=24, mlp_bias=True, norm_topk_prob=False, mlp_hidden_act="silu", layers_block_type=["moe", "linear_attention"]), tensors=corrected, edit=dict(hybrid_override_pattern="EM"), drop=["layers_block_type", "layer_types"]),
    "base-falcon-h1": case("falcon_h1", s(**{**FALCON_H1, "num_hidden_layers": 1, "mamba_d_ssm": 64, "mamba_n_heads": 8}, **FALCON_H1_FACTORS, tie_word_embeddings=True), edit=dict(head_dim=8)),
    "base-nemotron-h": case("nemotron_h", dict({**NEMOTRON_MOE, "moe_intermediate_size": 32}, moe_latent_size=32, layers_block_type=["linear_attention", "moe", "full_attention"]), tensors=corrected),
    "recurrent-gemma": case("recurrent_gemma", GRIFFIN, prompt_len=32),
}

MLX_CASES = {
    "mlx-nemotron-h-4bit-g32": dict(base="base-nemotron-h", bits=4, group_size=32),
    "mlx-falcon-h1-4bit-g32": dict(base="base-falcon-h1", bits=4, group_size=32),
}


def as_mlx_lm_writes_it(name):
    """A copy of folder `name`; in float32, because 1 + w has more digits than bfloat16."""
    import shutil
    from safetensors.torch import load_file, save_file
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")
    shutil.copytree(name, f"mlx-layout-{name}", dirs_exist_ok=True)
    t = {k: v.float() for k, v in load_file(f"{name}/model.safetensors").items()}
    t = {k: v.transpose(1, 2).contiguous() if ".conv" in k and v.ndim == 3 else v for k, v in t.items()}
    if name.startswith("qwen"):
        t = {k: v + 1.0 if k.endswith(norms) else v for k, v in t.items()}
    save_file(t, f"mlx-layout-{name}/model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    for name in ["qwen3-5", "lfm2", "mamba2"]:
        as_mlx_lm_writes_it(name)
