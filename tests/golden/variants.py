"""Variants within the families of cases.py: rope scalings, windows, biases, dtypes, spellings (make_golden.py).

Cases with the same seed differ in config.json only, so all but the first link to its model.safetensors.
"""
S = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=96, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
def s(**kw): return {**S, **kw}
def case(model_type, config=None, **kw): return dict(model_type=model_type, config=config if config is not None else s(), prompt_len=kw.pop("prompt_len", 24), dtype=kw.pop("dtype", "bfloat16"), **kw)
def rope(kind, **kw): return dict(rope_type=kind, **{"rope_theta": 10000.0, **kw})

# head_dim 16 gives eight frequencies, so that ramps and long/short sets have something to distinguish.
def llama_rope(rope_parameters, max_positions=256, **kw):
    return case("llama", s(num_hidden_layers=2, head_dim=16, max_position_embeddings=max_positions, tie_word_embeddings=True, rope_parameters=rope_parameters), seed="llama-rope", **kw)

def phi3_rope(rope_parameters, **kw):
    config = s(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, original_max_position_embeddings=32, rope_parameters=rope_parameters)
    return case("phi3", config, seed=kw.pop("seed", "phi3-longrope"), **kw)

SHORT = [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0]
LONG = [1.0, 1.3, 1.9, 2.7, 4.0, 6.0, 9.0, 12.0]
def longrope(**kw): return rope("longrope", short_factor=SHORT, long_factor=LONG, **kw)


def old_rotary_buffers(t):
    """Checkpoints of the first llama releases carry the frequencies as tensors."""
    import torch
    for i in range(1):
        t[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    return t

def with_tied_head(t):
    """A tied checkpoint that stores the head as well."""
    return {**t, "lm_head.weight": t["model.embed_tokens.weight"]}

def as_openai_wrote_it(t):
    """gpt2 as on the hub: no `transformer.` before the names, and the causal masks among the tensors."""
    import torch
    t = {k.removeprefix("transformer."): v for k, v in t.items() if k != "lm_head.weight"}
    for i in range(2):
        t[f"h.{i}.attn.bias"] = torch.tril(torch.ones(48, 48, dtype=torch.bool)).reshape(1, 1, 48, 48)
    return t

GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=96, bos_token_id=1, eos_token_id=2)
GEMMA = dict(head_dim=16, num_key_value_heads=1)
GEMMA2 = dict(num_hidden_layers=2, head_dim=16, sliding_window=12, query_pre_attn_scalar=24)
GEMMA3 = dict(num_hidden_layers=2, head_dim=16, sliding_window=12, query_pre_attn_scalar=24)

CASES = {
    # llama: rope
    "llama-rope-default": llama_rope(rope("default", rope_theta=500.0)),
    "llama-rope-linear": llama_rope(rope("linear", factor=4.0)),
    "llama-rope-both": llama_rope(rope("default", rope_theta=500.0), edit=dict(rope_theta=20000.0, rope_scaling=dict(type="linear", factor=2.5))),
    "llama-rope-linear-legacy": llama_rope(rope("linear", factor=2.5, rope_theta=20000.0), edit=dict(rope_theta=20000.0, rope_scaling=dict(type="linear", factor=2.5)), drop=["rope_parameters"]),
    "llama-rope-dynamic-cross": llama_rope(rope("dynamic", factor=4.0), 40),
    "llama-rope-dynamic-beyond": llama_rope(rope("dynamic", factor=2.0), 32, prompt_len=48),
    "llama-rope-dynamic-within": llama_rope(rope("dynamic", factor=2.0), 256),
    "llama-rope-dynamic-legacy": llama_rope(rope("dynamic", factor=8.0, rope_theta=1000.0), 36, legacy_config=True),
    "llama-rope-yarn": llama_rope(rope("yarn", factor=4.0, original_max_position_embeddings=2048), 8192),
    "llama-rope-yarn-no-truncate": llama_rope(rope("yarn", factor=8.0, original_max_position_embeddings=512, truncate=False), 4096),
    "llama-rope-yarn-mscale": llama_rope(rope("yarn", factor=40.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.8, beta_fast=8, beta_slow=1), 2560),
    "llama-rope-yarn-attention-factor": llama_rope(rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=0.7, beta_fast=6, beta_slow=2), 256),
    "llama-rope-yarn-no-original": llama_rope(rope("yarn", factor=3.0), 512),
    "llama-rope-yarn-legacy": llama_rope(rope("yarn", factor=4.0, original_max_position_embeddings=128, rope_theta=5000.0), 512, edit=dict(rope_theta=5000.0, rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=128)), drop=["rope_parameters"]),
    "llama-rope-longrope-cross": llama_rope(longrope(original_max_position_embeddings=40), 160),
    # llama: shapes, biases, dtypes, spellings
    "llama-biases": case("llama", s(attention_bias=True, mlp_bias=True)),
    "llama-f16": case("llama", s(rms_norm_eps=1e-3), dtype="float16"),
    "llama-f32-untied": case("llama", s(intermediate_size=33), dtype="float32"),
    "llama-mha": case("llama", s(num_key_value_heads=4)),
    "llama-mqa": case("llama", s(num_key_value_heads=1, tie_word_embeddings=True)),
    "llama-three-heads": case("llama", s(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=10, vocab_size=97)),
    "llama-long-prompt": case("llama", s(tie_word_embeddings=True), prompt_len=140),
    "llama-gelu": case("llama", s(hidden_act="gelu"), seed="llama-plain"),
    "llama-eos-list": case("llama", s(eos_token_id=[2, 7]), seed="llama-plain"),
    "llama-sharded": case("llama", s(num_hidden_layers=2), shards="16KB", legacy_config=True),
    "llama-1": case("llama", s(num_key_value_heads=4), dtype="float16", legacy_config=True, drop=["num_key_value_heads", "rope_theta", "rope_scaling", "head_dim", "attention_bias", "mlp_bias", "pretraining_tp"], edit=dict(torch_dtype="float16", max_sequence_length=256), tensors=old_rotary_buffers),
    "llama-tied-with-head": case("llama", s(tie_word_embeddings=True), tensors=with_tied_head),
    # mistral
    "mistral-no-window": case("mistral", s(sliding_window=None), prompt_len=40, seed="mistral-small"),
    "mistral-wide-window": case("mistral", s(sliding_window=200), legacy_config=True, seed="mistral-small"),
    "mistral-window-cross": case("mistral", s(num_hidden_layers=2, sliding_window=32, head_dim=16)),
    "mistral-window-1": case("mistral", s(sliding_window=1)),
    # qwen2
    "qwen2-window-layers": case("qwen2", s(num_hidden_layers=3, use_sliding_window=True, sliding_window=12, max_window_layers=1), prompt_len=32, seed="qwen2-window"),
    "qwen2-window-layers-legacy": case("qwen2", s(num_hidden_layers=3, use_sliding_window=True, sliding_window=10, max_window_layers=2), prompt_len=32, seed="qwen2-window", legacy_config=True, drop=["layer_types"]),
    "qwen2-window-off": case("qwen2", s(tie_word_embeddings=True), edit=dict(use_sliding_window=False, sliding_window=8, max_window_layers=0), drop=["layer_types"]),
    "qwen2-yarn": case("qwen2", s(num_attention_heads=2, num_key_value_heads=1, rope_parameters=rope("yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=256)), legacy_config=True),
    "qwen2-tied-with-head": case("qwen2", s(tie_word_embeddings=True), tensors=with_tied_head),
    # qwen3
    "qwen3-tied-window": case("qwen3", s(num_hidden_layers=3, head_dim=16, tie_word_embeddings=True, use_sliding_window=True, sliding_window=12, max_window_layers=2), prompt_len=32),
    "qwen3-biases-legacy": case("qwen3", s(head_dim=8, attention_bias=True, rope_parameters=rope("default", rope_theta=1e6)), legacy_config=True, drop=["layer_types"]),
    "qwen3-yarn": case("qwen3", s(head_dim=16, rope_parameters=rope("yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=64)), legacy_config=True),
    "qwen3-f16": case("qwen3", s(head_dim=24, num_key_value_heads=1), dtype="float16"),
    # gpt2
    "gpt2-n-inner": case("gpt2", dict(GPT2, n_inner=48), seed="gpt2-n-inner"),
    "gpt2-scaled-by-layer": case("gpt2", dict(GPT2, n_inner=48, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True), seed="gpt2-n-inner"),
    "gpt2-unscaled": case("gpt2", dict(GPT2, n_inner=48, scale_attn_weights=False, layer_norm_epsilon=1e-3), seed="gpt2-n-inner"),
    "gpt2-gelu": case("gpt2", dict(GPT2, n_inner=48, activation_function="gelu"), seed="gpt2-n-inner"),
    "gpt2-relu-untied": case("gpt2", dict(GPT2, activation_function="relu", tie_word_embeddings=False)),
    "gpt2-openai": case("gpt2", dict(GPT2, n_positions=48), legacy_config=True, tensors=as_openai_wrote_it, edit=dict(n_ctx=48), drop=["n_inner", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "scale_attn_weights", "tie_word_embeddings", "torch_dtype"]),
    # phi3
    "phi3-longrope-short": phi3_rope(longrope(), prompt_len=8),
    "phi3-longrope-cross": phi3_rope(longrope(), prompt_len=20),
    "phi3-longrope-at-boundary": phi3_rope(longrope(), prompt_len=32),
    "phi3-longrope-beyond": phi3_rope(longrope(), prompt_len=44),
    "phi3-longrope-factors": phi3_rope(longrope(factor=16.0), prompt_len=24),
    "phi3-longrope-attention-factor": phi3_rope(longrope(attention_factor=0.8), prompt_len=24),
    "phi3-longrope-legacy": phi3_rope(longrope(), prompt_len=20, legacy_config=True, edit=dict(rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG))),
    "phi3-longrope-su": phi3_rope(longrope(), prompt_len=20, legacy_config=True, edit=dict(rope_scaling=dict(type="su", original_max_position_embeddings=32, short_factor=SHORT, long_factor=LONG))),
    "phi3-partial-tied": case("phi3", s(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, original_max_position_embeddings=32, max_position_embeddings=128, rope_parameters=rope("longrope", partial_rotary_factor=0.75, short_factor=SHORT[:6], long_factor=LONG[:6])), prompt_len=20),
    "phi3-partial-legacy": case("phi3", s(partial_rotary_factor=0.5), legacy_config=True, edit=dict(partial_rotary_factor=0.5, rope_scaling=None)),
    "phi3-window": case("phi3", s(num_hidden_layers=2, sliding_window=12, num_key_value_heads=4), prompt_len=32, legacy_config=True),
    # gemma
    "gemma-biases": case("gemma", s(**GEMMA, attention_bias=True)),
    "gemma-gelu-means-tanh": case("gemma", s(**GEMMA), seed="gemma-plain", legacy_config=True, edit=dict(hidden_act="gelu")),
    "gemma-activation-null": case("gemma", s(**GEMMA), seed="gemma-plain", legacy_config=True, edit=dict(hidden_act="gelu", hidden_activation=None)),
    "gemma-mha": case("gemma", s(head_dim=12, num_key_value_heads=4), dtype="float16"),
    # gemma2
    "gemma2-other-caps": case("gemma2", s(**GEMMA2, attn_logit_softcapping=2.0, final_logit_softcapping=3.0), seed="gemma2-small", prompt_len=32),
    "gemma2-no-caps": case("gemma2", s(**GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None), seed="gemma2-small", prompt_len=32),
    "gemma2-legacy": case("gemma2", s(**GEMMA2), seed="gemma2-small", prompt_len=32, legacy_config=True, edit=dict(hidden_act="gelu_pytorch_tanh"), drop=["layer_types"]),
    "gemma2-gelu-exact": case("gemma2", s(**GEMMA2, hidden_activation="gelu"), seed="gemma2-small"),
    "gemma2-layer-types": case("gemma2", s(**{**GEMMA2, "num_hidden_layers": 3}, attention_bias=True, layer_types=["full_attention", "sliding_attention", "sliding_attention"]), prompt_len=32),
    # gemma3
    "gemma3-linear": case("gemma3_text", s(**GEMMA3, layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(full_attention=rope("linear", rope_theta=1e6, factor=8.0), sliding_attention=rope("default"))), seed="gemma3-small", prompt_len=32),
    "gemma3-legacy": case("gemma3_text", s(**GEMMA3, layer_types=["sliding_attention", "full_attention"]), seed="gemma3-small", prompt_len=32, legacy_config=True, drop=["layer_types", "rope_parameters"], edit=dict(sliding_window_pattern=2, rope_theta=500000.0, rope_local_base_freq=3000.0, rope_scaling=dict(rope_type="linear", factor=4.0))),
    "gemma3-defaults": case("gemma3_text", s(**GEMMA3), seed="gemma3-small", prompt_len=32, drop=["layer_types", "rope_parameters"]),
    "gemma3-caps": case("gemma3_text", s(**{**GEMMA3, "query_pre_attn_scalar": 7}, attn_logit_softcapping=3.0, final_logit_softcapping=4.0, layer_types=["full_attention", "sliding_attention"]), seed="gemma3-small", prompt_len=32),
    "gemma3-untied": case("gemma3_text", s(**GEMMA3, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=False), prompt_len=32),
}
