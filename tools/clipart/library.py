"""The drawings of the library with what their authors say of them, and their split."""

import collections
import dataclasses
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from tools.sources import choices, debian
from tools.sources.phrases import Phrases
from tools.sources.rasters import on_white
from tools.sources.rows import FILTERED, BadRow, LabelTable, Row

SVG = debian.Deb(
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "public domain",
)
PNG = debian.Deb(
    "openclipart-png",
    "1:0.18+dfsg-19",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "public domain",
)
_ROOT = re.compile(r"usr/share/openclipart/(?:svg|png)/")
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
# Titles and keywords that hundreds of drawings share and that say nothing of what is drawn.
_EMPTY_TITLES = (
    "lemon svg theme",
    "part of the flat icon collection",
    "gramastar",
    "untitled",
    "email adress",
)
# fmt: off
_EMPTY_WORDS = frozenset((
    "unsorted", "clip art", "clipart", "externalsource", "special", "hash", "svg", "icon", "icons", "theme",
    "lemon theme icon", "action", "application", "filesystem", "device", "mimetypes",
))
# fmt: on
_SHARED = 5  # a title that so many drawings have was copied from one to the others
_BY = re.compile(r"^clipart by [^-]* - ", re.IGNORECASE)
_CARDS = "recreation/games/cards"
_CARD = re.compile(r"[a-z]+_([cdhs])_(\w+)")
_SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
_RANKS = {"a": "ace", "j": "jack", "q": "queen", "k": "king"}
# What the classes of the test are called where a folder's own name does not say it.
_CLASS_NAMES = {
    _CARDS: "playing cards",
    "geography": "maps",
    "people/bodypart": "body parts",
    "people/smilies": "smileys",
    "people/stickmen": "stick figures",
    "shapes/jigsaw": "jigsaw pieces",
    "shapes/callouts": "speech bubbles",
    "shapes/flowchart": "flowchart symbols",
    "signs_and_symbols/flags/africa": "flags of africa",
    "signs_and_symbols/flags/america": "flags of america",
    "signs_and_symbols/flags/america/united_states": "flags of states of the usa",
    "signs_and_symbols/flags/asia": "flags of asia",
    "signs_and_symbols/flags/europe": "flags of europe",
    "signs_and_symbols/flags/europe/france": "flags of regions of france",
    "signs_and_symbols/flags/semaphore": "semaphore flags",
    "signs_and_symbols/led": "led lights",
    "transportation/boating": "boats",
    "transportation/roadsigns": "road signs",
}
_GENERATED = "shapes/stars"
_UNTESTED = ("computer", "unsorted", "special", "logos")
_TEST_LEAST, _TEST_SHARE = 20, 5
_KEYWORDS = 8


@dataclasses.dataclass(frozen=True)
class Drawing:
    """path: "animals/birds/crow_01". title: its own, or its file's; "" if both say nothing. keywords: without empty ones."""

    path: str
    title: str
    keywords: tuple[str, ...]

    @property
    def folder(self) -> str:
        """ "animals/birds"."""
        return posixpath.dirname(self.path)

    def texts(self) -> list[str]:
        """Captions: title, title with keywords, keywords; a drawing that has none is called by its folder."""
        listed = ", ".join(self.keywords[:_KEYWORDS])
        found = [self.title, f"{self.title}: {listed}" if self.title and listed else ""]
        if (
            len(self.keywords) > 1 or not self.title
        ):  # one keyword beside a title is a folder's: hundreds share it
            found.append(listed)
        return [text for text in dict.fromkeys(found) if text] or [folder_name(self.folder)]


def folder_name(folder: str) -> str:
    """A folder as a class is called: "signs_and_symbols/flags" -> "flags"."""
    return posixpath.basename(folder).replace("_", " ")


def class_folder(folder: str) -> str:
    """The folder whose drawings are one class: the decks of playing cards are one."""
    return _CARDS if folder.startswith(f"{_CARDS}/") else folder


def class_name(folder: str) -> str:
    """What a class of the test is called."""
    return _CLASS_NAMES.get(folder) or folder_name(folder)


def file_title(path: str, author: str) -> str:
    """What the name of a file says: "food/red_apple_jane_do_01" by Jane Doe is "red apple", cards have suit and rank.

    Files are called by title and author, cut where they become too long, and a number.
    """
    name = posixpath.basename(path).lower()
    card = _CARD.fullmatch(name) if path.startswith(_CARDS) else None
    if card:
        suit, rank = card.groups()
        return f"{_RANKS.get(rank, rank)} of {_SUITS[suit]}"
    words = re.sub(r"[-_.]+", " ", re.sub(r"_\d*$", "", name)).split()
    words = words[1:] if words and words[0] in ("aiga", "gnome") else words
    by = " ".join(re.findall(r"[a-z0-9]+", author.lower()))
    for first in range(1, len(words)):
        own = " ".join(words[first:])
        if len(own) > 2 and by.startswith(own):
            words = words[:first]
            break
    title = re.sub(r"^\d+ ?|(?<=[a-z])\d+$", "", " ".join(words)).strip()
    return title if len(title) > 2 else ""


def said(svg: bytes) -> tuple[str, tuple[str, ...], str]:
    """(title, keywords, author) that the RDF of a drawing says; all empty where there is none or it is broken."""
    start, end = svg.find(b"<rdf:RDF"), svg.find(b"</rdf:RDF>")
    if start < 0 or end < 0:
        return "", (), ""
    body = svg[svg.find(b">", start) + 1 : end]
    names = b'xmlns:cc="c" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    names += b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    try:
        work = ElementTree.fromstring(b"<rdf " + names + b">" + body + b"</rdf>")
    except (ElementTree.ParseError, ValueError):
        return "", (), ""
    title = _BY.sub("", " ".join((work.findtext(f"*/{_DC}title") or "").replace("_", " ").split()))
    author = work.findtext(f"*/{_DC}creator//{_DC}title") or ""
    if title.lower().startswith(_EMPTY_TITLES):
        title = ""
    words = [" ".join((li.text or "").replace("_", " ").lower().split()) for li in work.iter(f"{_RDF}li")]
    kept = (word for word in words if word and word not in _EMPTY_WORDS and not word.isdecimal())
    return title, tuple(dict.fromkeys(kept)), author


class Library:
    """All drawings, and which of them are a test.

    The test's classes are the folders with at least 20 drawings (without those that are no kinds of things); a fifth of
    each, drawn by hash, is tested on and not trained on.
    """

    def __init__(self, svg: Path, png: Path, forbidden: Phrases, limit: int | None = None):
        self._png, self._forbidden = png, forbidden
        found = {}
        for name, content in debian.files(svg):
            if _ROOT.match(name) and name.endswith(".svg"):
                found[_ROOT.sub("", name).removesuffix(".svg")] = said(content)
        shared = collections.Counter(title for title, _, _ in found.values())
        drawings = {
            path: Drawing(
                path, title if title and shared[title] < _SHARED else file_title(path, author), keywords
            )
            for path, (title, keywords, author) in found.items()
        }
        if limit is not None:
            drawings = {path: drawings[path] for path in choices.ordered(drawings, "clip art")[:limit]}
        self.drawings: dict[str, Drawing] = drawings
        by_folder = collections.defaultdict(list)
        for path, drawing in drawings.items():
            untested = drawing.folder.split("/")[0] in _UNTESTED or drawing.folder == _GENERATED
            if not untested and self.held_out(drawing) is None:
                by_folder[class_folder(drawing.folder)].append(path)
        self.classes = sorted(folder for folder, paths in by_folder.items() if len(paths) >= _TEST_LEAST)
        self.test = {
            path: number
            for number, folder in enumerate(self.classes)
            for path in choices.ordered(by_folder[folder], "test")[: len(by_folder[folder]) // _TEST_SHARE]
        }

    def held_out(self, drawing: Drawing) -> str | None:
        """A held-out concept that any text about a drawing names."""
        for text in (*drawing.texts(), drawing.path.replace("/", ", ").replace("_", " "), *drawing.keywords):
            found = self._forbidden.found(text)
            if found:
                return found
        return None

    def described_classes(self) -> list[dict]:
        """The classes of the test as evaluation reads them."""
        return [
            {
                "name": class_name(folder),
                "described": ", ".join(folder_name(part) for part in reversed(folder.split("/"))),
                "keywords": [part.replace("_", " ") for part in folder.split("/")[:-1]],
                "code": folder,
            }
            for folder in self.classes
        ]


class Drawings:
    """The rows of one half of the library for `dataset.write_dataset`: tested ones, or those that are trained on."""

    licence = "public domain"

    def __init__(self, library: Library, tested: bool, size: int):
        self._library, self._tested, self._size = library, tested, size
        self.labels = LabelTable([] if tested else None)
        self.total = len(library.test) if tested else len(library.drawings) - len(library.test)

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """The drawings that have a PNG, in the order of its package."""
        missing = {path for path in self._library.drawings if (path in self._library.test) == self._tested}
        for name, content in debian.files(self._library._png):
            path = _ROOT.sub("", name).removesuffix(".png")
            if path in missing and name.endswith(".png"):
                missing.remove(path)
                yield self._row(self._library.drawings[path], content)
        for path in sorted(missing):
            yield BadRow("missing picture", "", {"file": PNG.file_name, "member": path}, FILTERED)

    def _row(self, drawing: Drawing, png: bytes) -> Row | BadRow:
        where = {"file": PNG.file_name, "member": drawing.path}
        if self._tested:
            number = self._library.test[drawing.path]
            labels, texts = (number,), [class_name(self._library.classes[number])]
        elif drawing.folder == _GENERATED:
            return BadRow("generated star", "", where, FILTERED)
        elif found := self._library.held_out(drawing):
            return BadRow("held-out concept", found, where, FILTERED)
        else:
            labels = self.labels.numbers([folder_name(part) for part in drawing.folder.split("/")])
            texts = drawing.texts()
        return Row(where, on_white(png, self._size), tuple(texts), labels, drawing.path)
