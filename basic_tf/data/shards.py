"""One TFRecord shard and its index: framing, checksums, writing, reading by offset.

A shard is a plain TFRecord file. `<shard>.index` beside it holds one pair of little-endian uint64 for each
record, the offset and the length of its payload. A record is framed (TensorFlow, record_writer.h) as

    uint64 length | uint32 masked CRC32C of the length | payload | uint32 masked CRC32C of the payload
"""

import os
import struct

import google_crc32c
import numpy as np
import tensorflow as tf
from absl import logging

from basic_tf.data.open_files import LocalFile, with_room

INDEX_SUFFIX = ".index"

_HEADER = struct.Struct("<QI")  # length, masked CRC of the length
_FOOTER = struct.Struct("<I")  # masked CRC of the payload
_FRAME = _HEADER.size + _FOOTER.size
_PAIR = np.dtype("<u8")
_SCAN_BYTES = 1 << 24
_REMOTE_GAP = 1 << 16  # reading a gap of this size costs less than another request
_REMOTE_RUN = 1 << 25


class RecordFileError(ValueError):
    """A shard, an index or a dataset's json that cannot be used as it is; the message names the file."""


def masked_crc(data: bytes) -> int:
    """The CRC32C of TFRecord files: rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(payload: bytes) -> bytes:
    """One record as it stands in the file."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _FOOTER.pack(masked_crc(length)), payload, _FOOTER.pack(masked_crc(payload))))


def unframed(frame: bytes) -> bytes | None:
    """The payload of a record, None if its length or a checksum is wrong."""
    if len(frame) < _FRAME:
        return None
    length, length_crc = _HEADER.unpack_from(frame)
    if length != len(frame) - _FRAME or length_crc != masked_crc(frame[:8]):
        return None
    payload = frame[_HEADER.size : -_FOOTER.size]
    return (
        payload if _FOOTER.unpack_from(frame, len(frame) - _FOOTER.size)[0] == masked_crc(payload) else None
    )


class ShardWriter:
    """One open shard: appends records, remembers where they are."""

    def __init__(self, path: str):
        self.path = path
        self._file = tf.io.gfile.GFile(path, "wb")
        self._file.write(b"")  # GFile opens at the first write, and a shard without records is a file too
        self._pairs: list[tuple[int, int]] = []
        self._end = 0

    def write(self, payload: bytes) -> None:
        """Appends one record."""
        self._file.write(framed(payload))
        self._pairs.append((self._end + _HEADER.size, len(payload)))
        self._end += len(payload) + _FRAME

    def close(self) -> None:
        """Ends the shard and writes its index."""
        self._file.close()
        with tf.io.gfile.GFile(self.path + INDEX_SUFFIX, "wb") as file:
            file.write(np.array(self._pairs, _PAIR).tobytes())

    def abandon(self) -> None:
        """Ends the shard without an index."""
        self._file.close()


def is_local(path: str) -> bool:
    """Whether the operating system reads a path: it names no file system of tf.io.gfile's (gs://, ram://, ...)."""
    return "://" not in path


def read_range(path: str, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of a file of any file system; fewer at its end."""

    def read() -> bytes:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    return with_room(read)


def frame_edges(pairs: np.ndarray, size: int) -> np.ndarray:
    """Where the framed records of a shard of `size` bytes begin, and where the last one ends: unsigned [N + 1], 32 bits
    where they suffice, so that millions of records can be kept in memory. From the pairs [N, 2] of a whole index.
    """
    kind = np.uint32 if size < 1 << 32 else np.uint64
    return np.append(pairs[:, 0] - _HEADER.size, size).astype(kind)


def scan_shard(path: str) -> np.ndarray:
    """int64 [N, 2], offset and length of each payload, found by walking through the file from its beginning.

    RecordFileError if the file ends inside a record or is no TFRecord file. Payloads are not checked here.
    """
    size = tf.io.gfile.stat(path).length
    pairs, position, window, window_start = [], 0, b"", 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while position < size:
            if not window_start <= position <= window_start + len(window) - _HEADER.size:
                file.seek(position)
                window, window_start = file.read(_SCAN_BYTES), position
            header = window[position - window_start : position - window_start + _HEADER.size]
            if len(header) < _HEADER.size:
                raise RecordFileError(_truncated(path, len(pairs), position, size))
            length, crc = _HEADER.unpack(header)
            if crc != masked_crc(header[:8]):
                if position == 0:
                    kind = "a GZIP file" if header[:2] == b"\x1f\x8b" else "no TFRecord file"
                    raise RecordFileError(
                        f"{path} is {kind} (or its first bytes are damaged): expected uncompressed TFRecords"
                    )
                raise RecordFileError(
                    f"{path}: the length of record {len(pairs)} at byte {position} is damaged; without an "
                    f"index nothing behind it can be found; copy the file or its {INDEX_SUFFIX} file again"
                )
            if position + length + _FRAME > size:
                raise RecordFileError(_truncated(path, len(pairs), position, size))
            pairs.append((position + _HEADER.size, length))
            position += length + _FRAME
    return np.array(pairs, np.int64).reshape(-1, 2)


def _truncated(path: str, records: int, position: int, size: int) -> str:
    return (
        f"{path} is truncated: it ends at byte {size:,}, inside record {records} that begins at byte "
        f"{position:,}; copy or write the file again"
    )


class Shard:
    """One shard and where its records are. `count` is known at once, the index is read when needed."""

    def __init__(self, path: str):
        """Finds the index or makes it, and checks that it ends where the file ends."""
        self.path, self.local = path, is_local(path)
        self._file = LocalFile(path) if self.local else None
        try:
            self.size = tf.io.gfile.stat(path).length
        except tf.errors.NotFoundError:
            raise FileNotFoundError(
                f"shard {path} does not exist; the dataset is incomplete, make or copy it again"
            ) from None
        self._kept: np.ndarray | None = None  # an index that could not be written beside the shard
        self.count = self._count_from_index()
        if self.count is None:
            pairs = self._rebuild()
            self._kept, self.count = frame_edges(pairs, self.size), len(pairs)

    def _count_from_index(self) -> int | None:
        """The number of records, or None if there is no index that ends where the shard does."""
        index = self.path + INDEX_SUFFIX
        if not tf.io.gfile.exists(index):
            return None
        size = tf.io.gfile.stat(index).length
        if size % 16:
            return None
        if not size:
            return 0 if not self.size else None
        offset, length = np.frombuffer(read_range(index, size - 16, 16), _PAIR).tolist()
        return size // 16 if offset + length + _FOOTER.size == self.size else None

    def _rebuild(self) -> np.ndarray:
        logging.info("no valid index for %s: scanning it", self.path)
        pairs = scan_shard(self.path)
        index = self.path + INDEX_SUFFIX
        temporary = f"{index}.{os.getpid()}.tmp"
        try:
            with tf.io.gfile.GFile(temporary, "wb") as file:
                file.write(pairs.astype(_PAIR).tobytes())
            tf.io.gfile.rename(temporary, index, overwrite=True)
        except tf.errors.OpError as error:
            logging.info("the index of %s stays in memory: %s", self.path, error.message)
        return pairs

    def edges(self) -> np.ndarray:
        """`frame_edges` of the index, read and checked; the index is made again if it contradicts itself."""
        if self._kept is not None:
            return self._kept
        index = self.path + INDEX_SUFFIX
        pairs = np.frombuffer(read_range(index, 0, 16 * self.count), _PAIR).reshape(-1, 2).astype(np.int64)
        starts = np.concatenate([[0], pairs[:, 0] + pairs[:, 1] + _FOOTER.size])
        if len(pairs) != self.count or not np.array_equal(starts[:-1] + _HEADER.size, pairs[:, 0]):
            pairs = self._rebuild()
            if len(pairs) != self.count:
                raise RecordFileError(
                    f"{index} was wrong ({self.count} records, the shard has {len(pairs)}) and was rebuilt: "
                    "start again"
                )
            self._kept = frame_edges(pairs, self.size)
            return self._kept
        return frame_edges(pairs, self.size)

    def frames(self, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
        """The framed records between these bytes (fewer bytes where the file ends before)."""
        if self.local:
            return self._file.read(list(zip(starts.tolist(), ends.tolist())))
        return self._remote_frames(starts, ends)

    def _remote_frames(self, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
        """Neighbours are read by one request; a file object of its own, as seeking is not thread-safe."""
        frames: list[bytes] = [b""] * len(starts)
        with tf.io.gfile.GFile(self.path, "rb") as file:
            for run in _runs(starts, ends):
                first = int(starts[run[0]])
                file.seek(first)
                data = file.read(int(ends[run].max()) - first)
                for i in run:
                    frames[i] = data[int(starts[i]) - first : int(ends[i]) - first]
        return frames


def _runs(starts: np.ndarray, ends: np.ndarray) -> list[list[int]]:
    """Groups of records that lie close together, each in the order of the file."""
    runs: list[list[int]] = []
    end = first = 0
    for i in np.argsort(starts, kind="stable").tolist():
        if runs and starts[i] - end <= _REMOTE_GAP and ends[i] - first <= _REMOTE_RUN:
            runs[-1].append(i)
        else:
            runs.append([i])
            first = starts[i]
        end = ends[i]
    return runs
