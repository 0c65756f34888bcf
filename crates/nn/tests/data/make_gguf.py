"""Writes tiny.gguf beside this file with the reference writer: `pip install gguf numpy`, then run it.

Each tensor of a block format comes with `<name>.expected`, what the reference dequantizes it to.
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

rng = np.random.default_rng(7)
writer = gguf.GGUFWriter(Path(__file__).with_name("tiny.gguf"), "llama")

writer.add_name("tiny")
writer.add_uint8("test.u8", 200)
writer.add_int8("test.i8", -3)
writer.add_uint16("test.u16", 65535)
writer.add_int16("test.i16", -300)
writer.add_uint32("test.u32", 4_000_000_000)
writer.add_int32("test.i32", -70_000)
writer.add_uint64("test.u64", 2**63)
writer.add_int64("test.i64", -(2**40))
writer.add_float32("test.f32", 1e-5)
writer.add_float64("test.f64", 0.1)
writer.add_bool("test.bool", True)
writer.add_string("test.text", "schöne Grüße")
writer.add_array("test.strings", ["<s>", "", "▁the"])
writer.add_array("test.floats", [0.0, -1.5, 2.25])
writer.add_array("test.integers", [1, -2, 3])
writer.add_array("test.bools", [True, False])
writer.add_array("test.nested", [[1, 2], [3]])

values = rng.standard_normal((2, 256)).astype(np.float32)
writer.add_tensor("f32", values)
writer.add_tensor("f16", values.astype(np.float16))
writer.add_tensor("vector", values[0, :5].copy())
writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))


def add(name: str, data: np.ndarray, kind: Type) -> None:
    writer.add_tensor(name, data, raw_dtype=kind)
    writer.add_tensor(f"{name}.expected", gguf.quants.dequantize(data, kind).reshape(values.shape))


for kind in (Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0):
    add(kind.name.lower(), gguf.quants.quantize(values, kind), kind)
# The reference reads these but does not write them: any codes do, with scales of a sane size.
for kind, halves in ((Type.Q4_K, (0, 1)), (Type.Q5_K, (0, 1)), (Type.Q6_K, (104,))):
    _, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (2, size), dtype=np.uint8)
    for half in halves:
        data.view(np.float16)[:, half] = rng.uniform(0.01, 0.1, 2)
    add(kind.name.lower(), data, kind)
# No codec: an error only when asked for.
_, size = gguf.GGML_QUANT_SIZES[Type.Q2_K]
writer.add_tensor("q2_k", np.zeros((1, size), dtype=np.uint8), raw_dtype=Type.Q2_K)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
