#!/usr/bin/env bash
# Checks the MLX backend on a Mac: conformance and every golden on the graphics card, in exact arithmetic, then the
# speed of random weights in 4 bits, of llama-1b's shape. Needs Rust, Xcode's command line tools and cmake.
#
#   scripts/mlx-mac.sh [MODEL]      also answers a question with MODEL, a folder, a .gguf file or a name on the hub
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(uname -sm)" = 'Darwin arm64' ] || { echo "mlx-mac.sh: this is $(uname -sm), wanted Darwin arm64" >&2; exit 1; }
command -v cmake >/dev/null || { echo 'mlx-mac.sh: cmake is missing, which mlx-sys builds MLX with' >&2; exit 1; }
export MLX_DEVICE=mlx-gpu
cargo test -p rillm-tensor-core --features mlx --test conformance --test recurrent mlx
cargo test -p rillm --features mlx --test mlx
bench=(cargo run --release --features mlx --example bench -- --device mlx-gpu --prompt-tokens 512 --gen-tokens 256)
"${bench[@]}" --random-weights llama-1b --quantize 4:64
"${bench[@]}" --random-weights llama-1b
if [ $# -gt 0 ]; then
    cargo run --release --features mlx --example generate -- --device mlx-gpu --model "$1" 'Why is the sky blue?'
fi
