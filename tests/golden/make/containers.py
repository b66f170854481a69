"""Tiny files as the libraries of the formats' authors write them: containers.gguf, containers.safetensors.

    python3 -m venv ref && ref/bin/pip install gguf==0.19.0 safetensors==0.8.0 numpy==2.4.6
    ref/bin/python tests/golden/make/containers.py
    ref/bin/python tests/golden/make/containers.py --check FILE...   # reads files this project wrote
"""
import sys
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy

OUT = Path(__file__).resolve().parent.parent
HALVES = (np.arange(-32, 32, dtype=np.float32) / 8).reshape(2, 32)


def tensors():
    return {
        "enc.0.attn.q.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "conv.0.weight": np.arange(20, dtype=np.float32).reshape(2, 1, 10) / 16,
        "half": HALVES.astype(np.float16),
        "ids": np.array([1, -2, 2**40], dtype=np.int64),
        "exact": np.array([1 / 3, 1e300], dtype=np.float64),
        "small": np.array([-1, 0, 1], dtype=np.int8),
    }


def write_gguf(path):
    w = gguf.GGUFWriter(path, "hubert")
    w.add_uint32("hubert.block_count", 12)
    w.add_float32("hubert.attention.layer_norm_epsilon", 1e-5)
    w.add_bool("hubert.attention.pre_norm", True)
    w.add_string("general.name", "tiny é")
    w.add_uint8("t.u8", 255)
    w.add_int8("t.i8", -1)
    w.add_uint16("t.u16", 65535)
    w.add_int16("t.i16", -2)
    w.add_int32("t.i32", -3)
    w.add_uint64("t.u64", 2**64 - 1)
    w.add_int64("t.i64", -(2**62))
    w.add_float64("t.f64", 1 / 3)
    w.add_array("t.kernels", [10, 3, 3])
    w.add_array("t.reals", [0.5, 0.1])
    w.add_array("t.flags", [True, False])
    w.add_array("t.units", ["|", "E"])
    for name, value in tensors().items():
        w.add_tensor(name, value)
    q8 = gguf.quants.quantize(HALVES, gguf.GGMLQuantizationType.Q8_0)
    w.add_tensor("quantised", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    bf16 = gguf.quants.quantize(HALVES, gguf.GGMLQuantizationType.BF16)
    w.add_tensor("brain", bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def check(path):
    if path.endswith(".gguf"):
        reader = gguf.GGUFReader(path)
        for key, field in reader.fields.items():
            print(key, field.contents())
        for t in reader.tensors:
            packed = t.tensor_type.name in ("Q8_0", "BF16")
            values = gguf.quants.dequantize(t.data, t.tensor_type) if packed else t.data
            print(t.name, t.tensor_type.name, [int(d) for d in t.shape[::-1]], values.ravel()[:4])
    elif path.endswith(".npy"):
        print(np.load(path))
    else:
        with safetensors.safe_open(path, "numpy") as f:
            print(f.metadata())
            for name in f.keys():
                stored = f.get_slice(name)
                values = "" if stored.get_dtype() == "BF16" else f.get_tensor(name).ravel()[:4]
                print(name, stored.get_dtype(), stored.get_shape(), values)


if sys.argv[1:2] == ["--check"]:
    for name in sys.argv[2:]:
        check(name)
else:
    write_gguf(OUT / "containers.gguf")
    safetensors.numpy.save_file(tensors() | {"flag": np.array([True, False]), "scalar": np.array(7, dtype=np.uint8)},
                                OUT / "containers.safetensors", metadata={"format": "pt", "made": "by hand"})
