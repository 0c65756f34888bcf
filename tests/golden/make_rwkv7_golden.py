#!/usr/bin/env python3
"""Tiny RWKV-7 checkpoints and mlx-lm's answers in float32 on the CPU; transformers has no RWKV-7.

    python3 make_rwkv7_golden.py OUT_DIR [NAME ..]

A case with "bits" is a copy of `base`, quantized by mlx-lm; its answer is that of the dequantized weights.
"""
import json, sys, zlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from mlx_lm.models.rwkv7 import Model, ModelArgs
from mlx_lm.utils import quantize_model, save_config, save_model

from make_golden import write_answer
from make_mlx_golden import dequantized

mx.set_default_device(mx.cpu)
mx.disable_compile()

CONFIG = dict(model_type="rwkv7", vocab_size=320, hidden_size=64, intermediate_size=96, norm_eps=1e-5, head_dim=16, num_hidden_layers=2, a_low_rank_dim=8, v_low_rank_dim=6, gate_low_rank_dim=12, decay_low_rank_dim=10, tie_word_embeddings=False, hidden_act="sqrelu", attn=None)

CASES = {
    "rwkv7": dict(config=CONFIG, dtype="bfloat16"),
    # As flash-linear-attention stores it: parameters of heads as vectors.
    "rwkv7-tied": dict(config={**CONFIG, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 8, "norm_eps": 1e-3, "tie_word_embeddings": True}, dtype="float32", flat=True),
    "mlx-rwkv7-4bit": dict(config={**CONFIG, "a_low_rank_dim": 64, "intermediate_size": 128}, bits=4, group_size=64),
    # For GGUF, not kept.
    "base-rwkv7": dict(config={**CONFIG, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}, dtype="bfloat16", prompt_len=16),
}


def randomise(model, seed):
    """Values that leave no parameter without effect: nothing zero, shifts between 0 and 1."""
    rng = np.random.default_rng(seed)

    def value(name, shape):
        leaf, x = name.rsplit(".", 1)[-1], rng.standard_normal(shape)
        if leaf.startswith("x_"):
            x = rng.uniform(0.05, 0.95, shape)
        elif leaf in ("k_k", "k_a") or leaf == "weight" and "norm" in name:
            x = 1 + 0.2 * x
        elif leaf == "bias" and "w_lora" in name:
            x = 2 * x - 1
        elif leaf in ("r_k", "bias"):
            x = 0.4 * x
        elif "embeddings" not in name:
            x = 1.5 * x / shape[-1] ** 0.5
        return name, mx.array(x.astype(np.float32))

    model.load_weights([value(k, v.shape) for k, v in tree_flatten(model.parameters())])


class Reference:
    """What make_golden.answer asks of a model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, ids, use_cache):
        logits = self.model(mx.array(ids.numpy()))
        return type("Output", (), dict(logits=torch.tensor(np.array(logits))))


def make(name, case, out):
    d, seed = out / name, zlib.crc32(name.encode())
    d.mkdir(parents=True, exist_ok=True)
    config, model = dict(case["config"]), Model(ModelArgs.from_dict(case["config"]))
    randomise(model, seed)
    if "bits" in case:
        predicate = model.quant_predicate
        model, config = quantize_model(model, config, case["group_size"], case["bits"], quant_predicate=predicate)
        save_model(d, model)
        save_config(config, d / "config.json")
    else:
        weights = {k: v.astype(getattr(mx, case["dtype"])) for k, v in tree_flatten(model.parameters())}
        if case.get("flat"):
            weights = {k: v.reshape(-1) if k.endswith(("k_k", "k_a")) or "g_norm" in k else v for k, v in weights.items()}
        mx.save_safetensors(str(d / "model.safetensors"), weights, metadata={"format": "mlx"})
        (d / "config.json").write_text(json.dumps(config, indent=2))
    reference = Model(ModelArgs.from_dict(case["config"]))
    stored = {k: mx.array(v.numpy()) for k, v in read(d, config).items()}
    reference.load_weights(list(reference.sanitize(stored).items()))
    generators = (torch.Generator().manual_seed(seed + 1 + attempt) for attempt in range(20))
    size = (1, case.get("prompt_len", 40))
    prompts = (torch.randint(3, config["vocab_size"], size, generator=g) for g in generators)
    print(f"{name:28s} ok  {write_answer(Reference(reference), prompts, d)}", flush=True)


def read(d, config):
    if "quantization" in config:
        return dequantized(d)
    weights = mx.load(str(d / "model.safetensors"))
    return {k: torch.tensor(np.array(v.astype(mx.float32))) for k, v in weights.items()}


if __name__ == "__main__":
    for name, case in CASES.items():
        if not sys.argv[2:] or name in sys.argv[2:]:
            make(name, case, Path(sys.argv[1]))
