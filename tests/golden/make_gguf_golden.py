#!/usr/bin/env python3
"""Tiny GGUF files, written by llama.cpp's converter and quantizer, with the logits of transformers in float32.

    python3 make_gguf_golden.py BASES OUT LLAMA_CPP QUANTIZE [NAME ...]

BASES holds the checkpoints of `make_golden.py gguf_variants.py BASES`, LLAMA_CPP is a source tree of llama.cpp
(convert_hf_to_gguf.py and conversion/), QUANTIZE its llama-quantize. Each OUT/NAME gets model.gguf and
golden.safetensors as make_golden.py writes it: the matrices of the GGUF are dequantized, what the converter did to
their layout is undone, and transformers computes with them. The vocabulary in the files is a placeholder.
"""
import json, shutil, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gguf_variants import GGUF_CASES
from make_golden import shuffles, write_answer

FLOAT = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}


def placeholder_vocab(model):
    import gguf
    n = model.hparams["vocab_size"]
    writer = model.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>"] + [f"\u2581t{i}" for i in range(3, n)])
    writer.add_token_scores([0.0] * 3 + [-float(i) for i in range(3, n)])
    writer.add_token_types([gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (n - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def convert(src, out, kind):
    """BASES/x -> a float GGUF, through the converter's class for the architecture."""
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    with tempfile.TemporaryDirectory() as tmp:
        tmp = shutil.copytree(src, Path(tmp) / "model")
        # The converter of gemma3 counts the tokens of a tokenizer.json to cut the embedding.
        vocab = {f"t{i}": i for i in range(json.loads((src / "config.json").read_text())["vocab_size"])}
        (tmp / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        hparams = ModelBase.load_hparams(tmp, False)
        if hparams["model_type"] == "gpt_neox":
            # The older spelling, which is the one that the converter asks for.
            hparams["rotary_pct"] = hparams["rope_parameters"]["partial_rotary_factor"]
        cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        cls = getattr(cls, "Ministral3Model", cls)

        def modify_tensors(self, *args):
            # stablelm's returns the tensors of head norms from a generator, which drops them.
            dropped = yield from cls.modify_tensors(self, *args)
            yield from dropped or ()

        changes = {"set_vocab": placeholder_vocab, "model_arch": cls.model_arch, "modify_tensors": modify_tensors}
        writer = type(cls.__name__, (cls,), changes)
        writer(tmp, getattr(gguf.LlamaFileType, FLOAT[kind]), out, eager=True, model_name="tiny", hparams=hparams).write()


def unpermute(w, heads):
    """The converter of llama interleaves the two halves of each head's rows."""
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


# Whose queries and keys are permuted, and whose norms have one added.
PERMUTED = {"llama", "granite", "smollm3", "mistral3", "olmo"}
SHIFTED = {"gemma", "gemma2", "gemma3", "nemotron"}
# What the files of an architecture hold besides parameters.
ROPE = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


def as_in_transformers(arch, name, w, config):
    """What the converter did to the tensor, undone."""
    if arch in PERMUTED and ".q_proj." in name:
        w = unpermute(w, config.num_attention_heads)
    if arch in PERMUTED and ".k_proj." in name:
        w = unpermute(w, config.num_key_value_heads)
    if arch in SHIFTED and name.endswith("norm.weight"):
        w = w - 1
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        w = w.T
    if arch == "gptneox" and ".query_key_value." in name:
        w = w.reshape(3, config.num_attention_heads, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)
    return w


def dequantized(path, model):
    """The tensors of a GGUF under transformers' names and in its layout."""
    import gguf
    reader, config = gguf.GGUFReader(path), model.config
    arch = reader.fields["general.architecture"].contents()
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    ids = {name: arch_id for arch_id, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(ids[arch], config.num_hidden_layers)
    out, used = {}, set()
    parameters = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n.endswith("layer_scalar")}}
    for name, p in parameters.items():
        if ".act_fn." in name:
            # In the metadata; the numbers of the layers in order.
            layer, key = int(name.split(".")[2]), name.rsplit(".", 1)[1]
            w = np.array(reader.fields[f"xielu.{key}"].contents()[layer], np.float32).reshape(p.shape)
            assert np.array_equal(w, p.detach().float().numpy()), name
            out[name] = torch.tensor(w)
            continue
        short = name.removeprefix("transformer.") if arch in ("gpt2", "starcoder") else name
        module, _, head = short.partition(".norms.")
        if head:
            short = f"{module}.weight"
        if short.endswith("layer_scalar"):
            short += ".weight"
        key = names.get_name(short, try_suffixes=(".weight", ".bias"))
        used.add(key)
        w = stored[key][int(head.split(".")[0])] if head else stored[key]
        w = as_in_transformers(arch, name, w, config)
        assert w.shape == tuple(p.shape), (name, w.shape, p.shape)
        out[name] = torch.tensor(np.ascontiguousarray(w))
    assert set(stored) - used <= ROPE, set(stored) - used
    return out


def make(name, case, bases, d, quantize):
    src = bases / case["base"]
    d.mkdir(parents=True, exist_ok=True)
    if case["type"] in FLOAT:
        convert(src, d / "model.gguf", case["type"])
    else:
        with tempfile.TemporaryDirectory() as tmp:
            convert(src, Path(tmp) / "f32.gguf", "f32")
            single = [x for t in case.get("tensor_types", ()) for x in ("--tensor-type", t)]
            command = [quantize, *single, *([] if single else ["--pure"]), f"{tmp}/f32.gguf", d / "model.gguf", case["type"], "1"]
            subprocess.run(command, check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(src, dtype=torch.float32, attn_implementation="eager").eval()
    weights = dequantized(d / "model.gguf", model)
    worst = max(float((p - weights[n]).abs().max()) for n, p in model.named_parameters())
    assert worst < 1e-6 or case["type"] != "f32", (name, worst)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(n == "lm_head.weight" or ".act_fn." in n for n in missing), (missing, unexpected)
    model.tie_weights()
    print(f"{name:28s} ok  {write_answer(model, shuffles(load_file(src / 'golden.safetensors')['input_ids']), d)}  quantizing moved a weight by {worst:.3f}", flush=True)


def main():
    bases, out, llama_cpp, quantize = (Path(a) for a in sys.argv[1:5])
    sys.path[1:1] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    failed = []
    for name, case in GGUF_CASES.items():
        if sys.argv[5:] and name not in sys.argv[5:]:
            continue
        try:
            make(name, case, bases, out / name, quantize)
        except Exception as e:
            failed.append(name)
            print(f"{name:28s} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    print(f"{len(failed)} failed: {failed}")


if __name__ == "__main__":
    main()
