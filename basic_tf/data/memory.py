"""A record source that lives in memory: the same interface as `records.RecordSource`, for tests and small
data.
"""

import threading
from collections.abc import Iterable, Mapping

import numpy as np


class InMemorySource:
    """Serialized examples in a list, read by index. It counts reads, so that a test can see who read what."""

    def __init__(
        self, examples: Iterable[bytes], metadata: Mapping | None = None, damaged: Iterable[int] = ()
    ):
        """examples: payloads (`examples.serialize_example`). damaged: indices that `read` reports as None."""
        self._examples = list(examples)
        self._damaged = frozenset(damaged)
        self._lock = threading.Lock()
        self.count = len(self._examples)
        self.metadata = dict(metadata or {}) | {"count": self.count}
        self.reads: list[int] = []

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """The serialized examples of these records, None where a record is damaged. IndexError outside [0,
        count).
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(
                f"record indices must lie in [0, {self.count}), got {indices.min()} .. {indices.max()}"
            )
        with self._lock:
            self.reads.extend(indices.tolist())
        return [None if i in self._damaged else self._examples[i] for i in indices.tolist()]
