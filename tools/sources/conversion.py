"""From rows to records: every row is checked in full, and is either written or rejected with its cause.

Rows are checked (read, decoded, filtered) by threads, several ahead, and written in their order.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable

import tensorflow as tf

from basic_tf.data.decoding import PictureError, checked_header, decode
from basic_tf.data.examples import serialize_example
from basic_tf.data.records import RecordWriter
from basic_tf.machine import cores
from tools.sources.filters import CaptionCounts, Filters
from tools.sources.likeness import EvaluationPictures
from tools.sources.rejects import RejectLog
from tools.sources.rows import BadRow, Row, whole_text

_AHEAD = 8  # rows checked ahead, per thread


@dataclasses.dataclass(frozen=True)
class Check:
    """What makes a row a record.

    smallest_side: a picture with a shorter side below it is damaged (pages of the web hold pictures of one pixel).
    max_pixels: a larger one is refused before it takes memory. repeats: needed by `Filters.caption_repeats`.
    evaluation: pictures that no record may resemble.
    """

    filters: Filters = dataclasses.field(default_factory=Filters)
    repeats: CaptionCounts | None = None
    smallest_side: int = 2
    max_pixels: int = 1 << 26
    evaluation: EvaluationPictures | None = None

    def __call__(self, row: Row) -> bytes:
        """The serialized example. BadRow if there is to be none."""
        try:
            return self._example(row)
        except BadRow as error:
            error.where = dict(row.where) | error.where
            raise
        except PictureError as error:
            detail = str(error).removeprefix(error.cause).lstrip(": ")
            raise BadRow(error.cause, detail, row.where) from error
        except (tf.errors.NotFoundError, FileNotFoundError) as error:
            raise BadRow("missing file", _first_line(error), row.where) from error
        except (tf.errors.OpError, OSError) as error:
            raise BadRow("unreadable file", _first_line(error), row.where) from error

    def _example(self, row: Row) -> bytes:
        captions = [whole_text(caption) for caption in row.captions if not _blank(caption)]
        if not captions and not row.labels:
            raise BadRow("empty caption" if row.captions else "no caption and no label")
        captions = self.filters.captions(captions, self.repeats)
        encoded = row.picture()
        found = checked_header(encoded, self.max_pixels)
        if min(found.height, found.width) < self.smallest_side:
            raise BadRow(
                "wrong size", f"{found.width} x {found.height}, at least {self.smallest_side} are expected"
            )
        self.filters.picture(found.width, found.height)
        picture = decode(encoded, self.max_pixels)  # to the last pixel: a header says nothing of what follows
        if self.evaluation is not None:
            self.evaluation.refuse_likeness(picture)
        return serialize_example(encoded, captions, row.labels, whole_text(row.id))


def convert(
    rows: Iterable[Row | BadRow],
    check: Callable[[Row], bytes],
    writer: RecordWriter,
    log: RejectLog,
    advance: Callable[[], None],
    threads: int | None = None,
) -> None:
    """Writes every good row and logs every other one, in their order.

    advance: called once for each row. TooManyRejectsError: from the log, when it has seen too many.
    """
    threads = threads or cores()
    pending: collections.deque[concurrent.futures.Future | BadRow] = collections.deque()

    def settle() -> None:
        first = pending.popleft()
        try:
            if isinstance(first, BadRow):
                raise first
            writer.write(first.result())
            log.good()
        except BadRow as error:
            log.rejected(error)
        advance()

    with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="rows") as pool:
        try:
            for row in rows:
                pending.append(row if isinstance(row, BadRow) else pool.submit(check, row))
                if len(pending) >= _AHEAD * threads:
                    settle()
            while pending:
                settle()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _blank(caption: str) -> bool:
    return not caption or caption.isspace()


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", None) or error).split("\n")[0]
