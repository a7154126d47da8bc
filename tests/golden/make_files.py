"""Writes tests/golden/files: small files by NumPy, PyTorch and the safetensors package, which tests/npy_test.cpp, npz_test.cpp and safetensors_test.cpp read.

Every array holds 0, 1, 2, ... in row-major order, minus 3 where the type has a sign; bool holds True where that is odd.
Made with numpy 2.4.6, torch 2.15.0 and safetensors 0.8.0.
"""
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

folder = pathlib.Path(__file__).parent / "files"
folder.mkdir(exist_ok=True)


def counting(dtype, shape=(2, 3, 4)):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    kind = np.dtype(dtype).kind
    return (values % 2 == 1) if kind == "b" else (values if kind == "u" else values - 3).astype(dtype)


arrays = {name: counting(name) for name in ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"]}
arrays["big_endian_float32"] = counting(">f4")
arrays["big_endian_int64"] = counting(">i8")
arrays["fortran"] = np.asfortranarray(counting("float32"))
arrays["fortran_matrix"] = np.asfortranarray(counting("int64", (3, 5)))
arrays["scalar"] = np.float32(2.5)
arrays["one_axis"] = counting("float64", (7,))
arrays["empty"] = np.zeros((0, 3), np.float32)
np.savez(folder / "stored.npz", **arrays)
np.savez_compressed(folder / "deflated.npz", zeros=np.zeros((300, 200), np.float32), random=np.random.default_rng(7).integers(0, 9, (40, 30)), **arrays)

np.save(folder / "matrix.npy", counting("float32", (3, 4)))
for version in [2, 3]:
    with open(folder / f"version{version}.npy", "wb") as file:
        np.lib.format.write_array(file, counting("float32", (3, 4)), version=(version, 0))

tensors = {name: torch.from_numpy(counting(name)) for name in ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]}
tensors["bfloat16"] = tensors["float32"].to(torch.bfloat16)
tensors["scalar"] = torch.tensor(2.5)
tensors["empty"] = torch.zeros(0, 3)
tensors["naïve \"name\"\n"] = torch.tensor([1.0])
save_file(tensors, folder / "torch.safetensors", metadata={"format": "pt", "note": "ü \\ \" \t \U0001f600"})
