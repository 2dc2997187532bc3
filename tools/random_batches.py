"""Random pictures and tokens in the place of a data set, for measuring steps."""

import numpy as np
import tensorflow as tf


class RandomBatches:
    """One batch, over and over: what a stage asks of its batches."""

    class source:
        """What a stage asks of its source."""

        count, metadata = 1 << 30, {}

    def __init__(self, side: int, length: int, vocabulary_size: int, seed: int, batch_size: int):
        """side: of the pictures, in pixels. length, vocabulary_size: of the token ids."""
        self._shape = batch_size, side, side, 3
        self._length, self._vocabulary, self._seed = length, vocabulary_size, seed

    def dataset(self, first_step: int, host: int, hosts: int) -> tf.data.Dataset:
        """The same batch without end."""
        del first_step, host, hosts
        rng = np.random.default_rng(self._seed)
        rows = self._shape[0]
        ids = rng.integers(1, self._vocabulary, (rows, self._length), np.int32)
        batch = {
            "images": rng.integers(0, 256, self._shape, np.uint8),
            "token_ids": ids,
            "examples": np.arange(rows, dtype=np.int32),
        }
        return tf.data.Dataset.from_tensors(batch).repeat()
