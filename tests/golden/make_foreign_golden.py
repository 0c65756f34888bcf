#!/usr/bin/env python3
"""Tiny checkpoints in the formats of other libraries, with the logits that transformers gives on the dequantized
weights in float32.

    python3 make_foreign_golden.py foreign.py OUT_DIR [NAME ...]

foreign.py has the formats and CASES. Each OUT_DIR/NAME gets config.json and model.safetensors as that library writes
them, and golden.safetensors as make_golden.py writes it. What the formats stand for is compared with the libraries' own
readers where they run without a GPU: transformers (fp8, bitnet) and, if it is installed, compressed-tensors.
"""
import importlib.util, json, sys, zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from make_golden import randomise, write_answer

torch.compiler.set_stance("force_eager")
try:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
    from compressed_tensors.quantization import QuantizationScheme
except ImportError:
    BaseCompressor = None


def read_by_library(parts, quantization):
    """The dequantized weight as the library reads it; None where none can."""
    method = quantization["quant_method"]
    if method == "fp8":
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize
        scale = parts["weight_scale_inv"]
        weight = parts["weight"]
        h, v = quantization["weight_block_size"] or weight.shape
        if weight.shape[0] % h or weight.shape[1] % v:
            return None
        return Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    if method == "bitnet" and "weight_scale" in parts:
        from transformers.integrations.bitnet import unpack_weights
        t, s = unpack_weights(parts["weight"], torch.float32), parts["weight_scale"].float()
        return t * s if "linear_class" in quantization else t / s
    if method == "bitnet":
        from transformers.integrations.bitnet import WeightQuant
        return WeightQuant.apply(parts["weight"].float())
    if BaseCompressor is None:
        return None
    if method == "awq":
        q, s, z = AutoAWQConverter(group_size=quantization["group_size"])._convert_gemm_module(parts["qweight"], parts["scales"], parts["qzeros"])
        groups = torch.arange(q.shape[1]) // quantization["group_size"]
        return (q - z[:, groups]).float() * s.float()[:, groups]
    if method == "compressed-tensors":
        for group in quantization["config_groups"].values():
            fmt = group.get("format", quantization["format"])
            reader = BaseCompressor.get_value_from_registry(fmt)
            if ("weight_packed" in parts) == ("pack" in fmt):
                wide = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in parts.items()}
                return reader.decompress(wide, QuantizationScheme(**{k: v for k, v in group.items() if k != "format"}))["weight"].float()
    return None


@torch.no_grad()
def make(name, case, out):
    torch.manual_seed(0)
    seed, d = zlib.crc32(name.encode()), out / name
    config = AutoConfig.for_model(case["model_type"], **case["config"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    randomise(model, seed)
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    tensors = {k: v.bfloat16() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    compared = 0
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or path == "lm_head" and not case["head"]:
            continue
        parts, dense = case["quantize"](module.weight.data.clone(), path)
        read = read_by_library(parts, case["quantization"])
        if read is not None:
            compared += 1
            # compressed-tensors computes nvfp4 in the type of E2M1's values, bfloat16.
            loose = 2**-7 if "nvfp4" in name or "mxfp4" in name else 2**-22
            assert ((read - dense).abs() <= loose * dense.abs()).all(), (path, (read - dense).abs().max())
        del tensors[path + ".weight"]
        tensors |= {f"{path}.{leaf}": part for leaf, part in parts.items()}
        module.weight.data = dense
    d.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(d)
    written = json.loads((d / "config.json").read_text()) | {"dtype": "bfloat16", "quantization_config": case["quantization"]}
    (d / "config.json").write_text(json.dumps(written, indent=2))
    save_file({k: v.contiguous() for k, v in tensors.items()}, d / "model.safetensors", metadata={"format": "pt"})
    (d / "model.safetensors").chmod(0o644)
    generators = (torch.Generator().manual_seed(seed + 1 + attempt) for attempt in range(20))
    prompts = (torch.randint(3, config.vocab_size, (1, 24), generator=g) for g in generators)
    print(f"{name:28s} ok  {write_answer(model, prompts, d)}  compared {compared}", flush=True)


def main():
    sys.path.insert(0, str(Path(sys.argv[1]).resolve().parent))
    spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    failed = []
    for name, case in cases.CASES.items():
        if sys.argv[3:] and name not in sys.argv[3:]:
            continue
        try:
            make(name, case, Path(sys.argv[2]))
        except Exception as e:
            failed.append(name)
            print(f"{name:28s} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    print(f"{len(failed)} failed: {failed}")


if __name__ == "__main__":
    main()
