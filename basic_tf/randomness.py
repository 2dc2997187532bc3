"""Every random choice of the project: a stateless integer hash.

A draw depends on (run seed, step, stream, index of the example in the global batch, element) and on nothing else, so
recomputation, the two passes of Algorithm 1, any microbatch size, any replica count, resumption, eager, graph, XLA and
DTensor all see the same bits. Only plain uint32 operations are used (xor, shift, multiply, add).

The mixing function is the 32-bit finaliser "lowbias32" (Chris Wellons, hash-prospector, public domain). A key has two
32-bit lanes, so that two streams share all their bits with probability 2**-64, not 2**-32.
"""

import zlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_GOLDEN = 0x9E3779B9
_LANE = 0x85EBCA6B
_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B


class Noise(NamedTuple):
    """What a random layer needs to know.

    key: uint32 [2], from `step_key`. examples: int32 [B], the index of each row in the global batch.
    """

    key: tf.Tensor
    examples: tf.Tensor


def stream_id(name: str) -> int:
    """A stable 32-bit number for the name of a stream (a layer's weight path, or the name of a choice)."""
    return zlib.crc32(name.encode())


def _u32(value) -> tf.Tensor:
    return tf.cast(value, tf.uint32)


def _constant(value: int) -> tf.Tensor:
    return tf.constant(value & 0xFFFFFFFF, tf.uint32)


def _mix(x: tf.Tensor) -> tf.Tensor:
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _constant(16)))
    x = x * _constant(_MULTIPLIER_1)
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _constant(15)))
    x = x * _constant(_MULTIPLIER_2)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _constant(16)))


def _fold(low: tf.Tensor, high: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Absorbs one 32-bit word into both lanes; shapes broadcast."""
    return (
        _mix(tf.bitwise.bitwise_xor(low, data) + _constant(_GOLDEN)),
        _mix(tf.bitwise.bitwise_xor(high, data * _constant(_LANE)) + low),
    )


def step_key(seed, step) -> tf.Tensor:
    """The key of one training step: uint32 [2] from a run seed and a step (Python ints or integer scalars)."""
    seed, step = tf.cast(seed, tf.int64), tf.cast(step, tf.int64)
    low, high = _constant(0x243F6A88), _constant(0x85A308D3)
    for word in (seed, tf.bitwise.right_shift(seed, tf.constant(32, tf.int64)), step):
        low, high = _fold(low, high, _u32(tf.bitwise.bitwise_and(word, tf.constant(0xFFFFFFFF, tf.int64))))
    return tf.stack([low, high])


def bits(noise: Noise, stream: str, count: int) -> tf.Tensor:
    """uint32 [B, count]: `count` random words for each example of the batch."""
    low, high = _fold(noise.key[0], noise.key[1], _constant(stream_id(stream)))
    low, high = _fold(low, high, _u32(noise.examples))  # [B] each
    elements = tf.range(count, dtype=tf.int32)
    elements = _u32(elements) * _constant(_GOLDEN)  # [count]
    low, high = tf.expand_dims(low, 1), tf.expand_dims(high, 1)
    return _mix(tf.bitwise.bitwise_xor(_mix(elements + high), low))


def uniform(noise: Noise, stream: str, shape: tuple[int, ...] = ()) -> tf.Tensor:
    """float32 [B, *shape] in [0, 1), from the upper 24 bits of each word (exact in float32)."""
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    words = tf.bitwise.right_shift(bits(noise, stream, count), _constant(8))
    values = tf.cast(tf.cast(words, tf.int32), tf.float32) * (1.0 / (1 << 24))
    return tf.reshape(values, (-1, *shape))


def _mix_numpy(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(_MULTIPLIER_1)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(_MULTIPLIER_2)
    return x ^ (x >> np.uint32(16))


def _fold_numpy(low, high, data):
    return _mix_numpy((low ^ data) + np.uint32(_GOLDEN)), _mix_numpy((high ^ (data * np.uint32(_LANE))) + low)


def step_key_numpy(seed: int, step: int) -> np.ndarray:
    """NumPy twin of `step_key`."""
    low, high = np.array([0x243F6A88], np.uint32), np.array([0x85A308D3], np.uint32)
    for word in (seed, seed >> 32, step):
        low, high = _fold_numpy(low, high, np.array([word & 0xFFFFFFFF], np.uint32))
    return np.concatenate([low, high])


def bits_numpy(key: np.ndarray, examples: np.ndarray, stream: str, count: int) -> np.ndarray:
    """NumPy twin of `bits`: uint32 [B, count]."""
    low, high = _fold_numpy(key[:1], key[1:], np.array([stream_id(stream)], np.uint32))
    low, high = _fold_numpy(low, high, np.asarray(examples).astype(np.uint32))
    elements = np.arange(count, dtype=np.uint32) * np.uint32(_GOLDEN)
    return _mix_numpy(_mix_numpy(elements[None, :] + high[:, None]) ^ low[:, None])


def uniform_numpy(
    key: np.ndarray, examples: np.ndarray, stream: str, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """NumPy twin of `uniform`: float32 [B, *shape] in [0, 1)."""
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    words = bits_numpy(key, examples, stream, count) >> np.uint32(8)
    return (words.astype(np.float32) / np.float32(1 << 24)).reshape((-1, *shape))
