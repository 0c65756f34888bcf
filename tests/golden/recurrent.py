"""Layers with a state: state spaces, gated delta rule, short convolutions, and hybrids with attention (make_golden.py)."""
from variants import S, s, case, rope

MAMBA = dict(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=96)
MAMBA2 = dict(hidden_size=32, num_hidden_layers=2, state_size=8, head_dim=8, num_heads=8, n_groups=2, vocab_size=96, chunk_size=8)
GDN = dict(num_hidden_layers=4, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=12)
GRANITE = dict(num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=2, num_local_experts=0, shared_intermediate_size=32)
JAMBA = dict(num_hidden_layers=3, attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4)
FALCON_H1 = dict(num_hidden_layers=2, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=8)
NEMOTRON_H = dict(hidden_size=32, intermediate_size=48, vocab_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16, ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=8, n_groups=2, chunk_size=8, max_position_embeddings=256)
GRIFFIN = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, intermediate_size=64, vocab_size=96, attention_window_size=12)

def as_mlx_lm_writes_it(t):
    """Convolutions with the taps before the channel; norms with the 1 added."""
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")
    t = {k: v.transpose(1, 2).contiguous() if "conv1d.weight" in k else v for k, v in t.items()}
    return {k: v + 1.0 if k.endswith(norms) else v for k, v in t.items()}

CASES = {
    "mamba-biases": case("mamba", dict(**MAMBA, use_bias=True, use_conv_bias=False, conv_kernel=3, time_step_rank=5, tie_word_embeddings=False), legacy_config=True),
    "falcon-mamba": case("falcon_mamba", dict(**MAMBA, mixer_rms_eps=1e-3)),
    "mamba2-groups": case("mamba2", dict(**MAMBA2, use_bias=True, time_step_limit=(0.02, 0.2), tie_word_embeddings=True)),
    "lfm2-adjusted": case("lfm2", s(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], conv_bias=True, conv_L_cache=4, intermediate_size=60, block_multiple_of=16, block_ffn_dim_multiplier=1.3), edit=dict(full_attn_idxs=[1]), drop=["layer_types"]),
    "granite-hybrid-dense": case("granitemoehybrid", s(**GRANITE, embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2, tie_word_embeddings=True)),
    "granite-hybrid-rope": case("granitemoehybrid", s(**{**GRANITE, "mamba_n_groups": 1, "position_embedding_type": "rope", "attention_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False})),
    "qwen3-next-dense": case("qwen3_next", s(**GDN, num_experts=0, mlp_only_layers=[0, 1, 2, 3], attention_bias=True)),
    "qwen3-5": case("qwen3_5_text", s(**{**GDN, "linear_num_key_heads": 4}, rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5))),
    "jamba-dense": case("jamba", s(**JAMBA, num_experts=1)),
    "falcon-h1": case("falcon_h1", s(**FALCON_H1, embedding_multiplier=3.0, lm_head_multiplier=0.7, mlp_multipliers=[0.8, 1.3], key_multiplier=0.6, attention_out_multiplier=1.2, attention_in_multiplier=0.9, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7], ssm_in_multiplier=1.1, ssm_out_multiplier=0.6)),
    "falcon-h1-norm": case("falcon_h1", s(**FALCON_H1, mamba_rms_norm=True, mamba_norm_before_gate=False, tie_word_embeddings=True)),
    "falcon-h1-norm-first": case("falcon_h1", s(**{**FALCON_H1, "num_hidden_layers": 1}, mamba_rms_norm=True, attention_bias=True, mlp_bias=True, projectors_bias=True)),
    "nemotron-h": case("nemotron_h", dict(**NEMOTRON_H, layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention"])),
    "recurrent-gemma": case("recurrent_gemma", GRIFFIN, prompt_len=32),
}
