"""A record source that lives in memory: the same interface as `records.RecordSource`, for tests and small data."""

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf


def serialized_example(
    image: bytes, captions: Sequence[str] = (), labels: Sequence[int] = (), id: str | bytes = b""
) -> bytes:
    """A serialized tf.train.Example with the project's feature keys (design section 5).

    image: encoded picture (JPEG, PNG, ...). captions: any number of texts. labels: class numbers. id: name of the record.
    """

    def of_bytes(values):
        values = [value.encode() if isinstance(value, str) else bytes(value) for value in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    features = {
        "image/encoded": of_bytes([image]),
        "caption": of_bytes(captions),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label) for label in labels])),
        "id": of_bytes([id]),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


class InMemorySource:
    """Serialized examples in a list, read by index. It counts reads, so that a test can see who read what."""

    def __init__(
        self, examples: Iterable[bytes], metadata: Mapping | None = None, damaged: Iterable[int] = ()
    ):
        """examples: serialized tf.train.Examples. damaged: indices that `read` reports as None."""
        self._examples = list(examples)
        self._damaged = frozenset(damaged)
        self._lock = threading.Lock()
        self.count = len(self._examples)
        self.metadata = dict(metadata or {}) | {"count": self.count}
        self.reads: list[int] = []

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """The serialized examples of these records, None where a record is damaged. IndexError outside [0, count)."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(
                f"record indices must lie in [0, {self.count}), got {indices.min()} .. {indices.max()}"
            )
        with self._lock:
            self.reads.extend(indices.tolist())
        return [None if i in self._damaged else self._examples[i] for i in indices.tolist()]
