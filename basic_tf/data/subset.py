"""A part of a source by the hash of the record's number: for held-out pairs, and for runs on less data."""

import numpy as np

from basic_tf.data.mixture import MixedSource
from basic_tf.randomness import bits_numpy, step_key_numpy


class Subset:
    """The records of a source whose hash, a number in [0, 1), lies in [start, stop); in the order of the source.

    Subsets of one seed with ranges that do not meet share no record, and one with a wider range holds those of a narrower
    one. The hash takes the record's number, so another file with the same records in the same order is cut alike.
    """

    def __init__(self, source, start: float = 0.0, stop: float = 1.0, seed: int = 0):
        """source: count, metadata and read(indices). ValueError if the range is none, or holds no record."""
        if not 0.0 <= start < stop <= 1.0:
            raise ValueError(f"a subset needs 0 <= start < stop <= 1, received start={start} and stop={stop}")
        if isinstance(source, MixedSource):
            raise ValueError(
                "a mixture takes subsets as its parts; a subset of a mixture would lose its weights"
            )
        words = bits_numpy(step_key_numpy(int(seed), 0), np.arange(source.count), "subset/share", 1)[:, 0]
        shares = words.astype(np.float64) / 2**32
        self.records = np.flatnonzero((shares >= start) & (shares < stop))
        if not self.records.size:
            raise ValueError(
                f"no record of {source.count:,} falls into the share [{start}, {stop}); widen it"
            )
        self.source = source
        self.count = int(self.records.size)
        self.local = getattr(source, "local", True)
        self.metadata = dict(source.metadata) | {
            "count": self.count,
            "subset": {"start": start, "stop": stop, "seed": int(seed), "of": source.count},
        }

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """Serialized examples of these records of the subset, None where one is damaged. IndexError outside [0, count)."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(
                f"record indices must lie in [0, {self.count}), got {indices.min()} .. {indices.max()}"
            )
        return self.source.read(self.records[indices])
