"""The plain checkpoints and the MLX ones made from them (make_golden.py, make_mlx_golden.py)."""
S = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=320, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
def s(**kw): return {**S, **kw}

CASES = {
    "llama": dict(model_type="llama", config=s(tie_word_embeddings=True)),
    "llama-rope-llama3": dict(model_type="llama", config=s(head_dim=32, rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)), prompt_len=80, dtype="bfloat16", legacy_config=True),
    "mistral-sliding": dict(model_type="mistral", config=s(sliding_window=16), prompt_len=48),
    "qwen2": dict(model_type="qwen2", config=s(tie_word_embeddings=True), dtype="bfloat16", legacy_config=True),
    "qwen3": dict(model_type="qwen3", config=s(head_dim=32)),
    "gemma": dict(model_type="gemma", config=s(head_dim=32, num_key_value_heads=1)),
    "gemma2": dict(model_type="gemma2", config=s(head_dim=32, sliding_window=16, query_pre_attn_scalar=24, attn_logit_softcapping=50.0, final_logit_softcapping=30.0), prompt_len=48),
    "gemma3": dict(model_type="gemma3_text", config=s(num_hidden_layers=6, head_dim=32, sliding_window=16, query_pre_attn_scalar=32), prompt_len=48),
    "phi3": dict(model_type="phi3", config=s()),
    "gpt2": dict(model_type="gpt2", config=dict(n_embd=64, n_layer=2, n_head=4, n_positions=256, vocab_size=320, bos_token_id=1, eos_token_id=2)),
}

# Quantized by mlx-lm from the checkpoints above.
MLX_CASES = {
    "mlx-llama-4bit-g64": dict(base="llama", bits=4, group_size=64),
    "mlx-llama-4bit-g32-bf16": dict(base="llama-rope-llama3", bits=4, group_size=32),
    "mlx-qwen3-8bit-g32": dict(base="qwen3", bits=8, group_size=32),
    "mlx-qwen2-3bit-g64": dict(base="qwen2", bits=3, group_size=64),
    "mlx-llama-mixed-2-6": dict(base="llama", recipe="mixed_2_6", group_size=32),
    "mlx-llama-mxfp4": dict(base="llama", mode="mxfp4"),
    "mlx-gemma2-6bit-g32": dict(base="gemma2", bits=6, group_size=32),
}
