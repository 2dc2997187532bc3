"""A Markdown document with generated parts between markers; what is outside of them is written by hand.

    <!-- generated: zero_shot runs/demo -->
    ... replaced ...
    <!-- end -->

A marker names the kind and the run folders. Without folders it is the run named like the document: docs/results/demo.md
takes runs/demo.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence

from tools.report.runs import MissingError

_BEGIN = re.compile(r"^<!-- generated: *(\w+)((?: +[^\s>]+)*) *-->[ \t]*$", re.MULTILINE)
_END = re.compile(r"^<!-- end -->[ \t]*$", re.MULTILINE)
_ANY = re.compile(r"<!--\s*(generated\b|end\b)[^\n]*")


def regenerate(
    text: str, document: str, make: Mapping[str, Callable[[Sequence[str]], str]]
) -> tuple[str, list[str]]:
    """(the document with its parts made anew, what is missing as lines for people).

    make: for each kind, its maker. A part whose maker raises MissingError stays as it was. ValueError, with the line's
    number, for a marker that is malformed, unclosed or of a kind that nobody knows.
    """
    pieces, missing, at = [], [], 0
    while (begin := _BEGIN.search(text, at)) is not None:
        where = f"{document}:{text.count(chr(10), 0, begin.start()) + 1}"
        end = _END.search(text, begin.end())
        following = _BEGIN.search(text, begin.end())
        if end is None or (following is not None and following.start() < end.start()):
            raise ValueError(f"{where}: the generated part has no line `<!-- end -->`")
        _check_prose(text[at : begin.start()], document, text, at)
        kind, folders = begin[1], begin[2].split()
        if kind not in make:
            raise ValueError(f"{where}: no kind {kind!r}; there are {', '.join(make)}")
        folders = folders or [f"runs/{os.path.basename(document).removesuffix('.md')}"]
        try:
            body = f"\n{make[kind](folders).strip()}\n"
        except MissingError as error:
            missing.append(f"{where}: {kind} stays as it was: {error}")
            body = text[begin.end() : end.start()]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        pieces += [text[at : begin.end()], body, end[0]]
        at = end.end()
    _check_prose(text[at:], document, text, at)
    return "".join([*pieces, text[at:]]), missing


def _check_prose(prose: str, document: str, text: str, at: int) -> None:
    """A marker with a slip in it would silently be prose for ever."""
    stray = _ANY.search(prose)
    if stray is not None:
        line = text.count("\n", 0, at + stray.start()) + 1
        raise ValueError(
            f"{document}:{line}: {stray[0]!r} is no marker; write `<!-- generated: KIND [RUN ...] -->` on a line of "
            "its own, and `<!-- end -->` after it"
        )
