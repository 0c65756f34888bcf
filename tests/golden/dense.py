"""Dense families and what varies in them (make_golden.py). Cases with the same seed share their weights."""
from variants import S, s, case, rope

NEOX = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=96, max_position_embeddings=256)
COHERE = dict(num_hidden_layers=2, bos_token_id=1, eos_token_id=2)
BIGCODE = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=96, bos_token_id=1, eos_token_id=2)

def with_masks(t):
    """gpt_neox as on the hub: the causal masks and frequencies among the tensors."""
    import torch
    for i in range(2):
        at = f"gpt_neox.layers.{i}.attention."
        t |= {at + "bias": torch.tril(torch.ones(1, 1, 8, 8, dtype=torch.bool)), at + "masked_bias": torch.tensor(-1e9), at + "rotary_emb.inv_freq": torch.ones(4)}
    return t

CASES = {
    "gpt-neox": case("gpt_neox", NEOX, seed="gpt-neox"),
    "gpt-neox-odd": case("gpt_neox", {**NEOX, "rope_parameters": rope("default", partial_rotary_factor=0.2)}, seed="gpt-neox"),
    "gpt-neox-sequential": case("gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}),
    "gpt-neox-legacy": case("gpt_neox", {**NEOX, "rope_parameters": rope("default", rope_theta=5000.0, partial_rotary_factor=0.5)}, drop=["rope_parameters", "attention_bias"], edit=dict(rotary_pct=0.5, rotary_emb_base=5000), tensors=with_masks),
    "phi": case("phi", s(num_hidden_layers=2, num_attention_heads=2)),
    "phi-head-norms": case("phi", s(num_attention_heads=2, qk_layernorm=True, rope_parameters=rope("linear", factor=2.0, partial_rotary_factor=0.25)), legacy_config=True),
    "stablelm": case("stablelm", s(num_hidden_layers=2, num_attention_heads=2, use_qkv_bias=True)),
    "stablelm-parallel": case("stablelm", s(num_attention_heads=4, qk_layernorm=True, use_parallel_residual=True, tie_word_embeddings=True, rope_parameters=rope("default", partial_rotary_factor=0.5)), legacy_config=True),
    "starcoder2": case("starcoder2", s(num_hidden_layers=2)),
    "starcoder2-window": case("starcoder2", s(use_bias=False, tie_word_embeddings=False, sliding_window=9), prompt_len=32),
    "cohere": case("cohere", s(**COHERE)),
    "cohere-head-norms": case("cohere", s(**COHERE, use_qk_norm=True, attention_bias=True, logit_scale=0.3, tie_word_embeddings=False)),
    "cohere2": case("cohere2", s(num_hidden_layers=4, sliding_window=10), prompt_len=32),
    "cohere2-pattern": case("cohere2", s(num_hidden_layers=3, sliding_window=10, layer_types=["sliding_attention", "full_attention", "sliding_attention"]), prompt_len=32, drop=["layer_types"], edit=dict(sliding_window_pattern=2), legacy_config=True),
    "granite": case("granite", s(embedding_multiplier=4.0, logits_scaling=3.0, residual_multiplier=0.4, attention_multiplier=0.2)),
    "granite-biases": case("granite", s(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "olmo": case("olmo", s(num_hidden_layers=2, num_key_value_heads=4)),
    "olmo-clipped": case("olmo", s(clip_qkv=0.5, attention_bias=True, tie_word_embeddings=True)),
    "olmo2": case("olmo2", s(num_hidden_layers=2)),
    "olmo2-biases": case("olmo2", s(attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3)),
    "olmo3": case("olmo3", s(num_hidden_layers=4, sliding_window=10, rope_parameters=dict(full_attention=rope("yarn", rope_theta=5e5, factor=4.0, original_max_position_embeddings=64), sliding_attention=rope("default", rope_theta=5e5)))),
    "olmo3-legacy": case("olmo3", s(num_hidden_layers=4, sliding_window=10, rope_parameters=dict(full_attention=rope("linear", rope_theta=5e5, factor=4.0), sliding_attention=rope("default", rope_theta=5e5))), prompt_len=32, drop=["rope_parameters", "layer_types"], edit=dict(rope_theta=5e5, rope_scaling=dict(rope_type="linear", factor=4.0))),
    "smollm3": case("smollm3", s(num_hidden_layers=4)),
    "smollm3-window": case("smollm3", s(num_hidden_layers=3, use_sliding_window=True, sliding_window=9, no_rope_layer_interval=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), prompt_len=32, drop=["layer_types", "no_rope_layers"]),
    "bitnet": case("bitnet", s(num_hidden_layers=2, tie_word_embeddings=True, attention_bias=True, rms_norm_eps=1e-3), legacy_config=True),
    "glm": case("glm", s(num_hidden_layers=2, head_dim=16)),
    "glm-no-bias": case("glm", s(head_dim=8, attention_bias=False, tie_word_embeddings=True, rope_parameters=rope("default", partial_rotary_factor=0.25)), legacy_config=True),
    "glm4": case("glm4", s(num_hidden_layers=2, head_dim=16)),
    "helium": case("helium", s(num_hidden_layers=2, head_dim=8)),
    "helium-biases": case("helium", s(head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "exaone4": case("exaone4", s(num_hidden_layers=4, sliding_window=10, head_dim=16), prompt_len=32),
    "exaone4-no-window": case("exaone4", s(num_hidden_layers=2, sliding_window=None, layer_types=["full_attention"] * 2, tie_word_embeddings=True)),
    "nemotron": case("nemotron", s(num_hidden_layers=2, head_dim=8)),
    "nemotron-biases": case("nemotron", s(head_dim=16, attention_bias=True, mlp_bias=True)),
    "ernie4-5": case("ernie4_5", s(num_hidden_layers=2, head_dim=8)),
    "ernie4-5-biases": case("ernie4_5", s(head_dim=16, use_bias=True, tie_word_embeddings=False)),
    "seed-oss": case("seed_oss", s(num_hidden_layers=2, head_dim=8)),
    "seed-oss-biases": case("seed_oss", s(head_dim=16, attention_out_bias=True, mlp_bias=True)),
    "internlm3": case("internlm3", s(num_hidden_layers=2, head_dim=8, attention_bias=True, mlp_bias=True)),
    "internlm3-rope-dynamic": case("internlm3", s(head_dim=16, max_position_embeddings=32, rope_parameters=rope("dynamic", factor=6.0)), legacy_config=True, prompt_len=40),
    "hunyuan-dense": case("hunyuan_v1_dense", s(num_hidden_layers=2, head_dim=16)),
    "hunyuan-dense-alpha": case("hunyuan_v1_dense", s(head_dim=16, attention_bias=True, tie_word_embeddings=True, rope_parameters=rope("dynamic", factor=1.0, alpha=100.0)), legacy_config=True),
    "apertus": case("apertus", s(num_hidden_layers=2)),
    "apertus-plain-rope": case("apertus", s(attention_bias=True, hidden_act="relu2", tie_word_embeddings=True, rope_parameters=rope("default"))),
    "ministral3": case("ministral3", s(num_hidden_layers=2, head_dim=16, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.3, mscale=1.0, mscale_all_dim=1.0)), prompt_len=40),
    "ministral3-window": case("ministral3", s(head_dim=16, sliding_window=12, tie_word_embeddings=True, rope_parameters=rope("yarn", factor=16.0, original_max_position_embeddings=8, llama_4_scaling_beta=0.1)), prompt_len=40),
    "gpt-bigcode": case("gpt_bigcode", BIGCODE),
    "gpt-bigcode-many-heads": case("gpt_bigcode", {**BIGCODE, "multi_query": False, "n_inner": 48, "tie_word_embeddings": False}),
}
