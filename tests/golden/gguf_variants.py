"""GGUF variants (make_gguf_golden.py) and the float checkpoints they are made from, which are not kept."""
from variants import GEMMA, GEMMA2, GPT2, longrope, rope, s as single_layer


def s(**kw):
    return single_layer(**{"num_hidden_layers": 2, **kw})


def case(model_type, config, **kw):
    return dict(model_type=model_type, config=config, prompt_len=kw.pop("prompt_len", 24), **kw)

# Rows of the K-quants are super-blocks of 256; o_proj's 64 columns fit none.
WIDE = s(hidden_size=256, intermediate_size=256, head_dim=16, num_key_value_heads=1, num_hidden_layers=1, tie_word_embeddings=True)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

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
}
