"""Records as batches use them: parsed and checked, damage counted, decoded all at once where they fit into memory."""

import collections
import concurrent.futures
import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from basic_tf.data.decoding import decode_together, framed
from basic_tf.data.mixture import MixedSource
from basic_tf.data.picture_headers import PictureError
from basic_tf.data.records import MINIMUM_BUDGET, DamagedDataError
from basic_tf.machine import cores

_LOGGED_PER_CAUSE = 5
READ_AT_ONCE = 512


class RecordError(ValueError):
    """A record that cannot be used; `cause` is one of a few short phrases."""

    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


class NothingToLearnError(RecordError):
    """A record without the text or label that a batch needs: passed over, but not damaged."""


class Damage:
    """Counts unusable records by cause, logs the first few of each, and stops where too many are damaged."""

    def __init__(self, count: int = 0, max_fraction: float = 1.0):
        """max_fraction: of `count` records may be damaged (but at least 10), before `note` raises DamagedDataError."""
        if not 0.0 <= max_fraction <= 1.0:
            raise ValueError(f"max_unusable_fraction must lie in [0, 1], got {max_fraction}")
        self.counts: collections.Counter[str] = collections.Counter()
        self._count, self._limited = count, max_fraction < 1
        self._budget, self._damaged = max(MINIMUM_BUDGET, int(max_fraction * count)), 0
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def note(self, record: int, error: Exception) -> None:
        """Counts a record, once."""
        with self._lock:
            if record in self._seen:
                return
            self._seen.add(record)
            cause = getattr(error, "cause", "damaged record")
            self.counts[cause] += 1
            if self.counts[cause] <= _LOGGED_PER_CAUSE:
                logging.warning("record %d is skipped: %s", record, error)
            self._damaged += not isinstance(error, NothingToLearnError)
            damaged = self._damaged
        if self._limited and damaged > self._budget:
            raise DamagedDataError(
                f"{damaged} records cannot be used, {self._budget} are allowed of {self._count:,} (so far: "
                f"{dict(self.counts)}; the last is record {record}: {error}). Write the dataset again without them, or "
                "raise max_unusable_fraction of the batches"
            )


class Texts(collections.namedtuple("Texts", ["captions", "labels"])):
    """What is kept of a record beside its picture: captions (tuple of str) and label numbers (int64
    array).
    """


def in_tasks(count: int, threads: int) -> list[range]:
    """The rows of a batch in tasks for a pool: several a task, as handing one over costs as much as a small picture's
    decoding, and some tasks for each thread, so that all end at about the same time.
    """
    step = max(1, count // (4 * threads))
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


def texts_of(record, number: int, source) -> Texts:
    """What is kept of a parsed record, its labels by the names of a mixture."""
    labels = source.relabelled(number, record.labels) if isinstance(source, MixedSource) else record.labels
    return Texts(tuple(c for c in record.captions if c and not c.isspace()), labels)


def readable(
    rows: Sequence[int],
    indices: Sequence[int],
    payloads: Sequence[bytes | None],
    source,
    parse: Callable,
    check: Callable[[Texts], None],
    damage: Damage,
) -> tuple[list[int], list[Texts], list[bytes]]:
    """(rows, texts, encoded pictures) of the records that can be read and pass `check`; damage counts the others.

    rows: of a batch whose row r is record indices[r] of the source, with payloads[r].
    """
    good, texts, encoded = [], [], []
    for row in rows:
        try:
            record = parsed(parse, payloads[row])
            own = texts_of(record, indices[row], source)
            check(own)
        except ValueError as error:
            damage.note(indices[row], error)
            continue
        good.append(row)
        texts.append(own)
        encoded.append(record.image)
    return good, texts, encoded


class DecodedPictures:
    """All pictures of a source decoded in memory, uint8 [N, side, side, 3], with their captions and labels.

    A record that cannot be used is replaced by the next one that can (`replacement`), wrapping around at the
    end.
    """

    def __init__(
        self,
        source,
        side: int,
        fit: str,
        limit_bytes: int,
        parse: Callable,
        check: Callable[[Texts], None],
        damage: Damage,
        pool: concurrent.futures.Executor,
        max_pixels: int,
    ):
        """Reads and decodes everything. MemoryError before anything is read if it takes more than
        limit_bytes.
        """
        needed = source.count * side * side * 3
        if needed > limit_bytes:
            raise MemoryError(
                f"{source.count:,} decoded pictures of {side} x {side} take {needed / 2**30:.2f} GiB, the "
                f"limit is {limit_bytes / 2**30:.2f} GiB: raise cache_limit_bytes, lower cache_side (now "
                f"{side}), or set cache_decoded=False to decode each picture when it is needed"
            )
        self.side = side
        self.pictures = np.empty((source.count, side, side, 3), np.uint8)
        self.texts: list[Texts | None] = [None] * source.count

        def load(indices: list[int], payloads: list[bytes | None], rows: range) -> None:
            good, texts, encoded = readable(rows, indices, payloads, source, parse, check, damage)
            for row, own, picture in zip(good, texts, decode_together(encoded, max_pixels), strict=True):
                if isinstance(picture, PictureError):
                    damage.note(indices[row], picture)
                else:
                    self.pictures[indices[row]] = framed(picture, side, fit)
                    self.texts[indices[row]] = own

        for start in range(0, source.count, READ_AT_ONCE):
            indices = list(range(start, min(start + READ_AT_ONCE, source.count)))
            task = functools.partial(load, indices, source.read(np.array(indices)))
            list(pool.map(task, in_tasks(len(indices), cores())))
        usable = np.array([texts is not None for texts in self.texts])
        good = np.flatnonzero(usable)
        if not good.size:
            raise ValueError(f"none of the {source.count:,} records can be used: {dict(damage.counts)}")
        following = np.searchsorted(good, np.arange(source.count))
        self.replacement = good[following % good.size]


def parsed(parse: Callable, payload: bytes | None):
    """The record of a payload. RecordError if it is damaged."""
    if payload is None:
        raise RecordError("damaged record")
    try:
        return parse(payload)
    except Exception as error:  # whatever a parser finds wrong with foreign bytes, the record cannot be used
        raise RecordError(f"unreadable record ({type(error).__name__})") from error
