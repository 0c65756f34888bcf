#!/usr/bin/env bash
# Prepares MLX for the crate mlx-rs 0.33 on x86-64 Linux, for rillm and for any other crate: MLX and its headers from
# PyPI's wheel, mlx-c from the crate mlx-sys. Needs neither cmake nor libclang, and no crate is changed.
#
#   scripts/mlx-linux.sh DEST [--backend cpu|cuda-13|cuda-12] [--relocatable]
#   cargo --config DEST/config.toml build --release --features mlx
#
# DEST gets wheel/ (MLX), out/ (declarations for Rust) and config.toml, which stands in for the build script of mlx-sys.
# It must stay where it is while binaries are used. A second run with the same options only checks.
#
#   --backend      cpu, the default, is for tests: slow, and needs nothing else at run time. cuda-13 and cuda-12 need
#                  an NVIDIA driver and the libraries that the script lists; programs can be built without them.
#   --relocatable  binaries ask for plain libmlxc.so (LD_LIBRARY_PATH=DEST/wheel/mlx/lib) and not for the one in DEST,
#                  so that they run elsewhere: scripts/mlx-linux/bundle.sh packs them.
#
# Needs cargo, g++ 11 or newer (or what $CXX names), python3 with pip, and glibc 2.35 or newer.
set -euo pipefail
usage() { sed -n '2,17s/^# \{0,1\}//p' "$0"; }
fail() {
    printf 'mlx-linux.sh: %s\n' "$*" >&2
    exit 1
}

# What belongs together: the MLX that mlx-c in this mlx-sys was written for, and its wheels.
mlx=0.32.2 mlx_sys=0.7.0
declare -A sha256=(
    [cpu]=fc5d31b90fc4f457b2f9614ed45651a567d22a6a11a03d114a90a4e10bdd8878
    [cuda-13]=335094ccd1c0c6dc3e09c8caba207c8180602bacc0c38ba20c1d81e9456ab394
    [cuda-12]=35445ead9724855826f310b9085d57137d0a2c5381cc293cb6d86b03bb4feadf
)

dest='' backend=cpu soname=absolute
[ $# -gt 0 ] || { usage >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --backend) backend=${2-}; shift $(($# > 1)) ;;
        --backend=*) backend=${1#*=} ;;
        --relocatable) soname=plain ;;
        -*) fail "unknown option $1" ;;
        '') fail 'DEST is empty' ;;
        *) [ -z "$dest" ] || fail "one DEST, not also $1"; dest=$1 ;;
    esac
    shift
done
[ -n "$dest" ] || fail 'no DEST'
[ -n "$backend" ] && [ -n "${sha256[$backend]-}" ] || fail "unknown backend '$backend': cpu, cuda-13 or cuda-12"
[ "$(uname -sm)" = 'Linux x86_64' ] || fail "for Linux x86_64, and this is $(uname -sm)"

# All that is missing, at once.
read -ra cxx <<<"${CXX:-g++}"
missing=()
probe=$'#include <version>\n#if !defined __clang__ && __GNUC__ < 11\n#error old\n#endif'
"${cxx[@]}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null <<<"$probe" || missing+=("g++ 11 or newer (tried: ${cxx[*]})")
python3 -m pip --version >/dev/null 2>&1 || missing+=('python3 with pip')
cargo --version >/dev/null 2>&1 || missing+=('cargo')
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
printf 'glibc 2.35\n%s\n' "$libc" | sort -CV || missing+=("glibc 2.35 or newer (found: ${libc:-another})")
[ ${#missing[@]} -eq 0 ] || fail "missing: $(printf '%s, ' "${missing[@]}" | sed 's/, $//')"

here=$(cd "$(dirname "$0")" && pwd)/mlx-linux
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
[[ $dest$here != *[\'\"\\]* ]] || fail "no quotes or backslashes in paths: $dest, $here"
lib=$dest/wheel/mlx/lib
wheel=mlx_${backend//-/_}-$mlx

# The libraries of NVIDIA that this MLX asks for, and where.
list_libraries() {
    local headers=nvidia/cu13/include
    [ "$backend" = cuda-13 ] || headers=nvidia/cuda_runtime/include
    printf '\nTo run, this also needs:\n\n'
    objdump -p "$lib/libmlx.so" | awk '$1 == "NEEDED" && $2 ~ /^lib(cu|nv|nccl)/ { print "    " $2 }' | sort |
        sed 's/libcuda\.so.*/& (the driver)/'
    printf '\nThey are looked for in these folders of %s, then where the system looks:\n\n' "$dest/wheel"
    objdump -p "$lib/libmlx.so" | sed -n 's/^ *R[A-Z]*PATH *//p' | tr : '\n' | sed -n 's|.*/\(nvidia/\)|    \1|p'
    printf "\nCUDA's headers, for kernels compiled at run time: %s there, or \$CUDA_HOME/include.\n" "$headers"
    printf '\nFrom PyPI, if PyTorch for this CUDA has not brought them:\n\n    python3 -m pip install'
    sed -n 's/^Requires-Dist: \(nvidia[^ ;]*\).*/ "\1"/p' "$dest/wheel/$wheel.dist-info/METADATA" | tr -d '\n'
    # shellcheck disable=SC2016 # for the reader's shell
    printf '\n    ln -sfn "$(python3 -c "import nvidia; print(list(nvidia.__path__)[0])")" %q\n' "$dest/wheel/nvidia"
}

# config.toml is written last, and names all that went into DEST: where it is as it should be, so is the rest.
inputs=$(cat "$0" "$here"/{bindings.py,format.h,shim.cpp} | cksum)
config="# By scripts/mlx-linux.sh: MLX $mlx ($backend), mlx-sys $mlx_sys, soname $soname, inputs $inputs
# Replaces the build script of mlx-sys, on this target only: cargo --config '$dest/config.toml' ..
[target.x86_64-unknown-linux-gnu.mlx]
rustc-link-search = [\"native=$dest/link\"]
rustc-link-lib = [\"dylib=mlxc\"]
rustc-env = { OUT_DIR = \"$dest/out\" }"
ready() {
    [ -f "$dest/config.toml" ] && [ "$(<"$dest/config.toml")" = "$config" ] && [ -f "$lib/libmlx.so" ] &&
        [ -f "$lib/libmlxc.so" ] && [ -f "$dest/link/libmlxc.so" ] && [ -f "$dest/out/bindings.rs" ]
}

prepare() {
    local new manifest mlx_c
    rm -f "$dest/config.toml"
    new=$(mktemp -d "$dest/new.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$new'" EXIT

    if [ ! -d "$dest/wheel/$wheel.dist-info" ] || [ ! -f "$lib/libmlx.so" ]; then
        echo "mlx-$backend==$mlx --hash=sha256:${sha256[$backend]}" >"$new/requirements.txt"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$new" \
            --python-version 3.12 --platform manylinux_2_35_x86_64 --require-hashes -r "$new/requirements.txt"
        python3 -m zipfile -e "$new/$wheel"-*.whl "$new/wheel"
        [ ! -e "$dest/wheel" ] || mv "$dest/wheel" "$new/old"
        mv "$new/wheel" "$dest/wheel"
    fi

    # mlx-c's sources are in the crate, which cargo brings as a dependency of an empty one.
    mkdir "$new"/{src,out,link}
    touch "$new/src/lib.rs"
    printf '%s\n' '[package]' 'name = "empty"' 'edition = "2021"' '[workspace]' '[dependencies]' \
        "mlx-sys = { version = \"=$mlx_sys\", default-features = false }" >"$new/Cargo.toml"
    manifest=$(cargo metadata --quiet --format-version 1 --manifest-path "$new/Cargo.toml" | python3 -c '
import json, sys
print(*(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "mlx-sys"))')
    mlx_c=$(dirname "$manifest")/src/mlx-c
    python3 "$here/bindings.py" "$mlx_c/mlx/c" >"$new/out/bindings.rs"

    # One translation unit: the standard library's and MLX's headers are read once.
    printf '#include "%s"\n' "$here/format.h" "$mlx_c"/mlx/c/*.cpp "$here/shim.cpp" >"$new/mlxc.cpp"
    # A soname with a path: what is linked with it finds it there, without an rpath of its own.
    local name=(-Xlinker -soname -Xlinker "$lib/libmlxc.so")
    [ "$soname" = absolute ] || name=(-Xlinker -soname -Xlinker libmlxc.so)
    # The map shortens the paths in mlx-c's error messages.
    "${cxx[@]}" -std=c++20 -O2 -fPIC -shared -w -fmacro-prefix-map="$mlx_c/=" -I"$mlx_c" \
        -isystem "$dest/wheel/mlx/include" "$new/mlxc.cpp" -o "$new/libmlxc.so" "${name[@]}" -L"$lib" -lmlx \
        -Wl,-rpath,\$ORIGIN -Wl,--allow-shlib-undefined
    # What programs are linked with: the same symbols and soname and no libraries behind them, because some linkers
    # would ask for all of NVIDIA's.
    nm -D --defined-only "$new/libmlxc.so" | awk '$2 == "T" && $3 ~ /^_?(mlx|mach)_/ {
        print "void " $3 "(void) { __builtin_trap(); }" }' |
        "${cxx[@]}" -fPIC -shared -nostdlib -w "${name[@]}" -x c - -o "$new/link/libmlxc.so"
    mv "$new/libmlxc.so" "$lib/libmlxc.so"
    rm -rf "$dest"/{out,link}
    mv "$new/out" "$new/link" "$dest/"
    echo "$config" >"$new/config.toml"
    mv "$new/config.toml" "$dest/config.toml"
}

ready || prepare
printf "MLX %s (%s) is ready: cargo --config '%s/config.toml' ..\n" "$mlx" "$backend" "$dest"
[ "$backend" = cpu ] || list_libraries
