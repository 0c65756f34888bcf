#!/usr/bin/env python3
"""Tiny MLX-quantized checkpoints, quantized and saved by mlx-lm, with the logits that transformers gives on the
dequantized weights in float32 (so that neither a reading of the config by mlx-lm nor bf16 arithmetic enters).

    python3 make_mlx_golden.py HF_DIR OUT_DIR CASES.py [NAME ...]

CASES.py defines MLX_CASES = {name: {"base": a case of make_golden.py, and "bits"/"group_size"/"mode" or "recipe"}};
"leave" names modules that stay unquantized, "per_layer" gives others their own bits and group, "unlist" takes
entries out of config.json's map afterwards (a loader then has the shapes to go by) and "list_false" adds `false` ones.
HF_DIR holds the checkpoints of make_golden.py. Each OUT_DIR/NAME gets config.json and model.safetensors as mlx-lm
saves them, and golden.safetensors as make_golden.py writes it.
"""
import importlib.util, json, sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from make_golden import shuffles, write_answer

mx.set_default_device(mx.cpu)


def dequantized(d):
    """All tensors of an MLX checkpoint as float32 torch tensors under their own names."""
    q = json.loads((d / "config.json").read_text())["quantization"]
    w, out = mx.load(str(d / "model.safetensors")), {}
    for k, v in w.items():
        p = k.removesuffix(".weight")
        if k.endswith((".scales", ".biases")) and k.rsplit(".", 1)[0] + ".weight" in w:
            continue
        if p + ".scales" in w:
            # What an entry leaves out is MLX's default, not that of the other matrices.
            c = {"group_size": 64, "bits": 4, **q[p]} if isinstance(q.get(p), dict) else q
            s, b = w[p + ".scales"], w.get(p + ".biases")
            if b is not None:
                s, b = s.astype(mx.float32), b.astype(mx.float32)
            v = mx.dequantize(v, s, b, group_size=c["group_size"], bits=c["bits"], mode=c.get("mode", "affine"))
        out[k] = torch.tensor(np.array(v.astype(mx.float32)))
    return out


def not_folded(config):
    """falcon_h1's factors without those that mlx-lm multiplied into the weights."""
    if config["model_type"] != "falcon_h1":
        return {}
    head = config["lm_head_multiplier"] / config["embedding_multiplier"] if config["tie_word_embeddings"] else 1.0
    ones = ("embedding_multiplier", "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier", "attention_in_multiplier")
    return dict({k: 1.0 for k in ones}, lm_head_multiplier=head, mlp_multipliers=[1.0, 1.0], ssm_multipliers=[1.0] * 5)


def renamed(tensors, config):
    """Undo what mlx-lm's sanitize did to names and layouts."""
    model_type = config["model_type"]
    tensors = {k.replace(".experts.switch_glu.", ".switch_mlp."): v for k, v in tensors.items()}
    if any(".switch_mlp." in k for k in tensors):
        for p in sorted({k.split(".switch_mlp.")[0] for k in tensors if ".switch_mlp." in k}):
            parts = [tensors.pop(f"{p}.switch_mlp.{part}.weight", None) for part in ("gate_proj", "up_proj", "down_proj", "fc1", "fc2")]
            gate, up, down = (x for x in (parts[:3] if parts[0] is not None else [None, *parts[3:]]))
            if gate is None:
                tensors[f"{p}.experts.up_proj"] = up
            else:
                tensors[f"{p}.experts.gate_up_proj"] = torch.cat([gate, up], 1)
            tensors[f"{p}.experts.down_proj"] = down
    if model_type == "nemotron_h":
        return {k.replace("backbone.", "model."): v.transpose(1, 2) if "conv1d.weight" in k else v for k, v in tensors.items()}
    if model_type == "falcon_h1":
        # Of what attention reads, mlx-lm multiplies queries and keys.
        read = config["attention_in_multiplier"]
        return {k: v.transpose(1, 2) if "conv1d.weight" in k else v * read if ".v_proj." in k else v for k, v in tensors.items()}
    if model_type != "gpt2":
        return tensors
    conv1d = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return {"transformer." + k.removeprefix("model."): v.T if k.endswith(conv1d) else v for k, v in tensors.items()}


def predicate(case, model):
    if "recipe" in case:
        return mixed_quant_predicate_builder(case["recipe"], model, case.get("group_size", 32))
    own = {**{k: False for k in case.get("leave", ())}, **case.get("per_layer", {})}
    return lambda path, module: own.get(path, True)


def make(name, case, hf, out):
    src, d = hf / case["base"], out / name
    model, config = load_model(src)
    kw = {"quant_predicate": predicate(case, model)} if {"recipe", "leave", "per_layer"} & set(case) else {}
    model, config = quantize_model(model, config, case.get("group_size"), case.get("bits"), mode=case.get("mode", "affine"), **kw)
    d.mkdir(parents=True, exist_ok=True)
    save_model(d, model)
    save_config(config, d / "config.json")
    ref = AutoModelForCausalLM.from_pretrained(src, dtype=torch.float32, attn_implementation="eager", **not_folded(config)).eval()
    missing, unexpected = ref.load_state_dict(renamed(dequantized(d), config), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    ref.tie_weights()
    print(f"{name:28s} ok  {write_answer(ref, shuffles(load_file(src / 'golden.safetensors')['input_ids']), d)}", flush=True)
    if {"unlist", "list_false"} & set(case):
        written = json.loads((d / "config.json").read_text())
        for quantization in (written["quantization"], written["quantization_config"]):
            for path in case.get("unlist", ()):
                del quantization[path]
            quantization.update({path: False for path in case.get("list_false", ())})
        (d / "config.json").write_text(json.dumps(written, indent=4))


def main():
    hf, out = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(Path(sys.argv[3]).resolve().parent))
    spec = importlib.util.spec_from_file_location("cases", sys.argv[3])
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    failed = []
    for name, case in cases.MLX_CASES.items():
        if sys.argv[4:] and name not in sys.argv[4:]:
            continue
        try:
            make(name, case, hf, out)
        except Exception as e:
            failed.append(name)
            print(f"{name:28s} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    print(f"{len(failed)} failed: {failed}")


if __name__ == "__main__":
    main()
