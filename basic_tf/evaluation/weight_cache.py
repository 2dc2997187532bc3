"""Zero-shot classifiers on disk: ImageNet's is 80,000 sentences, and they change only with the text tower."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

_PROBES = ("a photo of a cat.", "the quick brown fox", "1234")


class WeightCache:
    """A folder of classifiers, named by what they follow from: the prompts, and what the encoder makes of three sentences.

    So another checkpoint of the same run, or other weights at the same step, never find each other's. A file that cannot be
    read is made again.
    """

    def __init__(self, folder: str, encoder):
        self._folder = folder
        self._encoder_key = np.ascontiguousarray(encoder.encode_text(_PROBES), np.float32).tobytes()

    def weights(self, prompts: Sequence[Sequence[str]], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The classifier for these prompts, float32 [C, E]; `make` is called where there is none yet."""
        digest = hashlib.sha256(self._encoder_key + json.dumps(prompts, ensure_ascii=False).encode())
        path = os.path.join(self._folder, f"{digest.hexdigest()[:32]}.npy")
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path, "rb") as file:
                content = file.read()
            try:
                found = np.load(io.BytesIO(content), allow_pickle=False)
            except (ValueError, EOFError, OSError):
                found = None
            if found is not None and found.ndim == 2 and len(found) == len(prompts):
                return found
        made = make()
        buffer = io.BytesIO()
        np.save(buffer, made, allow_pickle=False)
        tf.io.gfile.makedirs(self._folder)
        with tf.io.gfile.GFile(path + ".new", "wb") as file:
            file.write(buffer.getvalue())
        tf.io.gfile.rename(path + ".new", path, overwrite=True)
        return made
