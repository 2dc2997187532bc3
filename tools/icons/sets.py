"""Which icon sets may be used, and the icons in them."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.icons.names import captions
from tools.sources import choices, npm
from tools.sources.phrases import Phrases
from tools.sources.render import Picture, icon_document, pixels, render_each
from tools.sources.rows import FILTERED, BadRow, LabelTable, Row
from tools.sources.rows import Picture as Encoded

ICONIFY = npm.Package(
    "@iconify/json",
    "2.2.535",
    "sha512-nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw==",
    "each set its own",
)
# Licences under which pictures may be changed and passed on. Not: non-commercial ones, and the GPL, whose terms for
# pictures inside a data set nobody has settled.
# fmt: off
LICENCES = frozenset((
    "Apache-2.0", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "ISC", "MIT",
    "MPL-2.0", "OFL-1.1", "Unlicense",
))
# fmt: on
# Emoji are what is tested on; logos and flags have names that say nothing of what they show.
LEFT_OUT_CATEGORIES = frozenset(("Emoji", "Logos", "Flags / Maps"))
# Emoji and logos too, but not by their category.
LEFT_OUT_SETS = frozenset((
    "devicon", "devicon-plain", "fa-brands", "fa6-brands", "fa7-brands", "fluent-emoji", "skill-icons", "unjs",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Icon:
    """An icon that will be drawn. key: "mdi/home"."""

    key: str
    captions: tuple[str, ...]
    labels: tuple[int, ...]


def usable_sets(archive: Path) -> dict[str, Mapping]:
    """prefix -> its facts in collections.json, of the sets that may be used."""
    collections_json = npm.read_json(archive, "collections.json")
    return {
        prefix: facts
        for prefix, facts in collections_json.items()
        if facts["license"].get("spdx") in LICENCES
        and facts.get("category") not in LEFT_OUT_CATEGORIES
        and prefix not in LEFT_OUT_SETS
    }


class Icons:
    """The icons of the usable sets as rows for `dataset.write_dataset`: drawn on white, `size` pixels square.

    limit: so many icons, drawn by hash. forbidden: names that no caption may say; such icons are left out, and counted
    in the reject file. least: icons that a word must name to become a label.
    """

    def __init__(
        self,
        archive: Path,
        forbidden: Phrases,
        size: int,
        limit: int | None = None,
        least: int = 40,
        workers: int | None = None,
    ):
        self._archive, self._size, self._workers = archive, size, workers
        self.sets = usable_sets(archive)
        names: dict[str, list[str]] = {}
        self.left_out: list[BadRow] = []
        for prefix, icon_set in self._each_set():
            for name in icon_set["icons"]:
                key, texts = f"{prefix}/{name}", captions(name, icon_set)
                found = next((found for found in map(forbidden.found, texts) if found), None)
                if found:
                    where = {"file": ICONIFY.spec, "icon": key}
                    self.left_out.append(BadRow("held-out concept", found, where, FILTERED))
                elif texts:
                    names[key] = texts
        words = {key: set(texts[0].split()) for key, texts in names.items()}
        counts = collections.Counter(word for own in words.values() for word in own)
        common = sorted(
            word
            for word, count in counts.items()
            if count >= least and len(word) > 1 and not word.isdecimal()
        )
        self.labels = LabelTable(common)
        if limit is not None:
            names = {key: names[key] for key in choices.ordered(names, "icons")[:limit]}
        self._icons = {
            key: Icon(key, tuple(texts), self.labels.numbers(sorted(words[key].intersection(common))))
            for key, texts in names.items()
        }
        self.total = len(self._icons) + len(self.left_out)

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """Every icon drawn, set by set; those that were left out come first."""
        yield from self.left_out
        icons: collections.deque[Icon] = collections.deque()

        def drawings() -> Iterator[Picture]:
            for prefix, icon_set in self._each_set():
                for name in icon_set["icons"]:
                    icon = self._icons.get(f"{prefix}/{name}")
                    if icon is not None:
                        icons.append(icon)
                        yield Picture(icon.key, svg=icon_document(icon_set, name))

        for drawn in render_each(drawings(), self._size, self._workers):
            icon = icons.popleft()
            where = {"file": ICONIFY.spec, "icon": icon.key}
            if isinstance(drawn, ValueError):
                yield BadRow("cannot be drawn", str(drawn), where)
            elif pixels(drawn).min() == 255:
                yield BadRow("nothing to see on white", "", where, FILTERED)
            else:
                yield Row(where, Encoded(drawn), icon.captions, icon.labels, icon.key)

    def facts(self) -> dict:
        """What the json says of the sets: licences, and each set's name, author and licence."""
        return {
            "licences": sorted({facts["license"]["spdx"] for facts in self.sets.values()}),
            "sets": {
                prefix: {
                    "name": facts["name"],
                    "author": facts.get("author", {}).get("name", ""),
                    "url": facts.get("author", {}).get("url", ""),
                    "licence": facts["license"]["spdx"],
                }
                for prefix, facts in self.sets.items()
            },
        }

    def _each_set(self) -> Iterator[tuple[str, Mapping]]:
        for _, icon_set in npm.each_json(self._archive, "json"):
            if icon_set["prefix"] in self.sets:
                yield icon_set["prefix"], icon_set
