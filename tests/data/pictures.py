"""Small pictures and records for the tests of this folder."""

import numpy as np
import tensorflow as tf

from basic_tf.data.examples import serialize_example
from basic_tf.data.memory import InMemorySource

WORDS = ("apple", "boat", "cat", "drum", "egg", "fox", "goat", "hat", "ink", "jar")


def smooth(rng: np.random.Generator, height: int, width: int, slower: float = 1.0) -> np.ndarray:
    """uint8 [height, width, 3] with slow random gradients, so that half a pixel changes little."""
    y, x = np.mgrid[:height, :width] / slower
    waves = [
        np.sin(rng.uniform(0.02, 0.08) * x + rng.uniform(0.02, 0.08) * y + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    return tf.io.encode_png(picture).numpy()


def jpeg(picture: np.ndarray, quality: int = 95) -> bytes:
    return tf.io.encode_jpeg(picture, quality=quality, chroma_downsampling=False).numpy()


def source(count: int, seed: int = 0, side: int = 24, damaged=(), broken=(), encode=png) -> InMemorySource:
    """count records, each with its own picture, two captions and one or two labels; `broken` ones are no
    pictures.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        picture = smooth(rng, side, side)
        image = png(picture)[:-30] if i in broken else encode(picture)
        word = WORDS[i % len(WORDS)]
        captions = [f"a {word}, number {i}", f"{word}, red, round"]
        examples.append(serialize_example(image, captions, [i % 7, 7 + i % 3][: 1 + i % 2], f"record {i}"))
    names = [f"name {i}" for i in range(10)]
    return InMemorySource(examples, {"label_names": names}, damaged)
