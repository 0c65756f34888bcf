"""Gemma 4, and checkpoints whose text part stands beside others (make_golden.py)."""
from variants import S, s, case, rope

G4 = dict(num_hidden_layers=6, head_dim=16, global_head_dim=32, sliding_window=10, vocab_size_per_layer_input=96, hidden_size_per_layer_input=8, final_logit_softcapping=30.0)
G4_MOE = {**G4, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "enable_moe_block": True, "head_dim": 8, "global_head_dim": 16, "num_experts": 5, "top_k_experts": 3, "moe_intermediate_size": 16, "tie_word_embeddings": False}
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)

G3N = dict(num_hidden_layers=4, head_dim=16, sliding_window=10, vocab_size_per_layer_input=96, hidden_size_per_layer_input=8, laurel_rank=8, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.5, 0.0, 0.3, 0.0])

CASES = {
    "gemma3n": case("gemma3n_text", s(**G3N), prompt_len=32),
    "gemma3n-three": case("gemma3n_text", s(**{**G3N, "num_kv_shared_layers": 0, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.8], "altup_num_inputs": 3, "altup_active_idx": 1, "altup_correct_scale": False, "intermediate_size": [32, 48], "final_logit_softcapping": 5.0}), prompt_len=24),
    "gemma4": case("gemma4_text", s(**G4), prompt_len=32),
    "gemma4-shared": case("gemma4_text", s(**{**G4, "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "layer_types": ["sliding_attention", "full_attention"] * 3}), prompt_len=32),
    "gemma4-same": case("gemma4_text", s(**{**G4, "num_hidden_layers": 3, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}), prompt_len=32),
    "gemma4-moe": case("gemma4_text", s(**G4_MOE), prompt_len=32),
    # For MLX: the router in groups of 64, the rest of 32.
    "base-gemma4-moe": case("gemma4_text", {**s(**{**G4_MOE, "num_hidden_layers": 1, "layer_types": ["full_attention"], "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}), "hidden_size": 64}, prompt_len=32, edit=dict(global_head_dim=16, num_global_key_value_heads=1)),
    "composite-gemma3": dict(model_type="gemma3", config=dict(text_config=s(num_hidden_layers=2, head_dim=16, sliding_window=12, query_pre_attn_scalar=24), vision_config=VISION, mm_tokens_per_image=4), prompt_len=24, dtype="bfloat16"),
    "composite-mistral3": dict(model_type="mistral3", config=dict(text_config=dict(model_type="ministral3", **s(head_dim=16, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.3))), vision_config=dict(model_type="pixtral", **VISION)), prompt_len=24, dtype="bfloat16"),
}

MLX_CASES = {"mlx-gemma4-moe-4bit-g32": dict(base="base-gemma4-moe", bits=4, group_size=32)}
