"""The reject file: one JSON line for each row that became no record, and the count of each cause."""

import collections
import json

import tensorflow as tf
from absl import logging

from tools.sources.rows import BAD, FILTERED, BadRow

_LOGGED_PER_CAUSE = 5
_ENOUGH_ROWS = 1000


class TooManyRejectsError(RuntimeError):
    """More rows are damaged than the share that is allowed."""


class RejectLog:
    """Counts and writes rejected rows; use it as a context manager.

    Only damaged rows count against max_reject_share, filtered ones do not. With a known total the log stops the tool as
    soon as the share of it is spent, otherwise once the share of the rows so far is above it (of 1,000 at least).
    """

    def __init__(self, path: str, max_reject_share: float, total: int | None = None):
        if not 0.0 <= max_reject_share <= 1.0:
            raise ValueError(f"max_reject_share must lie in [0, 1], got {max_reject_share}")
        self.path, self._share, self._total = path, max_reject_share, total
        self.causes = {kind: collections.Counter() for kind in (BAD, FILTERED)}
        self.rows = 0
        self._file = tf.io.gfile.GFile(path, "w")
        self._file.write("")  # there is a file even if nothing is wrong

    def good(self) -> None:
        """Counts a row that became a record."""
        self.rows += 1

    def rejected(self, row: BadRow) -> None:
        """Writes and counts a row. TooManyRejectsError when too many are damaged."""
        self.rows += row.rows
        counts = self.causes[row.kind]
        counts[row.cause] += row.rows
        entry = {**row.where, "kind": row.kind, "cause": row.cause, "detail": row.detail}
        if row.rows != 1:
            entry["rows"] = row.rows
        self._file.write(json.dumps(entry, ensure_ascii=True, default=str) + "\n")
        if row.kind == BAD:
            if counts[row.cause] <= _LOGGED_PER_CAUSE:
                logging.warning("%s: %s", ", ".join(f"{k} {v}" for k, v in row.where.items()), row)
            if self._total is not None:
                self._check(max(self._total, self.rows))
            elif self.rows >= _ENOUGH_ROWS:
                self._check(self.rows)

    def close(self) -> None:
        """Ends the file; the share is checked a last time."""
        self._file.close()
        self._check(self.rows)

    def as_json(self) -> dict:
        """What a dataset's json says of its making."""
        return {
            "rows": self.rows,
            **{kind: dict(self.causes[kind].most_common()) for kind in (BAD, FILTERED)},
        }

    def _check(self, rows: int) -> None:
        bad = self.causes[BAD].total()
        if bad > self._share * rows:
            worst = ", ".join(f"{cause} {count:,}" for cause, count in self.causes[BAD].most_common(5))
            raise TooManyRejectsError(
                f"{bad:,} of {rows:,} rows are damaged ({worst}), the limit is {self._share:.2%}: see {self.path}, "
                "repair the data or raise --max_reject_share"
            )

    def __enter__(self) -> "RejectLog":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
