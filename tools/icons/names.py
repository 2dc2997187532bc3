"""What an icon is called: its name in words, with and without the words that say its style."""

import re
from collections.abc import Mapping

# Words that say how an icon is drawn, not what it shows (the most frequent words of icon names are such).
# fmt: off
_ALWAYS = frozenset((
    "outline", "outlined", "outlines", "filled", "solid", "linear", "lined", "duotone", "duo", "twotone", "semibold",
    "extralight", "sharp", "sharpened", "rounded", "bulk", "remix", "baseline", "freehand", "px",
))
# These are a style at the end of a name ("arrow-light") and may say something elsewhere ("light-bulb").
_AT_THE_END = frozenset((
    "black", "bold", "broken", "extra", "fill", "flat", "light", "line", "medium", "regular", "round", "stroke", "thin",
    "tone", "two",
))
# fmt: on
_SPLIT = re.compile(r"[-_\s]+")
_NUMBER = re.compile(r"\d+(px)?")


def full_name(name: str) -> str:
    """ "arrow-down-bold-outline" -> "arrow down bold outline"."""
    return " ".join(word for word in _SPLIT.split(name.lower()) if word)


def plain_name(name: str, icon_set: Mapping) -> str:
    """The name without the set's own suffixes and prefixes of style, style words and sizes; "" if nothing is left.

    icon_set: an iconify set, whose `suffixes` and `prefixes` name its styles.
    """
    for suffix in sorted(icon_set.get("suffixes", {}), key=len, reverse=True):
        if suffix and name.endswith(f"-{suffix}"):
            name = name.removesuffix(f"-{suffix}")
            break
    for prefix in sorted(icon_set.get("prefixes", {}), key=len, reverse=True):
        if prefix and name.startswith(f"{prefix}-"):
            name = name.removeprefix(f"{prefix}-")
            break
    words = full_name(name).split()
    while len(words) > 1 and (words[-1] in _ALWAYS | _AT_THE_END or _NUMBER.fullmatch(words[-1])):
        words.pop()
    return " ".join(word for word in words if word not in _ALWAYS)


def captions(name: str, icon_set: Mapping) -> list[str]:
    """The name without words of style, and the whole name if it says more."""
    plain, full = plain_name(name, icon_set), full_name(name)
    return list(dict.fromkeys(text for text in (plain, full) if text))
