"""Datasets on disk: written whole or not at all, read in any order.

A dataset is `<name>.json` and its shards `<name>-00000-of-00004.tfrecord`, each with an index beside it
(shards.py). Shards that others wrote need neither json nor index: a pattern is enough, a missing index is
made by one scan.
"""

import collections
import concurrent.futures
import itertools
import json
import posixpath
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from basic_tf.data.examples import IMG2DATASET, FeatureKeys, Record, parse_example, serialize_example
from basic_tf.data.shards import INDEX_SUFFIX, RecordFileError, Shard, ShardWriter, is_local, unframed

__all__ = [
    "IMG2DATASET",
    "DamagedDataError",
    "FeatureKeys",
    "Record",
    "RecordFileError",
    "RecordSource",
    "RecordWriter",
    "parse_example",
    "serialize_example",
    "shard_name",
]

MINIMUM_BUDGET = 10
_REMOTE_THREADS = 16
_LOGGED = 20


class DamagedDataError(RuntimeError):
    """More records are damaged than the budget allows."""


def shard_name(name: str, shard: int, shards: int) -> str:
    """`train`, 0, 4 -> `train-00000-of-00004.tfrecord`."""
    return f"{name}-{shard:05d}-of-{shards:05d}.tfrecord"


class RecordWriter:
    """Writes one dataset; it appears when `finish` has written its json, or not at all.

    Until then everything lies in the folder `.<name>.partial`, which the next writer of the same dataset
    clears away. Use it as a context manager: an exception inside discards what was written.

        with RecordWriter(folder, "train", shards=4) as writer:
            writer.write(serialize_example(...))
            writer.finish(label_names=[...], source="...", licences={...})
    """

    def __init__(self, folder: str, name: str, *, shards: int = 1, records_per_shard: int | None = None):
        """shards: records go to that many shards in turn (0, 1, 2, 0, ...): alike whatever the order.

        records_per_shard: instead, consecutive records fill one shard after the other; `shards` is ignored.
        """
        if shards < 1 or (records_per_shard is not None and records_per_shard < 1):
            raise ValueError(
                f"shards and records_per_shard must be at least 1, got {shards}, {records_per_shard}"
            )
        self.folder, self.name, self.count = str(folder), name, 0
        self._shards, self._per_shard = shards, records_per_shard
        self._partial = posixpath.join(self.folder, f".{name}.partial")
        self._clear()
        tf.io.gfile.makedirs(self._partial)
        self._writers: list[ShardWriter] = []
        self._finished = False
        if records_per_shard is None:
            for _ in range(shards):
                self._open()

    def write(self, payload: bytes) -> None:
        """Appends one serialized example."""
        if self._finished:
            raise ValueError(f"dataset {self.name} is already finished")
        if self._per_shard is None:
            writer = self._writers[self.count % self._shards]
        else:
            if self.count % self._per_shard == 0:
                if self._writers:
                    self._writers[-1].close()
                self._open()
            writer = self._writers[-1]
        writer.write(payload)
        self.count += 1

    def finish(self, *, verify: "Callable[[RecordSource], None] | None" = None, **metadata) -> str:
        """Closes the shards, gives everything its final name, the json last. Returns the json's path.

        metadata: what the json says beside name, count and shards: label_names, classes, source, licences.
        verify: is given what was written before anything appears; what it raises is passed on.
        An empty dataset is a ValueError: nothing could be read from it; so is metadata that is no UTF-8.
        """
        if not self.count:
            raise ValueError(f"dataset {self.name} has no record: nothing is written")
        for writer in self._writers if self._per_shard is None else self._writers[-1:]:
            writer.close()
        if verify is not None:
            verify(RecordSource([writer.path for writer in self._writers], metadata, origin=self.name))
        names = [shard_name(self.name, i, len(self._writers)) for i in range(len(self._writers))]
        said = {"name": self.name, "count": self.count, "shards": names, **metadata}
        partial = posixpath.join(self._partial, "json")
        # What can fail comes first: until everything new is on disk the old dataset of this name stays.
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(_encoded(said, self.name))
        # The old dataset goes before the new one comes, its json first, so that no json ever describes shards of another
        # writing. A kill in between leaves no json: the dataset is not there.
        path = posixpath.join(self.folder, f"{self.name}.json")
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
        for old in tf.io.gfile.glob(posixpath.join(self.folder, f"{self.name}-?????-of-?????.tfrecord*")):
            tf.io.gfile.remove(old)
        for writer, name in zip(self._writers, names, strict=True):
            for suffix in (INDEX_SUFFIX, ""):
                target = posixpath.join(self.folder, name) + suffix
                tf.io.gfile.rename(writer.path + suffix, target, overwrite=True)
        tf.io.gfile.rename(partial, path, overwrite=True)
        self._finished = True
        self._clear()
        return path

    def discard(self) -> None:
        """Forgets everything written so far; a finished dataset stays."""
        if not self._finished:
            for writer in self._writers:
                writer.abandon()
            self._finished = True
            self._clear()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_) -> None:
        self.discard()

    def _open(self) -> None:
        self._writers.append(ShardWriter(posixpath.join(self._partial, f"{len(self._writers):05d}.tfrecord")))

    def _clear(self) -> None:
        if tf.io.gfile.exists(self._partial):
            tf.io.gfile.rmtree(self._partial)


def _encoded(said: Mapping, name: str) -> bytes:
    """A dataset's json as it stands in the file."""
    try:
        return (json.dumps(said, ensure_ascii=False, indent=1) + "\n").encode()
    except UnicodeEncodeError as error:
        near = error.object[max(error.start - 40, 0) : error.end + 40]
        raise ValueError(
            f"dataset {name}: its json would hold {near!a}, which is no UTF-8: mend that name, label or path"
        ) from error


class RecordSource:
    """The records of a dataset by number, 0 to count - 1, shard after shard; threads and forks share it."""

    def __init__(
        self,
        paths: Sequence[str],
        metadata: Mapping | None = None,
        *,
        max_damaged_fraction: float = 0.001,
        index_limit_bytes: int = 1 << 30,
        origin: str = "",
    ):
        """Use `open`. paths: the shards in order. origin: what the user named, for messages."""
        if not 0.0 <= max_damaged_fraction <= 1.0:
            raise ValueError(f"max_damaged_fraction must lie in [0, 1], got {max_damaged_fraction}")
        self.origin = origin or (paths[0] if paths else "")
        if not paths:
            raise RecordFileError(f"{self.origin} names no shard")
        with concurrent.futures.ThreadPoolExecutor(min(_REMOTE_THREADS, len(paths))) as pool:
            self._shards = list(pool.map(Shard, paths))
        self._first = np.cumsum([0] + [shard.count for shard in self._shards])
        self.count = int(self._first[-1])
        if not self.count:
            raise RecordFileError(f"{self.origin}: its {len(paths)} shard(s) hold no record")
        self.metadata = dict(metadata or {}) | {"count": self.count}
        self.budget = max(MINIMUM_BUDGET, int(max_damaged_fraction * self.count))
        self._damaged: dict[int, str] = {}
        self._indexes: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._index_bytes, self._index_limit = 0, int(index_limit_bytes)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, path: str, *, max_damaged_fraction: float = 0.001, index_limit_bytes: int = 1 << 30
    ) -> "RecordSource":
        """Opens a dataset's json, or the shards that match a pattern (in the order of their names).

        max_damaged_fraction: above this share of damaged records (but at least 10) reading stops, an error.
        index_limit_bytes: of indexes in memory, 4 bytes a record (8 in shards of 4 GiB and more). A random order over
        more records than fit reads and checks an index of a shard, 16 bytes a record, for nearly every record.
        FileNotFoundError, RecordFileError (truncated, empty, not as the json says): one line with the file.
        """
        path = str(path)
        options = {"max_damaged_fraction": max_damaged_fraction, "index_limit_bytes": index_limit_bytes}
        if not path.endswith(".json"):
            shards = [
                p for p in sorted(tf.io.gfile.glob(path)) if not p.endswith((INDEX_SUFFIX, ".tmp", ".json"))
            ]
            if not shards:
                raise FileNotFoundError(
                    f"no shard matches {path}; give a dataset's .json or a pattern of .tfrecord files"
                )
            return cls(shards, origin=path, **options)
        if not tf.io.gfile.exists(path):
            raise FileNotFoundError(
                f"dataset {path} does not exist; the tools/prepare_*.py programs make datasets"
            )
        try:
            with tf.io.gfile.GFile(path, "r") as file:
                metadata = json.loads(file.read())
            names, count = list(metadata["shards"]), int(metadata["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise RecordFileError(
                f"{path} is not a dataset's json: expected an object with `shards` and `count` ({error!r})"
            ) from error
        folder = posixpath.dirname(path)
        shards = [posixpath.join(folder, name) if is_local(name) else name for name in names]
        source = cls(shards, metadata, origin=path, **options)
        if source.count != count:
            raise RecordFileError(
                f"{path} says {count:,} records, its shards hold {source.count:,}: of another writing, "
                "or cut short; make or copy the dataset again"
            )
        return source

    @property
    def local(self) -> bool:
        """Whether no shard lies on a remote file system."""
        return all(shard.local for shard in self._shards)

    @property
    def damaged(self) -> dict[int, str]:
        """The damaged records met so far: number -> what is wrong."""
        with self._lock:
            return dict(self._damaged)

    def location(self, record: int) -> tuple[str, int]:
        """The shard of a record and the byte at which the record begins there."""
        shard = int(np.searchsorted(self._first, record, "right")) - 1
        return self._shards[shard].path, int(self._edges(shard)[record - self._first[shard]])

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """Serialized examples of these records, None where one is damaged (a checksum, or the file is cut).

        IndexError outside [0, count); DamagedDataError when the budget of damaged records is spent.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(
                f"record indices must lie in [0, {self.count}), got {indices.min()} .. {indices.max()}"
            )
        shards = np.searchsorted(self._first, indices, "right") - 1
        order = np.argsort(shards, kind="stable")
        groups = [(shard, order[rows]) for shard, rows in _grouped(shards[order])]
        frames: list[bytes] = [b""] * indices.size
        # One shard at a time from memory, several at once over a network.
        remote = len(groups) > 1 and not self._shards[groups[0][0]].local
        if remote:
            with concurrent.futures.ThreadPoolExecutor(min(_REMOTE_THREADS, len(groups))) as pool:
                read = list(pool.map(lambda group: self._frames(group[0], indices[group[1]]), groups))
        else:
            read = [self._frames(shard, indices[rows]) for shard, rows in groups]
        for (_, rows), part in zip(groups, read, strict=True):
            for row, frame in zip(rows.tolist(), part, strict=True):
                frames[row] = frame
        payloads = list(map(unframed, frames))
        if None in payloads:
            for row in [row for row, payload in enumerate(payloads) if payload is None]:
                self._note(int(indices[row]), len(frames[row]))
        return payloads

    def _frames(self, shard: int, indices: np.ndarray) -> list[bytes]:
        edges, rows = self._edges(shard), indices - self._first[shard]
        return self._shards[shard].frames(edges[rows].astype(np.int64), edges[rows + 1].astype(np.int64))

    def _edges(self, shard: int) -> np.ndarray:
        """Where the records of a shard begin; the most recently used indexes stay in memory, within their limit."""
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        edges = self._shards[shard].edges()
        with self._lock:
            if shard not in self._indexes:
                self._indexes[shard] = edges
                self._index_bytes += edges.nbytes
            while self._index_bytes > self._index_limit and len(self._indexes) > 1:
                self._index_bytes -= self._indexes.popitem(last=False)[1].nbytes
        return edges

    def _note(self, record: int, found: int) -> None:
        path, offset = self.location(record)
        with self._lock:
            if record in self._damaged:
                return
            what = (
                f"{path}: record {record} at byte {offset} is damaged (checksum or length of {found} bytes)"
            )
            self._damaged[record] = what
            count = len(self._damaged)
        if count <= _LOGGED:
            logging.warning("%s; it is skipped", what)
        if count > self.budget:
            raise DamagedDataError(
                f"{self.origin}: {count} damaged records, {self.budget} are allowed of {self.count:,}; "
                f"the last one is at byte {offset} of {path}. Copy or write the data again, or raise "
                "max_damaged_fraction"
            )


def _grouped(values: np.ndarray):
    """(value, slice) for each run of equal values of a sorted array."""
    bounds = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *bounds.tolist(), len(values)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield int(values[start]), slice(start, end)
