"""MLX variants (make_mlx_golden.py) and the float checkpoints they are made from, which are not kept.

Group sizes above 32 need wider rows than variants.py has. o_proj of the widest has 32 columns, which 128 does not
divide: mlx-lm leaves it as it is.
"""
from variants import GEMMA, GEMMA3, GPT2, as_openai_wrote_it, case, s

WIDE = s(hidden_size=128, intermediate_size=128, head_dim=8, num_key_value_heads=1, tie_word_embeddings=True)
NARROW = s(hidden_size=64, intermediate_size=64)
CASES = {
    "base-llama-wide": case("llama", WIDE),
    "base-llama-narrow": case("llama", NARROW),
    "base-llama-narrow-f16": case("llama", NARROW, dtype="float16"),
    "base-gpt2": case("gpt2", dict(GPT2, n_embd=64, n_positions=48), edit=dict(n_ctx=48), tensors=as_openai_wrote_it),
    "base-phi3": case("phi3", {**NARROW, "original_max_position_embeddings": 256}),
    "base-mistral": case("mistral", {**NARROW, "sliding_window": 12}),
    "base-gemma": case("gemma", {**NARROW, **GEMMA}),
    "base-gemma3": case("gemma3_text", {**NARROW, **GEMMA3, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
}
MLX_CASES = {
    "mlx-llama-2bit-g32": dict(base="base-llama-narrow", bits=2, group_size=32),
    "mlx-llama-3bit-g128": dict(base="base-llama-wide", bits=3, group_size=128),
    "mlx-llama-5bit-g32-f16": dict(base="base-llama-narrow-f16", bits=5, group_size=32),
    "mlx-llama-6bit-g64": dict(base="base-llama-narrow", bits=6, group_size=64),
    "mlx-llama-8bit-g128": dict(base="base-llama-wide", bits=8, group_size=128),
    "mlx-llama-4bit-g128": dict(base="base-llama-wide", bits=4, group_size=128),
    "mlx-llama-mxfp8": dict(base="base-llama-narrow", mode="mxfp8"),
    "mlx-llama-nvfp4": dict(base="base-llama-narrow", mode="nvfp4"),
    "mlx-llama-layer-left-out": dict(base="base-llama-narrow", bits=4, group_size=32, leave=["lm_head", "model.layers.0.self_attn.v_proj"], list_false=["lm_head"]),
    "mlx-llama-map": dict(base="base-llama-narrow", bits=4, group_size=64, per_layer={"model.layers.0.mlp.down_proj": dict(bits=8, group_size=32), "model.embed_tokens": dict(bits=6, group_size=64), "model.layers.0.self_attn.q_proj": dict(bits=2, group_size=32)}),
    # The same tensors, but the map no longer lists down_proj and q_proj: bits and group follow from the shapes.
    "mlx-llama-map-partial": dict(base="base-llama-narrow", bits=4, group_size=64, per_layer={"model.layers.0.mlp.down_proj": dict(bits=8, group_size=32), "model.embed_tokens": dict(bits=6, group_size=64), "model.layers.0.self_attn.q_proj": dict(bits=2, group_size=32)}, unlist=["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]),
    "mlx-gpt2-4bit-g32": dict(base="base-gpt2", bits=4, group_size=32),
    "mlx-phi3-4bit-g32": dict(base="base-phi3", bits=4, group_size=32),
    "mlx-mistral-4bit-g64": dict(base="base-mistral", bits=4, group_size=64),
    "mlx-gemma-4bit-g32": dict(base="base-gemma", bits=4, group_size=32),
    "mlx-gemma3-4bit-g32": dict(base="base-gemma3", bits=4, group_size=32),
}
