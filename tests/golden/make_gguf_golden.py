#!/usr/bin/env python3
"""Tiny GGUF files, written by llama.cpp's converter and quantizer, with the logits of transformers in float32.

    python3 make_gguf_golden.py BASES OUT LLAMA_CPP QUANTIZE [NAME ...]

BASES holds the checkpoints of `make_golden.py gguf_variants.py BASES` and of `make_rwkv7_golden.py BASES`, LLAMA_CPP is a source tree of llama.cpp
(convert_hf_to_gguf.py and conversion/), QUANTIZE its llama-quantize. Each OUT/NAME gets model.gguf and
golden.safetensors as make_golden.py writes it: the matrices of the GGUF are dequantized, what the converter did to
their layout is undone, and transformers computes with them. The vocabulary in the files is a placeholder.
"""
import json, re, shutil, subprocess, sys, tempfile
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


def spell(hparams):
    """Keys as in the files on the hub, which the converter asks for, where transformers has others."""
    kind = hparams["model_type"]
    if kind == "gpt_neox":
        hparams["rotary_pct"] = hparams["rope_parameters"]["partial_rotary_factor"]
    if kind == "granitemoehybrid":
        hparams["layer_types"] = [{"full_attention": "attention"}.get(kind, kind) for kind in hparams["layer_types"]]
    if kind == "nemotron_h":
        letters = {"mamba": "M", "linear_attention": "M", "mlp": "-", "moe": "E", "attention": "*", "full_attention": "*"}
        hparams["hybrid_override_pattern"] = "".join(letters[kind] for kind in hparams.pop("layers_block_type", None) or hparams["layer_types"])
        hparams.update(rms_norm_eps=hparams["layer_norm_epsilon"], num_hidden_layers=len(hparams["hybrid_override_pattern"]))
        if "E" not in hparams["hybrid_override_pattern"]:
            for key in ("n_routed_experts", "n_group", "topk_group", "num_experts_per_tok"):
                hparams.pop(key, None)
    if not hparams.get("num_local_experts") and kind == "granitemoehybrid":
        hparams.pop("num_experts_per_tok", None)
    if kind == "kimi_linear":
        full = [i + 1 for i, kind in enumerate(hparams["layer_types"]) if kind == "full_attention"]
        hparams["linear_attn_config"] = dict(full_attn_layers=full, head_dim=hparams["linear_head_dim"], num_heads=hparams["linear_num_heads"], short_conv_kernel_size=hparams["linear_conv_kernel_dim"])
        hparams.update(first_k_dense_replace=hparams["mlp_layer_types"].count("dense"), moe_router_activation_func="sigmoid")
        hparams.setdefault("num_shared_experts", hparams.get("n_shared_experts"))
    if kind in ("rwkv7", "phimoe"):
        hparams["architectures"] = [{"rwkv7": "RWKV7ForCausalLM", "phimoe": "PhiMoEForCausalLM"}[kind]]


# Names as in the files on the hub, where transformers has others and saves them.
HUB = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm", **{f"block_sparse_moe.{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")}}


def on_the_hub(name):
    for ours, theirs in HUB.items():
        name = name.replace(ours, theirs)
    return name


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
        spell(hparams)
        cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        cls = getattr(cls, "Ministral3Model", cls)

        def modify_tensors(self, tensor, name, bid):
            # stablelm's returns the tensors of head norms from a generator, which drops them.
            dropped = yield from cls.modify_tensors(self, tensor, on_the_hub(name), bid)
            yield from dropped or ()

        changes = {"set_vocab": placeholder_vocab, "model_arch": cls.model_arch, "modify_tensors": modify_tensors}
        if hparams["model_type"].startswith(("qwen3_next", "qwen3_5")):
            # There are no layers that predict further tokens, which these converters insist on otherwise.
            changes["no_mtp"] = True
        writer = type(cls.__name__, (cls,), changes)
        writer(tmp, getattr(gguf.LlamaFileType, FLOAT[kind]), out, eager=True, model_name="tiny", hparams=hparams).write()


def unpermute(w, heads):
    """The converter of llama interleaves the two halves of each head's rows."""
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


# Whose queries and keys are permuted, and whose norms have one added.
PERMUTED = {"llama", "granite", "granitemoe", "granitehybrid", "nemotron_h", "nemotron_h_moe", "smollm3", "mistral3", "olmo"}
SHIFTED = {"gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe"}
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
    if arch == "falcon-h1":
        w = w / falcon_factor(name, config, w)
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        w = w.T
    if arch == "gptneox" and ".query_key_value." in name:
        w = w.reshape(3, config.num_attention_heads, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)
    return w


def turns(gate, up):
    """gpt-oss has the rows of gates and of what they open take turns, as columns."""
    return np.stack([gate, up], 2).reshape(len(gate), -1, *gate.shape[2:])


# In a layer: what a mixture or latent attention has in other tensors, and how it is made of them.
STACKS = {
    "experts.gate_up_proj": (("ffn_gate_exps.weight", "ffn_up_exps.weight"), lambda *t: np.concatenate(t, 1)),
    "experts.up_proj": (("ffn_up_exps.weight",), lambda t: t),
    "experts.down_proj": (("ffn_down_exps.weight",), lambda t: t),
    "router.scale": (("ffn_gate_inp.scale",), lambda t: t),
    "router.per_expert_scale": (("ffn_down_exps.scale",), lambda t: t),
    "block_sparse_moe.input_linear.weight": (("ffn_gate_exps.weight", "ffn_up_exps.weight"), lambda *t: np.concatenate(t, 1)),
    "block_sparse_moe.output_linear.weight": (("ffn_down_exps.weight",), lambda t: t),
    "block_sparse_moe.router.layer.weight": (("ffn_gate_inp.weight",), lambda t: t),
    "shared_mlp.input_linear.weight": (("ffn_gate_shexp.weight", "ffn_up_shexp.weight"), lambda *t: np.concatenate(t)),
    "shared_mlp.output_linear.weight": (("ffn_down_shexp.weight",), lambda t: t),
    "mlp.shared_expert_gate.weight": (("ffn_gate_inp_shexp.weight",), lambda t: t.reshape(1, -1)),
    "e_score_correction_bias": (("exp_probs_b.bias",), lambda t: t),
    "self_attn.sinks": (("attn_sinks.weight",), lambda t: t),
    "self_attn.kv_b_proj.weight": (("attn_k_b.weight", "attn_v_b.weight"), lambda k, v: np.concatenate([k.swapaxes(1, 2), v], 1).reshape(-1, k.shape[1])),
}
LLAMA4 = {
    "experts.gate_up_proj": (("ffn_gate_exps.weight", "ffn_up_exps.weight"), lambda *t: np.concatenate(t, 1).swapaxes(1, 2)),
    "experts.down_proj": (("ffn_down_exps.weight",), lambda t: t.swapaxes(1, 2)),
}
GEMMA4 = {"experts.gate_up_proj": (("ffn_gate_up_exps.weight",), lambda t: t)}
KIMI = {"self_attn.conv1d.weight": (("ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"), lambda *t: np.concatenate([w.reshape(-1, 1, w.shape[-1]) for w in t]))}
GPT_OSS = {
    "experts.gate_up_proj": (("ffn_gate_exps.weight", "ffn_up_exps.weight"), lambda *t: turns(*t).swapaxes(1, 2)),
    "experts.gate_up_proj_bias": (("ffn_gate_exps.bias", "ffn_up_exps.bias"), turns),
    "experts.down_proj": (("ffn_down_exps.weight",), lambda t: t.swapaxes(1, 2)),
    "experts.down_proj_bias": (("ffn_down_exps.bias",), lambda t: t),
}
OWN = {"llama4": LLAMA4, "gemma4": GEMMA4, "kimi-linear": KIMI, "gpt-oss": GPT_OSS}


# What modules with a state have in tensors of other shapes and names.
STATES = {
    "conv1d.weight": (("ssm_conv1d.weight",), lambda t: t[:, None]),
    "conv.conv.weight": (("shortconv.conv.weight",), lambda t: t[:, None]),
    "A_log": (("ssm_a",), lambda t: np.log(-t)),
    ".D": (("ssm_d",), lambda t: t),
    "dt_bias": (("ssm_dt.bias",), lambda t: t),
    "mixer.norm.weight": (("ssm_norm.weight",), lambda t: t),
    "mamba.norm.weight": (("ssm_norm.weight",), lambda t: t),
    "expert_bias": (("exp_probs_b.bias",), lambda t: t),
    "linear_attn.in_proj_ba.weight": (("ssm_ba.weight",), lambda t: t),
    "linear_attn.in_proj_qkv.weight": (("attn_qkv.weight",), lambda t: t),
    "linear_attn.in_proj_z.weight": (("attn_gate.weight",), lambda t: t),
    "linear_attn.in_proj_b.weight": (("ssm_beta.weight",), lambda t: t),
    "linear_attn.in_proj_a.weight": (("ssm_alpha.weight",), lambda t: t),
    "linear_attn.out_proj.weight": (("ssm_out.weight",), lambda t: t),
    "linear_attn.norm.weight": (("ssm_norm.weight",), lambda t: t),
}


def by_key_head(qkv, z, config):
    """Queries, keys, values and gates, each of all heads, as Qwen3-Next has them: all that belongs to a key head together."""
    n, keys = config.linear_num_key_heads, config.linear_num_key_heads * config.linear_key_head_dim
    parts = [qkv[:keys], qkv[keys:2 * keys], qkv[2 * keys:], z]
    return np.concatenate([p.reshape(n, -1, p.shape[-1]) for p in parts], 1).reshape(-1, qkv.shape[-1])


def grouped(name, w, config):
    """Value heads, which take turns with the key heads, put back behind their key head."""
    keys, each = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    if "out_proj" in name:
        return grouped("", w.T, config).T
    plain = 2 * keys * config.linear_key_head_dim if "in_proj_qkv" in name or "conv1d" in name else 0
    values = w[plain:]
    back = values.reshape(each, keys, -1, *w.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    return np.concatenate([w[:plain], back])


def falcon_factor(name, config, w):
    """What the converter multiplies the tensor by."""
    last = name.split(".")[-2] if "." in name else name
    if name.endswith("mamba.in_proj.weight"):
        groups = config.mamba_n_groups * config.mamba_d_state
        runs = [config.mamba_d_ssm, config.mamba_d_ssm, groups, groups, config.mamba_n_heads]
        return config.ssm_in_multiplier * np.repeat(np.float32(config.ssm_multipliers), runs)[:, None]
    factors = {
        "down_proj": config.mlp_multipliers[1], "gate_proj": config.mlp_multipliers[0],
        "k_proj": config.key_multiplier * config.attention_in_multiplier, "q_proj": config.attention_in_multiplier,
        "v_proj": config.attention_in_multiplier, "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier, "lm_head": config.lm_head_multiplier, "embed_tokens": config.embedding_multiplier,
    }
    return factors.get(last, 1.0)


def from_stacks(arch, name, stored, config):
    """The names of the tensors that parameter `name` is made of, and its values; None if it is one tensor."""
    layer, _, rest = name.removeprefix("model.layers.").removeprefix("backbone.layers.").partition(".")
    if rest.endswith("in_proj_qkvz.weight"):
        keys = [f"blk.{layer}.attn_qkv.weight", f"blk.{layer}.attn_gate.weight"]
        return keys, by_key_head(*(stored[k] for k in keys), config)
    for end, (parts, join) in [*OWN.get(arch, {}).items(), *STACKS.items(), *STATES.items()]:
        if rest.endswith(end):
            keys = [f"blk.{layer}.{part}" for part in parts]
            if keys[0] not in stored:
                # A Granite without experts.
                keys = [k.replace("_shexp", "") for k in keys]
            w = join(*(stored[k] for k in keys))
            if arch in ("qwen35", "qwen35moe") and "linear_attn" in name and not name.endswith("norm.weight"):
                w = grouped(name, w, config)
            return keys, w
    return None


def dequantized(path, model):
    """The tensors of a GGUF under transformers' names and in its layout."""
    import gguf
    reader, config = gguf.GGUFReader(path), model.config
    arch = reader.fields["general.architecture"].contents()
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    ids = {name: arch_id for arch_id, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(ids[arch], config.num_hidden_layers)
    out, used = {}, set()
    parameters = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n.endswith(("layer_scalar", "e_score_correction_bias", "expert_bias"))}}
    for name, p in parameters.items():
        if ".act_fn." in name:
            # In the metadata; the numbers of the layers in order.
            layer, key = int(name.split(".")[2]), name.rsplit(".", 1)[1]
            w = np.array(reader.fields[f"xielu.{key}"].contents()[layer], np.float32).reshape(p.shape)
            assert np.array_equal(w, p.detach().float().numpy()), name
            out[name] = torch.tensor(w)
            continue
        if parts := from_stacks(arch, name, stored, config):
            keys, w = parts
            used.update(keys)
            assert w.size == p.numel(), (name, w.shape, p.shape)
            w = w.reshape(p.shape)
            out[name] = torch.tensor(np.ascontiguousarray(w))
            continue
        short = name.removeprefix("transformer.") if arch in ("gpt2", "starcoder") else name
        module, _, head = short.partition(".norms.")
        if head:
            short = f"{module}.weight"
        if short.endswith("layer_scalar"):
            short += ".weight"
        if arch.startswith("nemotron_h"):
            short = short.replace("model.", "backbone.", 1)
        short = on_the_hub(short).replace("forget_gate.", "")
        key = names.get_name(short, try_suffixes=(".weight", ".bias"))
        used.add(key)
        w = stored[key][int(head.split(".")[0])] if head else stored[key]
        w = as_in_transformers(arch, name, w, config)
        assert w.shape == tuple(p.shape), (name, w.shape, p.shape)
        out[name] = torch.tensor(np.ascontiguousarray(w))
    left = {t for t in set(stored) - used - ROPE if not t.startswith(f"blk.{config.num_hidden_layers}.")}
    assert not left, left
    return out


def from_rwkv7(name):
    """The stored name of RWKV-7's parameter `name`, without the vectors that shift rows."""
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    low = re.fullmatch(r"attn\.(\w)_lora\.lora\.(.*)", rest)
    if low:
        rest = f"time_mix_{low[1]}{ {'0.weight': 1, '2.weight': 2, '2.bias': 0}[low[2]]}.weight"
    module, _, kind = rest.rpartition(".")
    inside = {
        "attn_norm": "attn_norm", "ffn_norm": "attn_norm_2", "ffn.key": "channel_mix_key", "ffn.value": "channel_mix_value",
        "attn.r_proj": "time_mix_receptance", "attn.k_proj": "time_mix_key", "attn.v_proj": "time_mix_value",
        "attn.o_proj": "time_mix_output", "attn.g_norm": "time_mix_ln",
    }
    alone = {"attn.k_k": "time_mix_k_k", "attn.k_a": "time_mix_k_a", "attn.r_k": "time_mix_r_k", "ffn.x_k": "channel_mix_lerp_k"}
    top = {"model.embeddings": "token_embd", "model.layers.0.pre_norm": "token_embd_norm", "model.norm": "output_norm", "lm_head": "output"}
    whole, _, _ = name.rpartition(".")
    if whole in top:
        return f"{top[whole]}.{kind}"
    return f"blk.{layer}." + (f"{inside[module]}.{kind}" if module in inside else f"{alone[rest]}.weight" if rest in alone else rest)


def rwkv7(path, src):
    """mlx-lm's model of the checkpoint with the weights of a GGUF."""
    import gguf, mlx.core as mx
    from make_rwkv7_golden import Model, ModelArgs, Reference, tree_flatten
    tensors = gguf.GGUFReader(path).tensors
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in tensors}
    model, used, weights = Model(ModelArgs.from_dict(json.loads((src / "config.json").read_text()))), set(), {}
    for name, p in tree_flatten(model.parameters()):
        shift = re.fullmatch(r"model\.layers\.(\d+)\.attn\.x_(\w)", name)
        key = f"blk.{shift[1]}.time_mix_lerp_fused.weight" if shift else from_rwkv7(name)
        w = stored[key][["r", "w", "k", "v", "a", "g"].index(shift[2])] if shift else stored[key]
        weights[name] = mx.array(w.reshape(p.shape))
        used.add(key)
    left = set(stored) - used - {f"blk.0.time_mix_v{i}.weight" for i in range(3)}
    assert not left, left
    model.load_weights(list(weights.items()))
    return Reference(model)


def make(name, case, bases, d, quantize):
    src = bases / case["base"]
    d.mkdir(parents=True, exist_ok=True)
    if case["type"] in FLOAT:
        convert(src, d / "model.gguf", case["type"])
    else:
        with tempfile.TemporaryDirectory() as tmp:
            convert(src, Path(tmp) / "f32.gguf", "f32")
            single = [x for t in case.get("tensor_types", ()) for x in ("--tensor-type", t)]
            command = [quantize, *single, *([] if single or case["type"] == "mxfp4_moe" else ["--pure"]), f"{tmp}/f32.gguf", d / "model.gguf", case["type"], "1"]
            subprocess.run(command, check=True, capture_output=True)
    prompts = shuffles(load_file(src / "golden.safetensors")["input_ids"])
    if case["base"] == "base-rwkv7":
        print(f"{name:28s} ok  {write_answer(rwkv7(d / 'model.gguf', src), prompts, d)}", flush=True)
        return
    model = AutoModelForCausalLM.from_pretrained(src, dtype=torch.float32, attn_implementation="eager").eval()
    weights = dequantized(d / "model.gguf", model)
    worst = max(float((p - weights[n]).abs().max()) for n, p in model.named_parameters())
    assert worst < 1e-6 or case["type"] != "f32", (name, worst)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(n == "lm_head.weight" or ".act_fn." in n for n in missing), (missing, unexpected)
    model.tie_weights()
    print(f"{name:28s} ok  {write_answer(model, prompts, d)}  quantizing moved a weight by {worst:.3f}", flush=True)


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
