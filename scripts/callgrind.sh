#!/usr/bin/env bash
# Counts the instructions of one decode step and of a prefill of 64 tokens on SmolLM2-135M, by function: figures that
# don't depend on how busy the machine is. No measure of time: loads that miss caches count as much as adds.
#
# usage: scripts/callgrind.sh [MODEL]     (default: the examples' model; about 6 minutes the first time)
#
# Valgrind does not know AVX-512, so these are the AVX2 kernels, pinned with --kernels. Each figure is the difference of
# two runs on one thread that differ in nothing else, so loading and the warm-up cancel out.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v valgrind >/dev/null; then
    apt-get install -y -qq valgrind >/dev/null || { echo 'valgrind is missing and could not be installed' >&2; exit 1; }
fi
# With the names of generic functions' parameters, which tell kernels apart.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/callgrind RUSTFLAGS='-C symbol-mangling-version=v0'
cargo build --quiet --release --example bench
bench=$CARGO_TARGET_DIR/release/examples/bench
counts=$(mktemp -d)
trap 'rm -rf "$counts"' EXIT
[ $# = 0 ] || model=(--model "$1")

# NAME CASES: the instructions of a run by function, as lines "COUNT FUNCTION" in $counts/NAME.
count() {
    valgrind --quiet --tool=callgrind --callgrind-out-file="$counts/out" "$bench" ${model[@]+"${model[@]}"} --threads 1 \
        --kernels avx2 --repeats 1 --cases "$2" >/dev/null
    callgrind_annotate --threshold=100 --show-percs=no --auto=no "$counts/out" |
        sed -En 's/ \[[^]]*\]$//; s/^ *([0-9,]+)  [^ :]*:(.*)$/\1 \2/p' |
        sed -E ':a; s/^([0-9]*),/\1/; ta; s/::\{/ {/g; s/[a-z_0-9]+:://g' >"$counts/$1"
}

# TITLE BEFORE AFTER DIVISOR: the ten functions in which AFTER counts most more than BEFORE, and their sum.
difference() {
    printf '\n%s\n' "$1"
    awk -v divisor="$4" '
        { count = $1; sub(/^[0-9]+ /, ""); sum[$0] += FNR == NR ? -count : count }
        END {
            for (name in sum) total += sum[name]
            printf "%14.0f 100.0 %%  all\n", total / divisor
            for (name in sum) printf "%14.0f %5.1f %%  %s\n", sum[name] / divisor, 100 * sum[name] / total, name
        }' "$counts/$2" "$counts/$3" | sort -rn | sed -n 1,11p
}

count none 16:1:1
count step 16:2:1
count prefill 16:1:1,64:1:1
echo 'Instructions with the AVX2 kernels and one thread'
difference 'a decode step after 16 tokens' none step 1
difference 'a token of a prefill of 64' none prefill 64
