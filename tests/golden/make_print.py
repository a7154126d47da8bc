"""Writes tests/golden/print.npz and print.txt for tests/print_test.cpp: arrays, and what NumPy prints of them.

print.txt holds for each array a line "# NAME PRECISION" and then the text. Made with numpy 2.4.6.
"""
import pathlib

import numpy as np

folder = pathlib.Path(__file__).parent
random = np.random.default_rng(3)
arrays = {
    "halves": np.array([1, 2.5, -3.25]),
    "thirds": np.arange(12).reshape(3, 4) / 3,
    "pi32": np.array([np.pi, 10, 100.125], np.float32),
    "tenth32": np.array([0.1, 0.2, 0.3], np.float32),
    "one": np.array([7.0]),
    "scalar": np.array(2.5),
    "scalar_int": np.array(-3),
    "scalar_bool": np.array(True),
    "zeros": np.zeros((2, 3)),
    "negative_zero": np.array([-0.0, 0.0, 1.0]),
    "tiny": np.array([1e-5, 2, 30]),
    "wide": np.array([0.5, 501.0]),
    "large32": np.array([1e6, 2e6 + 1], np.float32),
    "below_large32": np.array([999999, 5e5], np.float32),
    "large64": np.array([1e8, 3]),
    "below_large64": np.array([99999999.0, 3e5]),
    "exponents": np.array([1e300, 1e-5, -2.5e-300, 0]),
    "nonfinite": np.array([np.nan, np.inf, -np.inf, 1]),
    "nonfinite_only": np.array([np.nan, np.inf]),
    "nonfinite_exponents": np.array([np.nan, 1e-7, -np.inf]),
    "halves16": np.array([0.1, 1000 / 3, 5.5], np.float16),
    "large16": np.array([1024, 65504], np.float16),
    "rounding": np.array([0.12345, 0.00125, 2.00005, 9.99996]),
    "random32": random.standard_normal((5, 6)).astype(np.float32),
    "long_row": random.standard_normal(30),
    "three_axes": random.standard_normal((2, 3, 4)),
    "four_axes": np.arange(16).reshape(2, 2, 2, 2),
    "integers": np.array([[1, -20, 300], [4000, 5, 6]]),
    "integers32": np.arange(-40, 40, dtype=np.int32),
    "bytes": np.arange(0, 256, 15, dtype=np.uint8),
    "bools": np.array([[True, False], [False, True]]),
    "summary_row": np.arange(1001, dtype=np.float32),
    "summary_matrix": np.arange(4000).reshape(4, 1000),
    "summary_tall": np.arange(3000).reshape(600, 5) / 8,
    "summary_cube": np.arange(20 * 9 * 8).reshape(20, 9, 8),
    "not_summary": np.arange(1000),
}
with open(folder / "print.txt", "w") as file:
    for name, array in arrays.items():
        for precision in [4, 8]:
            file.write(f"# {name} {precision}\n{np.array2string(array, precision=precision)}\n")
np.savez_compressed(folder / "print.npz", **arrays)
