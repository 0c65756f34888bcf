#!/usr/bin/env python3
"""Tiny checkpoints in the formats of other libraries, with the logits that transformers gives on the values that these
formats' definitions stand for, computed here with numpy and torch alone.

    python3 make_foreign_golden.py OUT_DIR [NAME ...]

Definitions: AutoAWQ's GEMM packing; AutoGPTQ's checkpoint formats 1 and 2; DeepSeek's and vLLM's FP8; the compressors of
compressed-tensors; BitNet of transformers; ModelOpt's NVFP4. Embedding and head stay plain, as these libraries leave them.
"""
import json, sys, tempfile, zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from make_golden import randomise, shuffles, write_answer

E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
CONFIG = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=96, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def f16(x): return np.asarray(x, np.float32).astype(np.float16)
def t(x): return torch.from_numpy(np.ascontiguousarray(x))
def e4m3(x): return torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(torch.float8_e4m3fn)


def asymmetric(w, bits, of, groups):
    """Codes [out, in], f16 scales and zero points [out, groups] of columns of groups `of`."""
    top = 2 ** bits - 1
    lo = np.stack([np.minimum(w[:, of == g].min(1), 0) for g in range(groups)], 1)
    hi = np.stack([np.maximum(w[:, of == g].max(1), 0) for g in range(groups)], 1)
    s = f16(np.maximum((hi - lo) / top, 1e-4)).astype(np.float32)
    z = np.clip(np.rint(-lo / s), 1, top)
    q = np.clip(np.rint(w / s[:, of] + z[:, of]), 0, top)
    return q.astype(np.int64), s, z.astype(np.int64), (s[:, of] * (q - z[:, of])).astype(np.float32)


def stream(values, bits):
    """Words of a stream of codes along axis 0."""
    n, m = values.shape
    planes = (values[:, None, :] >> np.arange(bits)[None, :, None] & 1).reshape(n * bits // 32, 32, m)
    return (planes << np.arange(32)[None, :, None]).sum(1).astype(np.uint32).view(np.int32)


def awq(w, case):
    g = case["group"]
    q, s, z, value = asymmetric(w, 4, np.arange(w.shape[1]) // g, w.shape[1] // g)
    def pack(x):  # [rows, out]: eight columns to a word
        x = x.reshape(x.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return (x << (4 * np.arange(8))).sum(2).astype(np.uint32).view(np.int32)
    return dict(qweight=t(pack(q.T)), qzeros=t(pack(z.T)), scales=t(f16(s.T))), value


def gptq(w, case):
    bits, g, inp = case["bits"], case["group"], w.shape[1]
    of = np.arange(inp) // g
    if case.get("order"):
        of = of[np.random.RandomState(inp).permutation(inp)]
    q, s, z, value = asymmetric(w, bits, of, inp // g)
    zeros = stream((z - case.get("offset", 1)).astype(np.int64), bits) # [out in words, groups]
    return dict(qweight=t(stream(q.T.copy(), bits)), qzeros=t(zeros.T.copy()), scales=t(f16(s.T)), g_idx=t(of.astype(np.int32))), value


def fp8(w, case):
    out, inp = w.shape
    bh, bw = {"tensor": (out, inp), "row": (1, inp)}.get(case["block"], case["block"])
    rows, cols = -(-out // bh), -(-inp // bw)
    s = np.array([[np.abs(w[i * bh:(i + 1) * bh, j * bw:(j + 1) * bw]).max() / 448 for j in range(cols)] for i in range(rows)], np.float32)
    if case.get("scale") == "bf16":
        s = torch.from_numpy(s).bfloat16().float().numpy()
    full = s.repeat(bh, 0)[:out].repeat(bw, 1)[:, :inp]
    codes = e4m3(np.clip(w / full, -448, 448))
    scale = t(s).bfloat16() if case.get("scale") == "bf16" else t(s)
    if case["block"] == "tensor":
        scale = scale.reshape(())
    return {"weight": codes, case["name"]: scale}, codes.float().numpy() * full


def integers(w, case):
    bits, g, (out, inp) = case["bits"], case["group"] or w.shape[1], w.shape
    of, groups, half = np.arange(inp) // g, inp // g, 2 ** (bits - 1)
    parts = dict(weight_shape=torch.tensor([out, inp]))
    if case.get("order"):
        of = of[np.random.RandomState(inp).permutation(inp)]
        parts["weight_g_idx"] = t(of.astype(np.int32))
    if case.get("zeros"):
        q, s, z, value = asymmetric(w, bits, of, groups)
        per = 32 // bits
        zz = np.concatenate([z, np.zeros((-out % per, groups), np.int64)]).reshape(-1, per, groups)
        parts["weight_zero_point"] = t((zz << (bits * np.arange(per))[None, :, None]).sum(1).astype(np.uint32).view(np.int32))
        parts["weight_scale"] = t(f16(s))
    else:
        s = np.stack([np.abs(w[:, of == k]).max(1) for k in range(groups)], 1) / (half - 1)
        s = torch.from_numpy(s.astype(np.float32)).bfloat16()
        parts["weight_scale"], s = s, s.float().numpy()
        q = np.clip(np.rint(w / s[:, of]), -half, half - 1)
        value, q = (s[:, of] * q).astype(np.float32), q.astype(np.int64) + half
    if case.get("bytes"):
        return dict(weight=t((q - half).astype(np.int8)), weight_scale=parts["weight_scale"]), value
    parts["weight_packed"] = t(stream(q.T.copy(), bits).T.copy())
    return parts, value


def nibbles(w, case):
    g, out = case["group"], w.shape[0]
    grouped = w.reshape(out, -1, g)
    most = np.abs(grouped).max(2)
    if g == 16:
        whole = np.float32(448 * 6 / np.abs(w).max())
        scale = e4m3(np.maximum(most / 6 * whole, 2 ** -6))
        s, stored = scale.float().numpy() / whole, scale
    else:
        e = np.ceil(np.log2(np.maximum(most, 1e-20) / 6)).astype(np.int64)
        s, stored = 2.0 ** e.astype(np.float32), t((e + 127).astype(np.uint8))
    q = np.abs(grouped[..., None] / s[:, :, None, None] - E2M1).argmin(3)
    value = (E2M1[q] * s[:, :, None]).reshape(w.shape).astype(np.float32)
    q = q.reshape(out, -1, 2)
    packed = t((q[:, :, 0] | q[:, :, 1] << 4).astype(np.uint8))
    if case.get("modelopt"):
        return dict(weight=packed, weight_scale=stored, weight_scale_2=torch.tensor(1 / whole), input_scale=torch.tensor(1.0)), value
    parts = dict(weight_packed=packed, weight_scale=stored)
    if g == 16:
        parts["weight_global_scale"] = torch.tensor([whole])
    return parts, value


def bitnet(w, case):
    scale = np.abs(w).mean()
    q = np.clip(np.rint(w / scale), -1, 1).astype(np.int64) + 1
    quarters = q.reshape(4, -1, w.shape[1])
    packed = t((quarters << (2 * np.arange(4))[:, None, None]).sum(0).astype(np.uint8))
    stored = torch.tensor([1 / scale if case["divides"] else scale]).float()
    factor = np.float32(1 / stored.item()) if case["divides"] else np.float32(stored.item())
    return dict(weight=packed, weight_scale=stored), ((q - 1) * factor).astype(np.float32)


def ct(kind): return dict(quant_method="compressed-tensors", format=kind, config_groups={})
CASES = {
    "awq-g32": dict(make=awq, group=32, config=dict(quant_method="awq", bits=4, group_size=32, version="gemm", zero_point=True)),
    "awq-g64": dict(make=awq, group=64, config=dict(quant_method="awq", bits=4, group_size=64, version="gemm", zero_point=True, modules_to_not_convert=["lm_head"])),
    "gptq-4bit-g32": dict(make=gptq, bits=4, group=32, config=dict(quant_method="gptq", bits=4, group_size=32, desc_act=False, sym=False)),
    "gptq-4bit-act-order": dict(make=gptq, bits=4, group=32, order=True, config=dict(quant_method="gptq", bits=4, group_size=32, desc_act=True, sym=False)),
    "gptq-8bit-v2": dict(make=gptq, bits=8, group=64, offset=0, config=dict(quant_method="gptq", bits=8, group_size=64, checkpoint_format="gptq_v2")),
    "gptq-3bit": dict(make=gptq, bits=3, group=32, config=dict(quant_method="gptq", bits=3, group_size=32, checkpoint_format="gptq")),
    "gptq-2bit-g16": dict(make=gptq, bits=2, group=16, config=dict(quant_method="gptq", bits=2, group_size=16)),
    "fp8-blocks": dict(make=fp8, block=(48, 48), name="weight_scale_inv", config=dict(quant_method="fp8", fmt="e4m3", weight_block_size=[48, 48], activation_scheme="dynamic")),
    "fp8-blocks-128": dict(make=fp8, block=(128, 128), name="weight_scale_inv", config=dict(quant_method="fp8", weight_block_size=[128, 128])),
    "fp8-tensor": dict(make=fp8, block="tensor", name="weight_scale_inv", scale="bf16", config=dict(quant_method="fp8", weight_block_size=None, activation_scheme="static")),
    "ct-fp8-rows": dict(make=fp8, block="row", name="weight_scale", scale="bf16", config=ct("float-quantized")),
    "ct-int4-g32": dict(make=integers, bits=4, group=32, config=ct("pack-quantized")),
    "ct-int4-zeros": dict(make=integers, bits=4, group=64, zeros=True, config=ct("pack-quantized")),
    "ct-int4-act-order": dict(make=integers, bits=4, group=32, order=True, config=ct("pack-quantized")),
    "ct-int8-rows": dict(make=integers, bits=8, group=None, bytes=True, config=ct("int-quantized")),
    "ct-nvfp4": dict(make=nibbles, group=16, config=ct("nvfp4-pack-quantized")),
    "ct-mxfp4": dict(make=nibbles, group=32, config=ct("mxfp4-pack-quantized")),
    "modelopt-nvfp4": dict(make=nibbles, group=16, modelopt=True, config=dict(quant_method="modelopt", quant_algo="NVFP4")),
    "bitnet": dict(make=bitnet, divides=True, config=dict(quant_method="bitnet", modules_to_not_convert=None)),
    "bitnet-auto": dict(make=bitnet, divides=False, config=dict(quant_method="bitnet", linear_class="autobitlinear", quantization_mode="offline")),
}


def make(name, case, out):
    d, seed = out / name, zlib.crc32(name.encode())
    config = AutoConfig.for_model("llama", **CONFIG)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    randomise(model, seed)
    with tempfile.TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        tensors, cfg = load_file(Path(plain) / "model.safetensors"), json.loads((Path(plain) / "config.json").read_text())
    stored, values = {}, {}
    for k, v in tensors.items():
        if k.endswith("_proj.weight"):
            parts, value = case["make"](v.numpy(), case)
            stored.update({f"{k.removesuffix('.weight')}.{p}": x.contiguous() for p, x in parts.items()})
            values[k] = torch.from_numpy(value)
        else:
            stored[k] = v.bfloat16()
            values[k] = stored[k].float()
    d.mkdir(parents=True, exist_ok=True)
    save_file(stored, d / "model.safetensors", metadata={"format": "pt"})
    (d / "config.json").write_text(json.dumps({**cfg, "dtype": "bfloat16", "quantization_config": case["config"]}, indent=2))
    model.load_state_dict(values, strict=False)
    ids = torch.randint(3, 96, (24,), generator=torch.Generator().manual_seed(seed + 1))
    print(f"{name:28s} ok  {write_answer(model, shuffles(ids), d)}", flush=True)


if __name__ == "__main__":
    for name, case in CASES.items():
        if not sys.argv[2:] or name in sys.argv[2:]:
            make(name, case, Path(sys.argv[1]))
