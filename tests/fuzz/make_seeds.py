"""Writes tests/fuzz/seeds/FORMAT: small files of each format, from which the fuzzers and tests/hostile_files_test.cpp start.

Made with numpy 2.4.6, torch 2.15.0, safetensors 0.8.0 and Pillow 13.0.0.
"""
import gzip
import io
import pathlib
import struct

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

seeds = pathlib.Path(__file__).parent / "seeds"


def write(path, data):
    path = seeds / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def npy(array, version=None):
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array), version=version)
    return out.getvalue()


def npz(save_function, **arrays):
    out = io.BytesIO()
    save_function(out, **arrays)
    return out.getvalue()


def idx(kind, array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def picture(mode, name, **options):
    pixels = np.random.default_rng(1).integers(0, 255, (9, 14, 4)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, name, **options)
    return out.getvalue()


counting = np.arange(12)
write("npy/float32.npy", npy(counting.reshape(3, 4).astype("<f4")))
write("npy/fortran.npy", npy(np.asfortranarray(counting.reshape(2, 3, 2).astype(">f8"))))
write("npy/bool_version2.npy", npy(counting % 2 == 0, (2, 0)))
write("npy/scalar.npy", npy(np.int16(3)))
write("npz/stored.npz", npz(np.savez, a=counting.astype("f4"), b=counting.reshape(3, 4) % 2 == 0))
write("npz/deflated.npz", npz(np.savez_compressed, a=np.zeros((20, 30), "f4"), b=counting))
write("gzip/zeros.gz", gzip.compress(bytes(1000), mtime=0))
write("gzip/text.gz", gzip.compress(bytes(range(200)) * 2, mtime=0))
write("idx/images.idx", idx(8, counting.reshape(3, 2, 2).astype("u1")))
write("idx/floats.idx", idx(13, counting.astype(">f4")))
write("idx/doubles.idx", idx(14, counting.reshape(2, 6).astype(">f8")))
tensors = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in ["float32", "float64", "bfloat16", "int8", "int64", "uint8", "bool"]}
write("safetensors/dtypes.safetensors", save(tensors, {"note": "\u00fc \"\\\n"}))
write("safetensors/empty.safetensors", save({"none": torch.zeros(0, 3), "scalar": torch.tensor(1.0)}))
weights = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
optimizer = {"param_groups.default.lr": torch.tensor(0.1, dtype=torch.float64), "state.weight.step": torch.tensor(3)}
write("checkpoint/small.safetensors", save(
    {**{"model." + k: v for k, v in weights.items()}, **{"optimizer." + k: v for k, v in optimizer.items()}, "user.average": torch.ones(2)},
    {"fovea.format": "checkpoint 1", "fovea.step": "3", "fovea.random_seed": "1", "fovea.random_offset": "18446744073709551615",
     "fovea.position.epoch": "2", "user.note": "text"}))
for mode in ["L", "LA", "RGB", "RGBA", "P", "1"]:
    write(f"image/{mode}.png", picture(mode, "png"))
write("image/grey.jpg", picture("L", "jpeg", quality=50))
write("image/colour.jpg", picture("RGB", "jpeg", quality=80))
write("image/progressive.jpg", picture("RGB", "jpeg", progressive=True, quality=60))
write("image/colour.bmp", picture("RGB", "bmp"))
write("image/palette.bmp", picture("P", "bmp"))
