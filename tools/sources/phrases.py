"""Names that must not occur in training texts: found as whole phrases in any case and punctuation."""

import functools
import re
import unicodedata
from collections.abc import Iterable

_APOSTROPHES = re.compile(r"['’ʼ]")
_WORD = re.compile(r"[^\W_]+")


@functools.lru_cache(1 << 17)
def words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without accents and punctuation: "Piñata, T-shirt" has 3."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
    return tuple(_WORD.findall(_APOSTROPHES.sub("", text.lower())))


class Phrases:
    """A set of phrases that looks for them in texts.

    A phrase counts as present if its words stand in the text one after the other, also with a plural ending
    more or less on the last word, or written together ("hot dog", "Hot-Dogs", "hotdog"). So it finds at least
    what a search for whole phrases without regard to case finds.
    """

    def __init__(self, phrases: Iterable[str]):
        self._by_first: dict[str, set[tuple[str, ...]]] = {}
        for phrase in phrases:
            for variant in _variants(words(phrase)):
                self._by_first.setdefault(variant[0], set()).add(variant)

    def found(self, text: str) -> str | None:
        """The first phrase in the text (as words joined by spaces), or None."""
        own = words(text)
        for i, word in enumerate(own):
            for phrase in self._by_first.get(word, ()):
                if own[i : i + len(phrase)] == phrase:
                    return " ".join(phrase)
        return None

    def __contains__(self, text: str) -> bool:
        return self.found(text) is not None


def _variants(phrase: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    if not phrase:
        return
    for whole in {phrase, ("".join(phrase),)}:
        *first, last = whole
        yield whole
        yield (*first, last + "s")
        yield (*first, last + "es")
        if last.endswith("s") and len(last) > 3:
            yield (*first, last[:-1])
