#!/usr/bin/env python3
"""Zeroes the GPU code of a CUDA shared library for all but the given architectures: it packs to a fraction.

    prune_fatbin.py IN.so OUT.so ARCH..     e.g. 90, which keeps sm_90 and sm_90a

Headers and offsets stay as they are: the driver picks the entry of its own device and never reads the others. NVIDIA's
nvprune takes objects and static libraries only.
"""

import struct
import sys


def section(elf, wanted):
    """The bounds of the named section of a 64-bit ELF file."""
    (headers,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", elf, headers + size * index) for index in range(count)]
    for name, _, _, _, offset, length in rows:
        start = rows[names][4] + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return offset, offset + length
    sys.exit(f"prune_fatbin.py: no section {wanted.decode()}")


source, target, *architectures = sys.argv[1:]
with open(source, "rb") as file:
    elf = bytearray(file.read())
kept = zeroed = 0
at, end = section(elf, b".nv_fatbin")
while at + 16 <= end:
    magic, _, header, length = struct.unpack_from("<IHHQ", elf, at)
    if magic != 0xBA55ED50:  # padding between two fat binaries
        at += 8
        continue
    entry, at = at + header, at + header + length
    while entry < at:
        # Of PTX and cubins alike: kind, version, the header's and the payload's bytes, and the architecture at 28.
        _, _, header, length = struct.unpack_from("<HHIQ", elf, entry)
        (architecture,) = struct.unpack_from("<I", elf, entry + 28)
        payload = entry + header
        if str(architecture) in architectures:
            kept += length
        else:
            elf[payload : payload + length] = bytes(length)
            zeroed += length
        entry = payload + length
    at = (at + 7) & ~7
if not kept:
    sys.exit(f"prune_fatbin.py: {source} has no code for {' or '.join(architectures) or 'no architecture'}")
with open(target, "wb") as file:
    file.write(elf)
print(f"GPU code: {kept / 1e6:.1f} MB kept, {zeroed / 1e6:.1f} MB zeroed")
