"""The rows of a CSV file in which any row may be damaged: a row that cannot be read takes no other one with it."""

import collections
import csv
from collections.abc import Iterator

from tools.pairs.files import lines
from tools.sources.rows import BadRow


class _Lines:
    """Decoded lines, those of the row in hand kept, so that they can be read again.

    Bytes that are no UTF-8 become lone surrogates: they spoil their own cell only.
    """

    def __init__(self, path: str):
        self._new = (line.decode("utf-8", "surrogateescape") for _, line in lines(path))
        self._again: collections.deque[str] = collections.deque()
        self.taken: list[str] = []
        self.first = 1  # the number of the first taken line

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._new)
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """The next row begins with the next line."""
        self.first += len(self.taken)
        self.taken = []

    def give_back(self) -> None:
        """All taken lines but the first will be read again."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def parsed_rows(
    path: str, delimiter: str, longest: int = 1 << 17
) -> Iterator[tuple[dict, list[str] | BadRow]]:
    """(where, cells) of each row, the header's first; blank lines are no rows, rows are numbered behind the header.

    A row that breaks the rules of CSV, or has more cells than the header, is a BadRow. If it went over several lines
    (a quote that was never closed does so) only its first line is given up, and the others are read as rows.
    longest: characters of a cell, beyond which a quote counts as never closed.
    """
    csv.field_size_limit(longest)  # for the whole process: the csv module knows no other way
    source = _Lines(path)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    width, number = None, -1
    while True:
        source.begin()
        trouble = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not source.taken:  # the end of the file was said already
                return
            cells, trouble = [], str(error)
        if not cells and not trouble:
            continue
        if width is not None and not trouble and len(cells) != width and len(source.taken) > 1:
            trouble = f"{len(source.taken)} lines in quotes make {len(cells)} columns, {width} are expected"
        elif width is not None and len(cells) > width:
            trouble = f"{len(cells)} columns, {width} are expected"
        where = {"file": path, "row": number, "line": source.first}
        number += 1
        if trouble:
            source.give_back()
            yield where, BadRow("malformed row", trouble, where)
        else:
            width = len(cells) if width is None else width
            yield where, cells
