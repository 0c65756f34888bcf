#!/usr/bin/env bash
# Packs programs built for MLX with CUDA 13 for a machine with an H100 (sm_90), CUDA 13's libraries from PyPI (those of
# PyTorch, say) and no network. Not an installer: nothing of NVIDIA's is in the archive.
#
#   scripts/mlx-linux.sh DEST --backend cuda-13 --relocatable
#   cargo --config DEST/config.toml build --release --features mlx
#   scripts/mlx-linux/bundle.sh OUT.tar.xz DEST BINARY..
#
# There:
#
#   tar xf OUT.tar.xz
#   ln -s "$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])')" bundle/nvidia
#   LD_LIBRARY_PATH=bundle/mlx/lib bundle/bin/BINARY ..
#
# Kernels that MLX compiles at run time are kept in $MLX_PTX_CACHE_DIR.
set -euo pipefail
fail() {
    printf 'bundle.sh: %s\n' "$*" >&2
    exit 1
}
[ $# -ge 3 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
out=$1 dest=$2
shift 2
grep -qs '^# .* (cuda-13), .* soname plain,' "$dest/config.toml" ||
    fail "$dest is not what mlx-linux.sh prepares with --backend cuda-13 --relocatable"

new=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$new"' EXIT
bundle=$new/bundle
mkdir -p "$bundle"/{bin,mlx/lib}
for binary in "$@"; do
    [ -f "$binary" ] || fail "no file $binary"
    # Linked for another DEST, it would look for MLX there.
    objdump -p "$binary" | grep 'NEEDED *libmlxc\.so$' >/dev/null ||
        fail "$binary does not ask for plain libmlxc.so: build it with $dest/config.toml"
    strip -o "$bundle/bin/$(basename "$binary")" "$binary"
done
strip --strip-unneeded -o "$new/libmlx.so" "$dest/wheel/mlx/lib/libmlx.so"
python3 "$here/prune_fatbin.py" "$new/libmlx.so" "$bundle/mlx/lib/libmlx.so" 90
strip --strip-unneeded -o "$bundle/mlx/lib/libmlxc.so" "$dest/wheel/mlx/lib/libmlxc.so"
# NVRTC reads MLX's, CUTLASS's and CCCL's headers at run time.
cp -r "$dest/wheel/mlx/include" "$dest"/wheel/mlx_cuda_13-*.dist-info/licenses "$bundle/mlx/"
cp -r "$dest/wheel/mlx_cuda_13.libs" "$bundle/"
tar -c -C "$new" --sort=name --owner=0 --group=0 --numeric-owner bundle | xz -6 -T2 >"$new/packed"
mv "$new/packed" "$out"
printf '%s: %.1f MB\n' "$out" "$(awk -v bytes="$(stat -c %s "$out")" 'BEGIN { print bytes / 1e6 }')"
