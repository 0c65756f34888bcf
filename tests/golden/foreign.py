"""Checkpoints in the formats of other libraries (make_foreign_golden.py): the formats, written from their definitions,
and the cases. A format is a function from a weight [out, in] and its module's name to the tensors that are stored beside
each other in the module, and to the float32 weight that they stand for.
"""
import numpy as np
import torch

F8 = torch.float8_e4m3fn
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def words(codes, bits):
    """Rows of codes as rows of int32: one little-endian bit stream a row."""
    b = ((codes.numpy()[..., None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(len(codes), -1)
    b = np.pad(b, ((0, 0), (0, -b.shape[1] % 32)))
    return torch.from_numpy(np.packbits(b, axis=1, bitorder="little").view("<i4").copy())


def integers(w, bits, g_idx, symmetric, dtype):
    """Codes [out, in], zero points and scales [out, groups], and what they stand for."""
    groups, top = int(g_idx.max()) + 1, 2**bits - 1
    s, z = torch.zeros(len(w), groups), torch.zeros(len(w), groups, dtype=torch.long)
    for g in range(groups):
        part = w[:, g_idx == g]
        low, high = part.amin(1), part.amax(1)
        step = 2 * part.abs().amax(1) / top if symmetric else (high - low) / top
        s[:, g] = step.clamp(min=1e-4).to(dtype).float()
        z[:, g] = 2 ** (bits - 1) if symmetric else (-low / s[:, g]).round().clamp(0, top).long()
    q = ((w / s[:, g_idx]).round().long() + z[:, g_idx]).clamp(0, top)
    return q, z, s, (q - z[:, g_idx]).float() * s[:, g_idx]


def runs(cols, group):
    return torch.arange(cols) // (cols if group == -1 else group)


def gptq(bits, group, symmetric, version, shuffled=False, biases=False):
    def quantize(w, name):
        g_idx = runs(w.shape[1], group)
        if shuffled:
            g_idx = g_idx[torch.randperm(len(g_idx), generator=torch.Generator().manual_seed(len(name)))]
        q, z, s, dense = integers(w, bits, g_idx, symmetric, torch.float16)
        stored = (z - 1 if version == 1 else z) & (2**bits - 1)
        out = {"qweight": words(q, bits).T, "qzeros": words(stored.T, bits), "scales": s.T.half(), "g_idx": g_idx.int()}
        # Older releases of AutoGPTQ store a bias for every module.
        return out | ({"bias": torch.zeros(len(w), dtype=torch.float16)} if biases else {}), dense
    config = dict(quant_method="gptq", bits=bits, group_size=group, sym=symmetric, desc_act=shuffled, damp_percent=0.01, true_sequential=True)
    return quantize, config | ({"checkpoint_format": "gptq_v2"} if version == 2 else {})


def awq(group):
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the outputs that the nibbles of a word hold, lowest first
    def pack(codes):
        return words(codes.reshape(len(codes), -1, 8)[:, :, order].reshape(len(codes), -1), 4)
    def quantize(w, name):
        q, z, s, dense = integers(w, 4, runs(w.shape[1], group), False, torch.float16)
        return {"qweight": pack(q.T), "qzeros": pack(z.T), "scales": s.T.half()}, dense
    return quantize, dict(quant_method="awq", bits=4, group_size=group, version="gemm", zero_point=True, modules_to_not_convert=None)


def by_blocks(scales, block, shape):
    return scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]


def fp8(block, exponents=False, static=False, scale_name="weight_scale_inv"):
    """block: rows and columns that share a scale, None for all; -1 for the whole extent."""
    def quantize(w, name):
        h, v = [n if b == -1 else b for n, b in zip(w.shape, block or (-1, -1))]
        down, across = -(-w.shape[0] // h), -(-w.shape[1] // v)
        s = torch.stack([torch.stack([w[i * h:(i + 1) * h, j * v:(j + 1) * v].abs().max() for j in range(across)]) for i in range(down)]) / 448
        s = torch.exp2(torch.log2(s).ceil()) if exponents else s
        full = by_blocks(s, (h, v), w.shape)
        q = (w / full).to(F8)
        stored = s.reshape(()) if block is None else s.to(torch.float8_e8m0fnu) if exponents else s
        extra = {"activation_scale": torch.tensor(0.02)} if static else {}
        return {"weight": q, scale_name: stored, **extra}, q.float() * full
    config = dict(quant_method="fp8", activation_scheme="static" if static else "dynamic", weight_block_size=block, modules_to_not_convert=["lm_head"])
    return quantize, config | ({"scale_fmt": "ue8m0", "fmt": "e4m3"} if exponents else {})


def scheme(targets, **weights):
    weights = dict(dynamic=False, observer="minmax", **weights)
    return dict(targets=targets, weights=weights, input_activations=None, output_activations=None)


def compressed(fmt, *groups):
    return dict(quant_method="compressed-tensors", format=fmt, quantization_status="compressed", ignore=["lm_head"], kv_cache_scheme=None, config_groups={f"group_{i}": g for i, g in enumerate(groups)})


def ct_packed(bits, group, symmetric, dtype=torch.bfloat16):
    def quantize(w, name):
        q, z, s, dense = integers(w, bits, runs(w.shape[1], group), symmetric, dtype)
        out = {"weight_packed": words(q, bits), "weight_scale": s.to(dtype), "weight_shape": torch.tensor(w.shape)}
        return out | ({} if symmetric else {"weight_zero_point": words(z.T, bits).T}), dense
    strategy = dict(strategy="channel", group_size=None) if group == -1 else dict(strategy="group", group_size=group)
    return quantize, scheme(["Linear"], num_bits=bits, type="int", symmetric=symmetric, **strategy)


def ct_int8(w, name):
    s = (w.abs().amax(1, keepdim=True) / 127).bfloat16()
    q = (w / s.float()).round().clamp(-128, 127)
    return {"weight": q.to(torch.int8), "weight_scale": s}, q * s.float()


def ct_fp8_rows(w, name):
    s = (w.abs().amax(1, keepdim=True) / 448).bfloat16()
    q = (w / s.float()).to(F8)
    return {"weight": q, "weight_scale": s, "input_scale": torch.tensor([0.02])}, q.float() * s.float()


def e2m1(x):
    """Codes of the nearest E2M1 values, and these two a byte."""
    q = (x.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (x < 0)
    return torch.cat([E2M1, -E2M1])[q], (q[:, ::2] | q[:, 1::2] << 4).to(torch.uint8)


def ct_nvfp4(w, name):
    overall = 448 * 6 / w.abs().max()
    s = (w.unflatten(1, (-1, 16)).abs().amax(2) / 6 * overall).to(F8)
    full = (s.float() / overall).repeat_interleave(16, 1)
    values, packed = e2m1(w / full)
    return {"weight_packed": packed, "weight_scale": s, "weight_global_scale": overall.reshape(1), "input_global_scale": torch.ones(1)}, values * full


def ct_mxfp4(w, name):
    exponent = torch.log2(w.unflatten(1, (-1, 32)).abs().amax(2) / 6).ceil()
    full = torch.exp2(exponent).repeat_interleave(32, 1)
    values, packed = e2m1(w / full)
    return {"weight_packed": packed, "weight_scale": (exponent + 127).to(torch.uint8)}, values * full


def ternary(w):
    s = w.abs().mean()
    return (w / s).round().clamp(-1, 1), s


def bitnet(kind):
    def quantize(w, name):
        t, s = ternary(w)
        if kind == "online":
            scale = 1.0 / w.abs().mean().clamp(min=1e-5)
            return {"weight": w.bfloat16()}, (w * scale).round().clamp(-1, 1) / scale
        u = (t + 1).to(torch.uint8).reshape(4, -1, w.shape[1])
        packed = u[0] | u[1] << 2 | u[2] << 4 | u[3] << 6
        scale = (s if kind == "auto" else 1 / s).bfloat16().reshape(1)
        return {"weight": packed, "weight_scale": scale}, t * scale.float() if kind == "auto" else t / scale.float()
    config = dict(quant_method="bitnet", modules_to_not_convert=None if kind == "online" else ["lm_head"])
    return quantize, config | ({} if kind == "plain" else dict(linear_class="autobitlinear", quantization_mode="online" if kind == "online" else "offline"))


def each(rules):
    """The format of the first rule whose word is in the module's name."""
    return lambda w, name: next(quantize for word, quantize in rules if word in name)(w, name)


S = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=96, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
def case(model_type, form, **kw): return dict(model_type=model_type, quantize=form[0], quantization=form[1], head=kw.pop("head", False), config={**S, **kw})

PACKED, MIXED = ct_packed(4, 32, False), ct_packed(4, -1, True)
INT8 = scheme(["Linear"], num_bits=8, type="int", symmetric=True, strategy="channel")
ROWS = scheme(["re:.*self_attn.*"], num_bits=8, type="float", symmetric=True, strategy="channel")
NVFP4 = scheme(["Linear"], num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
MXFP4 = scheme(["Linear"], num_bits=4, type="float", symmetric=True, strategy="group", group_size=32)
CASES = {
    "foreign-awq": case("qwen2", awq(64), hidden_size=128, intermediate_size=128, head_dim=32),
    "foreign-gptq": case("llama", gptq(4, 32, False, 1, biases=True)),
    "foreign-gptq-act-order": case("llama", gptq(4, 32, False, 2, shuffled=True), tie_word_embeddings=True),
    "foreign-gptq-3bit-rows": case("llama", gptq(3, -1, True, 1), tie_word_embeddings=True),
    "foreign-gptq-8bit-g16": case("llama", gptq(8, 16, False, 1), head=True),
    "foreign-fp8-blocks": case("qwen3", fp8([64, 64]), intermediate_size=96),
    "foreign-fp8-tensors": case("mistral", fp8(None, static=True)),
    "foreign-fp8-exponents": case("llama", fp8([32, 32], exponents=True)),
    "foreign-ct-int4": case("llama", (PACKED[0], compressed("pack-quantized", PACKED[1]))),
    "foreign-ct-int4-fp8": case("llama", (each([("self_attn", ct_fp8_rows), ("mlp", MIXED[0])]), compressed("mixed-precision", {**MIXED[1], "targets": ["re:.*mlp.*"], "format": "pack-quantized"}, {**ROWS, "format": "float-quantized"}))),
    "foreign-ct-int8": case("llama", (ct_int8, compressed("int-quantized", INT8))),
    "foreign-ct-nvfp4": case("llama", (ct_nvfp4, compressed("nvfp4-pack-quantized", NVFP4))),
    "foreign-ct-mxfp4": case("llama", (ct_mxfp4, compressed("mxfp4-pack-quantized", MXFP4))),
    "foreign-bitnet": case("llama", bitnet("plain")),
    "foreign-bitnet-auto": case("bitnet", bitnet("auto")),
    "foreign-bitnet-online": case("llama", bitnet("online")),
}
