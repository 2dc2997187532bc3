"""Which whole rows are wanted: the filters of ALIGN's noisy alt-text data, each with its number.

ALIGN (arXiv 2102.05918, section 3; the alt-text half of BASIC's data, basic_paper section 3): shorter side above 200
pixels, aspect ratio below 3, texts of 3 to 20 unigrams, no text that more than 10 pictures share.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable

from tools.sources.rows import FILTERED, BadRow


@dataclasses.dataclass(frozen=True)
class Filters:
    """Everything is kept by default.

    shorter_side_above: pixels. aspect_below: longer side over shorter side. words: (fewest, most) unigrams of a
    caption, separated by spaces. caption_repeats: a caption that more rows than this have is left out.
    """

    shorter_side_above: int = 0
    aspect_below: float | None = None
    words: tuple[int, int] | None = None
    caption_repeats: int | None = None

    def picture(self, width: int, height: int) -> None:
        """Raises BadRow if the picture is not wanted."""
        short, long = sorted((width, height))
        if short <= self.shorter_side_above:
            raise BadRow("small picture", f"{width} x {height}", kind=FILTERED)
        if self.aspect_below is not None and long >= self.aspect_below * short:
            raise BadRow("aspect ratio", f"{width} x {height}", kind=FILTERED)

    def captions(self, captions: Iterable[str], repeats: "CaptionCounts | None") -> list[str]:
        """The wanted ones of some captions. BadRow, with the cause of the last one, if none is wanted."""
        kept, cause = [], None
        for caption in captions:
            words = len(caption.split())
            if self.words and words < self.words[0]:
                cause = BadRow("short caption", f"{words} words: {caption[:80]}", kind=FILTERED)
            elif self.words and words > self.words[1]:
                cause = BadRow("long caption", f"{words} words: {caption[:80]}", kind=FILTERED)
            elif self.caption_repeats is not None and repeats.of(caption) > self.caption_repeats:
                cause = BadRow(
                    "repeated caption", f"{repeats.of(caption):,} times: {caption[:80]}", kind=FILTERED
                )
            else:
                kept.append(caption)
        if cause is not None and not kept:
            raise cause
        return kept


ALIGN = Filters(shorter_side_above=200, aspect_below=3.0, words=(3, 20), caption_repeats=10)


class CaptionCounts:
    """How many rows have a caption, whatever its case and spaces: about 100 bytes for each distinct caption."""

    def __init__(self):
        self._counts: collections.Counter[bytes] = collections.Counter()

    def add(self, captions: Iterable[str]) -> None:
        """Counts the captions of one row, each once."""
        self._counts.update({_digest(caption) for caption in captions})

    def of(self, caption: str) -> int:
        """The number of rows."""
        return self._counts[_digest(caption)]


def _digest(caption: str) -> bytes:
    text = " ".join(caption.lower().split())
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
