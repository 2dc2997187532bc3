"""Features of every picture of a source on disk, computed once by a frozen tower.

A folder holds blocks of consecutive records. Each is one file: a line of JSON (key, first record, rows, width, SHA-256 of
what follows), then int64 [rows] (the record really used: an unusable one is replaced), uint32 [rows] (the CRC-32 of its
encoded picture) and float32 [rows, width]. A block appears whole, by renaming; one that is cut short, damaged or of another
key does not count and is made again. So making them can be interrupted at any time, and whatever is read is whole.
"""

import hashlib
import json
import posixpath
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from basic_tf.data.usable_records import RecordError


class FeatureCache:
    """The blocks of one source under one key.

    key: says what the features are of: tower weights, view of the pictures, data. Anything else in the folder is not read.
    """

    def __init__(self, folder: str, key: str, count: int, width: int, block: int = 4096):
        """count: records of the source. width: D of the features. block: records in one file."""
        self.folder = posixpath.join(folder, key[:16])
        self.key, self.count, self.width, self.block = key, int(count), int(width), int(block)
        self.features = np.empty((self.count, self.width), np.float32)
        self.used = np.empty(self.count, np.int64)
        self.checks = np.empty(self.count, np.uint32)
        tf.io.gfile.makedirs(self.folder)

    def missing(self) -> Iterator[np.ndarray]:
        """int64 [n]: the records of each block that is not on disk; the others are read. `write` is to follow for each."""
        for start in range(0, self.count, self.block):
            stop = min(start + self.block, self.count)
            if not self._read(start, stop):
                yield np.arange(start, stop)

    def write(self, start: int, used: np.ndarray, checks: np.ndarray, features: np.ndarray) -> None:
        """Keeps one block of `missing`."""
        stop = start + len(used)
        parts = used.astype("<i8"), checks.astype("<u4"), features.astype("<f4")
        if parts[2].shape != (stop - start, self.width) or not np.isfinite(features).all():
            raise ValueError(
                f"features of records {start} to {stop - 1} have the shape {features.shape} or are not finite; "
                f"expected finite ({stop - start}, {self.width})"
            )
        body = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        head = {"key": self.key, "start": start, "rows": stop - start, "width": self.width}
        head["sha256"] = hashlib.sha256(body).hexdigest()
        path = self._path(start)
        with tf.io.gfile.GFile(path + ".partial", "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + body)
        tf.io.gfile.rename(path + ".partial", path, overwrite=True)
        self._keep(start, stop, *parts)

    def rows(self, wanted: np.ndarray, encoded: Sequence[bytes]) -> np.ndarray:
        """float32 [n, D] of some records. encoded: pictures of the records used; ValueError if one is not what it was."""
        used = self.used[wanted]
        for record, expected, picture in zip(
            used.tolist(), self.checks[wanted].tolist(), encoded, strict=True
        ):
            if zlib.crc32(picture) != expected:
                raise ValueError(
                    f"the picture of record {record} is not the one whose features are in {self.folder}: the data has "
                    "changed since; delete that folder, and they are computed again"
                )
        return self.features[wanted]

    def _path(self, start: int) -> str:
        return posixpath.join(self.folder, f"block-{start // self.block:06d}")

    def _read(self, start: int, stop: int) -> bool:
        path = self._path(start)
        if not tf.io.gfile.exists(path):
            return False
        with tf.io.gfile.GFile(path, "rb") as file:
            line, _, body = file.read().partition(b"\n")
        try:
            head = json.loads(line)
        except ValueError:
            head = {}
        rows = stop - start
        expected = {"key": self.key, "start": start, "rows": rows, "width": self.width}
        if {name: head.get(name) for name in expected} != expected:
            cause = "is of something else"
        elif len(body) != rows * (12 + 4 * self.width) or hashlib.sha256(body).hexdigest() != head.get(
            "sha256"
        ):
            cause = "is damaged"
        else:
            used = np.frombuffer(body, "<i8", rows)
            checks = np.frombuffer(body, "<u4", rows, 8 * rows)
            features = np.frombuffer(body, "<f4", offset=12 * rows).reshape(rows, self.width)
            self._keep(start, stop, used, checks, features)
            return True
        logging.warning("%s %s; it is made again", path, cause)
        return False

    def _keep(self, start, stop, used, checks, features) -> None:
        self.used[start:stop], self.checks[start:stop], self.features[start:stop] = used, checks, features


def picture_check(encoded: bytes) -> int:
    """The CRC-32 that `FeatureCache.rows` compares. RecordError for no picture at all."""
    if not encoded:
        raise RecordError("empty picture")
    return zlib.crc32(encoded)
