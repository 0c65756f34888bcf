"""Writes processors.json and filters.json beside this file with mlx-lm's own sampling code (mlx-lm 0.32.2).

Run: python sampling.py
"""

import json
import math
import random
from pathlib import Path

import mlx.core as mx
from mlx_lm import sample_utils

HERE = Path(__file__).parent
VOCAB = 32
random.seed(5)
# What reaches the draw is what make_sampler has left of the log-probabilities.
sample_utils.categorical_sampling = lambda logprobs, temp: logprobs


def random_logits(scale):
    return [round(random.gauss(0, scale), 3) for _ in range(VOCAB)]


def as_mlx_names(options):
    return {k.replace("_context", "_context_size"): v for k, v in options.items()}


def processors():
    cases = []
    for options in [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "repetition_context": 5},
        {"presence_penalty": 0.7},
        {"presence_penalty": -0.4, "presence_context": 3},
        {"frequency_penalty": 0.6},
        {"frequency_penalty": 0.25, "frequency_context": 8},
        {"logit_bias": {3: 2.5, 17: -4.0}},
        {"logit_bias": {2: 9.5, 5: -30.0}, "repetition_penalty": 1.2, "presence_penalty": 0.5,
         "frequency_penalty": 0.3, "frequency_context": 12},
    ]:
        for length in (0, 6, 35):
            history = [random.randrange(12) for _ in range(length)]
            logits = random_logits(3)
            out = mx.array([logits])
            for process in sample_utils.make_logits_processors(**as_mlx_names(options)):
                out = process(mx.array(history, dtype=mx.int32), out)
            cases.append({"history": history, "logits": logits, "options": options,
                          "processed": [float(f"{x:.7g}") for x in out[0].tolist()]})
    return cases


def masked(logprobs):
    return [None if x == -math.inf else float(f"{x:.7g}") for x in logprobs[0].tolist()]


def log_softmax(logits):
    logits = mx.array([logits])
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def temperature_first(logits, o):
    """mlx-lm's filters on logits that are already divided by the temperature."""
    x = log_softmax([v / o["temperature"] for v in logits])
    if o.get("top_k"):
        x = sample_utils.apply_top_k(x, o["top_k"])
    if 0 < o.get("top_p", 0) < 1:
        x = sample_utils.apply_top_p(x, o["top_p"])
    if o.get("min_p"):
        x = sample_utils.apply_min_p(x, o["min_p"], o.get("min_tokens_to_keep", 1))
    if o.get("xtc_probability"):
        x = sample_utils.apply_xtc(x, o["xtc_probability"], o["xtc_threshold"], o.get("xtc_exempt", []))
    return x


def filters():
    names = {"temperature": "temp", "xtc_exempt": "xtc_special_tokens"}
    cases = []
    for options in [
        {},
        {"top_p": 0.1}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_p": 1.0},
        {"min_p": 0.02}, {"min_p": 0.3}, {"min_p": 1.0}, {"min_p": 0.5, "min_tokens_to_keep": 6},
        {"top_k": 1}, {"top_k": 7}, {"top_k": 31},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"xtc_probability": 1.0, "xtc_threshold": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.03, "xtc_exempt": [0, 4, 11]},
        {"top_p": 0.8, "min_p": 0.1, "top_k": 5},
        {"top_p": 0.95, "min_p": 0.05, "min_tokens_to_keep": 3, "top_k": 9,
         "xtc_probability": 1.0, "xtc_threshold": 0.08, "xtc_exempt": [1, 2, 3]},
    ]:
        for scale in (1, 4):
            logits = random_logits(scale)
            for order in ("mlx_lm", "temperature_first"):
                o = {"temperature": 0.7, **options}
                if order == "mlx_lm":
                    sampler = sample_utils.make_sampler(**{names.get(k, k): v for k, v in o.items()})
                    out = sampler(log_softmax(logits))
                else:
                    out = temperature_first(logits, o)
                cases.append({"options": {**o, "order": order}, "logits": logits, "logprobs": masked(out)})
    # Tokens as probable as the last that top_p keeps are kept.
    logits = [2.0, 1.0, 1.0, 1.0, 0.0]
    out = sample_utils.make_sampler(temp=1.0, top_p=0.5)(log_softmax(logits))
    cases.append({"options": {"temperature": 1.0, "top_p": 0.5}, "logits": logits, "logprobs": masked(out)})
    return cases


for name, cases in [("processors", processors()), ("filters", filters())]:
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n")
