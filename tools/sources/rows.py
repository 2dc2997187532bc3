"""One row of foreign data on its way to a record: what a reader yields, and what is wrong with it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

BAD = "bad"  # damaged: nobody wanted that
FILTERED = "filtered"  # whole, but not wanted


class BadRow(ValueError):
    """A row that becomes no record.

    cause: a short phrase, the same for all rows with the same trouble. where: file and row, offset or member. kind:
    BAD, or FILTERED if a filter wanted it so. rows: how many rows are lost with it (a damaged file loses all its rest).
    """

    def __init__(
        self, cause: str, detail: str = "", where: Mapping | None = None, kind: str = BAD, rows: int = 1
    ):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause, self.detail, self.kind, self.rows = cause, detail, kind, rows
        self.where = dict(where or {})


def whole_text(text: str) -> str:
    """The text without spaces around it. BadRow if bytes in it were no UTF-8 (they came as lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("bad encoding", f"no UTF-8: {text[:80]!a}") from error
    return text.strip()


class Picture(NamedTuple):
    """An encoded picture whose bytes are at hand already."""

    encoded: bytes

    def __call__(self) -> bytes:
        """The bytes."""
        return self.encoded


@dataclasses.dataclass(frozen=True)
class Row:
    """where: file and row, offset or member, for messages and the reject file. picture: gives the encoded picture when
    it is called; BadRow or a tf.errors.OpError if it cannot. captions: as found, blank ones among them. labels: numbers.
    """

    where: Mapping[str, object]
    picture: Callable[[], bytes]
    captions: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    id: str = ""


class LabelTable:
    """Names of labels and their numbers.

    names: the names by number; a value is then a number or a name, and any other one is a bad row. None: each new value
    is a new name, numbered as it comes.
    """

    def __init__(self, names: list[str] | None = None):
        self._open = names is None
        self.names = list(names or ())
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def numbers(self, values) -> tuple[int, ...]:
        """The numbers of one value or of a list of values; none of None and of blank ones. BadRow."""
        if values is None:
            return ()
        values = values if isinstance(values, list | tuple) else [values]
        # Checked as captions are: a name that is no UTF-8 would make the whole dataset's json impossible to write.
        texts = [whole_text(str(value)) for value in values]
        return tuple(self._number(text) for text in texts if text)

    def _number(self, value: str) -> int:
        if value in self._numbers:
            return self._numbers[value]
        if self._open:
            self.names.append(value)
            return self._numbers.setdefault(value, len(self.names) - 1)
        if value.isdecimal() and int(value) < len(self.names):
            return int(value)
        raise BadRow(
            "unknown label", f"{value!r} is neither one of the {len(self.names)} label names nor a number"
        )
