#!/usr/bin/env python3
"""PyTorch's speed through transformers in bf16: MODEL THREADS PROMPT:GEN:BATCH,.. -> one JSON line a case.
Eager, attention by scaled_dot_product_attention, greedy; prompts in parts of 512."""
import json
import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

path, threads, cases = sys.argv[1:]
torch.set_num_threads(int(threads))
start = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
load = time.perf_counter() - start
generator = torch.Generator().manual_seed(1)


def feed(tokens, cache):
    logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1].argmax(-1, keepdim=True)


@torch.inference_mode()
def measure(prompt, steps, batch):
    """Prefills `batch` prompts and decodes `steps` tokens after them; the seconds of both."""
    cache = DynamicCache()
    tokens = torch.randint(1000, 31000, (batch, prompt), generator=generator)
    start = time.perf_counter()
    for part in tokens.split(512, dim=1):
        after = feed(part, cache)
    first = time.perf_counter() - start
    for _ in range(steps):
        after = feed(after, cache)
    return first, time.perf_counter() - start - first


measure(16, 4, 1)
for case in cases.split(","):
    prompt, generate, batch = map(int, case.split(":"))
    first, rest = measure(prompt, generate - 1, batch)
    print(json.dumps(dict(
        prompt_tokens=prompt, batch=batch, prompt_tps=batch * prompt / first,
        generation_tps=batch * (generate - 1) / rest if generate > 1 else 0.0, load_s=load,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)), flush=True)
