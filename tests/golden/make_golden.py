#!/usr/bin/env python3
"""Tiny random checkpoints with the logits that Hugging Face transformers gives for them.

    python3 make_golden.py CASES.py OUT_DIR [NAME ...]

CASES.py defines CASES = {name: {"model_type": ..., "config": {...}, optional
"prompt_len", "dtype", "legacy_config", "shards", "seed", "edit", "drop", "tensors", "afterwards"}}. For each
case OUT_DIR/NAME gets

    config.json, generation_config.json, model.safetensors   the checkpoint, as transformers saves it
    golden.safetensors    input_ids i64 [T], logits f32 [T, V], greedy i64 [G]

logits are those of one full forward pass in float32 on the stored weights; greedy
is what argmax decoding from input_ids gives, each step from a full forward pass,
so no cache of the reference's can hide an error. The reference reads the finished folder
from disk, so it also judges what "edit" (keys of config.json that are set), "drop"
(keys that are removed) and "tensors" (a function over the named tensors) did to the checkpoint. "afterwards" are keys
that are set once it has answered: names that it does not know.
Cases with the same "seed" and shapes have the same weights: all but the first get a symbolic link.
"""
import importlib.util, json, sys, zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

GREEDY = 24
FIRST = {}  # the bytes of a weights file -> where they were written first


def randomise(model, seed):
    """Weights large enough that every layer shows in the logits."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if any(s in name for s in ("A_log", "dt_bias", "dt_proj.bias", ".D", "conv1d", "ssm", "a_param", "recurrent_param")):
            p.data += 0.05 * torch.randn(p.shape, generator=g)
        elif p.ndim == 1 or "sinks" in name:
            base = 0.0 if ("bias" in name or float(p.data.abs().mean()) < 1e-6 or "sinks" in name) else 1.0
            p.data = base + 0.2 * torch.randn(p.shape, generator=g)
        else:
            p.data = torch.randn(p.shape, generator=g) / (p.shape[-1] ** 0.5) * (1.0 if "embed" in name or "wte" in name else 1.4)


def legacy(cfg):
    """The config as older releases of transformers wrote it (rope_theta and rope_scaling)."""
    rp = cfg.pop("rope_parameters", None)
    if rp and "rope_type" in rp:
        cfg["rope_theta"] = rp.pop("rope_theta")
        if rp["rope_type"] != "default":
            cfg["rope_scaling"] = rp
    if "dtype" in cfg:
        cfg["torch_dtype"] = cfg.pop("dtype")
    return cfg


def auto(config):
    """Who makes the model; those that also see are not all among the causal ones."""
    return AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText


def write_checkpoint(name, case, config, d):
    model = auto(config).from_config(config, attn_implementation="eager").eval().float()
    randomise(model, zlib.crc32(case.get("seed", name).encode()))
    d.mkdir(parents=True, exist_ok=True)
    for old in d.glob("*"):
        old.unlink()
    model.to(getattr(torch, case.get("dtype", "float32"))).save_pretrained(d, max_shard_size=case.get("shards", "5GB"))
    cfg = json.loads((d / "config.json").read_text())
    if case.get("legacy_config"):
        cfg = legacy(cfg)
    cfg.update(case.get("edit", {}))
    for key in case.get("drop", ()):
        cfg.pop(key, None)
    (d / "config.json").write_text(json.dumps(cfg, indent=2))
    if "tensors" in case:
        tensors = case["tensors"](load_file(d / "model.safetensors"))
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, d / "model.safetensors", metadata={"format": "pt"})
    if "seed" in case:
        weights = d / "model.safetensors"
        first = FIRST.setdefault(weights.read_bytes(), weights)
        if first != weights:
            weights.unlink()
            weights.symlink_to(Path("..") / first.parent.name / first.name)


@torch.inference_mode()
def answer(model, ids):
    """Logits for ids, ids with the greedy tokens after them, and the least gap between the best two logits there."""
    logits, full, gaps = model(ids, use_cache=False).logits[0].float(), ids, []
    for _ in range(GREEDY):
        last = model(full, use_cache=False).logits[0, -1].float()
        top2 = last.topk(2).values
        gaps.append(float(top2[0] - top2[1]))
        full = torch.cat([full, last.argmax().reshape(1, 1)], 1)
    return logits, full, min(gaps)


def shuffles(ids):
    """The prompt, then the same tokens in other orders."""
    yield ids[None]
    for attempt in range(20):
        yield ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(attempt))][None]


def write_answer(model, prompts, d):
    """golden.safetensors for the first of the prompts that leaves no choice of a token to rounding."""
    for ids in prompts:
        logits, full, gap = answer(model, ids)
        if gap > 2e-3 * float(logits.std()):
            break
    else:
        raise ValueError("no prompt with a clear greedy continuation")
    assert torch.isfinite(logits).all()
    greedy = full[0, ids.shape[1]:]
    save_file({"input_ids": ids[0].contiguous(), "logits": logits.contiguous(), "greedy": greedy.contiguous()}, d / "golden.safetensors")
    (d / "golden.safetensors").chmod(0o644)
    return f"std {float(logits.std()):6.2f}  least top-2 gap {gap:6.3f}  distinct greedy {greedy.unique().numel()}"


def make(name, case, out):
    torch.manual_seed(0)
    d = out / name
    config = AutoConfig.for_model(case["model_type"], **case["config"])
    config._attn_implementation = "eager"
    write_checkpoint(name, case, config, d)
    model = auto(config).from_pretrained(d, dtype=torch.float32, attn_implementation="eager").eval()
    seed, vocab = zlib.crc32(case.get("seed", name).encode()), config.get_text_config().vocab_size
    generators = (torch.Generator().manual_seed(seed + 1 + attempt) for attempt in range(20))
    prompts = (torch.randint(3, vocab, (1, case.get("prompt_len", 40)), generator=g) for g in generators)
    print(f"{name:28s} ok  {write_answer(model, prompts, d)}", flush=True)
    if "afterwards" in case:
        (d / "config.json").write_text(json.dumps({**json.loads((d / "config.json").read_text()), **case["afterwards"]}, indent=2))


def main():
    sys.path.insert(0, str(Path(sys.argv[1]).resolve().parent))
    spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    only = sys.argv[3:]
    failed = []
    for name, case in cases.CASES.items():
        if only and name not in only:
            continue
        try:
            make(name, case, Path(sys.argv[2]))
        except Exception as e:  # a case that this transformers cannot make is reported, not fatal
            failed.append(name)
            print(f"{name:28s} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    print(f"{len(failed)} failed: {failed}")


if __name__ == "__main__":
    main()
