"""Weights and pictures that both sides of the comparison with timm make for themselves: NumPy alone.

Raw words of the Philox generator, whose algorithm fixes them; keyed by the tensor's name, so that the order does not
matter. Scales keep what flows through a network near 1, and make every bias, statistic and relative bias matter.
"""

import zlib

import numpy as np


def _even(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of `shape`, even in [-1, 1), from the name alone."""
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape, dtype=np.int64)))
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name in timm's state dict."""
    if name.endswith("num_batches_tracked"):
        return np.array(1000, np.int64)
    draw = _even(name, shape)
    if name.endswith("relative_position_bias_table"):
        return draw
    if name.endswith("gamma"):  # layer scale
        return np.float32(0.6) + np.float32(0.4) * draw
    if name.endswith("running_var"):
        return np.float32(1) + np.float32(0.5) * draw
    if len(shape) == 1:
        centre = 1 if name.endswith("weight") else 0
        return np.float32(centre) + np.float32(0.3) * draw
    return draw * np.float32(np.sqrt(3.0 / np.prod(shape[1:])))


def pictures(height: int, width: int) -> np.ndarray:
    """float32 [2, height, width, 3] in [-1, 1)."""
    return _even(f"pictures {height} x {width}", (2, height, width, 3))
