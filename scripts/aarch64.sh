#!/usr/bin/env bash
# The workspace's tests for aarch64 on an x86-64 machine with Debian or Ubuntu: cross compiler and emulator from the
# distribution, the standard library from rustup or, where rustup can't fetch it, from the distribution too.
#
#   scripts/aarch64.sh DEST [ARGUMENT of cargo test ..]     e.g. -p rillm-quant; else --workspace
#
# DEST gets the toolchain (if the distribution's is needed) and the build. Installing packages needs root.
#
# Every table of kernels that the emulated processor can run is tested, and models run on the fastest:
#
#   QEMU_CPU=cortex-a72                 neon
#   QEMU_CPU=cortex-a76 or neoverse-n1  neon-dotprod
#   QEMU_CPU=max, or unset              neon-i8mm
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
dest=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

# Installs what is not there yet.
install() {
    local missing=() package
    for package in "$@"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# The distribution's compiler and both of its standard libraries, unpacked into DEST: rustup's stay as they are, and
# the arm64 package need not be installable on this machine.
debian_rustc() {
    local root=$dest/root deb=$dest/deb library
    if [ ! -x "$dest/rustc" ]; then
        dpkg --add-architecture arm64
        apt-get update -qq
        # The compiler's own shared library is a package of its own.
        library=$(apt-cache depends libstd-rust-web-dev | awk '$1 == "Depends:" && $2 ~ /^libstd-rust-web-[0-9]/ { print $2 }')
        mkdir -p "$deb"
        # apt downloads as a user who may not write here, and says so.
        (cd "$deb" && apt-get download -qq rustc-web libstd-rust-web-dev libstd-rust-web-dev:arm64 "$library" 2>/dev/null)
        local package
        for package in "$deb"/*.deb; do
            dpkg -x "$package" "$root"
        done
        rm -r "$deb"
        printf '#!/bin/sh\nexport LD_LIBRARY_PATH=%q\nexec %q --sysroot %q "$@"\n' \
            "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/rustc" "$root/usr" >"$dest/rustc"
        chmod +x "$dest/rustc"
    fi
    export RUSTC=$dest/rustc
}

install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
rustup target add "$target" >/dev/null 2>&1 || debian_rustc
"${RUSTC:-rustc}" --version
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
# Emulated code is slow: it is worth optimizing.
export CARGO_PROFILE_DEV_OPT_LEVEL=${CARGO_PROFILE_DEV_OPT_LEVEL:-3}
export CARGO_TARGET_DIR=$dest/target
# Without documentation tests: rustdoc has no library for the target where the distribution's compiler is used.
exec cargo test --tests --target "$target" "${@:---workspace}"
