"""Writes vectors.safetensors beside this file: weights encoded and decoded by MLX (CPU) and by the gguf package.

pip install mlx[cpu]==0.32.4 gguf==0.19.0; python make.py

`NAME.codes`, `.scales`, `.biases` are the stored bytes, `NAME.values` what they decode to in f32. Where the codes
come from a quantizer, `source` (or for a mode of its own range `NAME.source`) is what it was given, in the type
that the name says; NAME without a source has random bytes.
"""

import os

import gguf
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
rng = np.random.default_rng(1)
out = {}


def source():
    """[2, 256]: ordinary weights, then groups of 32 that are special."""
    w = rng.standard_normal((2, 256)).astype(np.float32)
    w[0] *= 0.02
    row = w[1].reshape(8, 32)
    row[0] = 0
    row[1] = 0.75
    row[2] = -np.abs(row[2])
    row[3] = np.abs(row[3]) + 1
    row[4] *= 1e-9
    row[5] = np.arange(32) - 16
    row[5] /= 4
    row[6, 7] = -90
    row[7] = np.linspace(-3, 1, 32)
    return w


w = source()
out["source"] = mx.array(w)
types = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def add(name, parts, values):
    for part, array in zip(("codes", "scales", "biases"), parts):
        out[f"{name}.{part}"] = array
    out[f"{name}.values"] = values


for bits in (2, 3, 4, 5, 6, 8):
    for group in (32, 64, 128):
        for meta in types if group == 64 else ("f32",):
            x = mx.array(w).astype(types[meta])
            q, s, b = mx.quantize(x, group_size=group, bits=bits)
            f32 = [a.astype(mx.float32) for a in (s, b)]
            values = mx.dequantize(q, *f32, group_size=group, bits=bits)
            add(f"affine.{bits}.{group}.{meta}", (q, s, b), values)

for mode, bits, group in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
    how = dict(mode=mode, bits=bits, group_size=group)
    # Exponents that the released quantizer wraps are left out, and so are nvfp4 scales that vanish.
    x = w.copy()
    x[1, 128:160] = w[1, 128:160] * 1e8
    q, s = mx.quantize(mx.array(x), **how)
    add(f"{mode}.source", (q, s), mx.dequantize(q, s, **how, dtype=mx.float32))
    out[f"{mode}.source.source"] = mx.array(x)
    # Every code under scales of all sizes but the ones that are not a number.
    codes = mx.array(rng.integers(0, 256, (2, 256 * bits // 8), dtype=np.uint8).view(np.uint32))
    scales = rng.integers(0, 127 if mode == "nvfp4" else 255, (2, 256 // group), dtype=np.uint8)
    scales[0, :3] = 0, 1, 254 if mode != "nvfp4" else 0xFE
    add(f"{mode}.random", (codes, mx.array(scales)), mx.dequantize(codes, mx.array(scales), **how, dtype=mx.float32))

how = dict(mode="nvfp4", bits=4, group_size=16, global_scale=mx.array(np.abs(w).max()))
q, s = mx.quantize(mx.array(w), **how)
add("nvfp4.global", (q, s), mx.dequantize(q, s, **how, dtype=mx.float32))
out["nvfp4.global.global_scale"] = how["global_scale"]

every = np.arange(256, dtype=np.uint8)
ones = mx.array(np.full((1, 8), 127, np.uint8))
add("mxfp8.every", (mx.array(every.view(np.uint32)[None]), ones),
    mx.dequantize(mx.array(every.view(np.uint32)[None]), ones, mode="mxfp8", bits=8, group_size=32, dtype=mx.float32))

Q = gguf.GGMLQuantizationType
for kind in (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0):
    codes = gguf.quants.quantize(w, kind)
    add(f"{kind.name}.source", (mx.array(codes),), mx.array(gguf.quants.dequantize(codes, kind)))
HALVES = {Q.Q4_0: (0,), Q.Q4_1: (0, 2), Q.Q5_0: (0,), Q.Q5_1: (0, 2), Q.Q8_0: (0,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,)}
for kind, halves in HALVES.items():
    size, width = gguf.GGML_QUANT_SIZES[kind]
    codes = rng.integers(0, 256, (512 // size, width), dtype=np.uint8)
    for at in halves:  # finite: the exponent is never all ones
        codes[:, at + 1] &= 0xBF
    codes = codes.reshape(2, -1)
    add(f"{kind.name}.random", (mx.array(codes),), mx.array(gguf.quants.dequantize(codes, kind)))
codes = rng.integers(0, 256, (16, 17), dtype=np.uint8)
codes[:, 0] %= 253  # 6 times the scale is finite
codes[:3, 0] = 0, 1, 252
codes = codes.reshape(2, -1)
add("MXFP4.random", (mx.array(codes),), mx.array(gguf.quants.dequantize(codes, Q.MXFP4)))

mx.save_safetensors(os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors.safetensors"), out)
