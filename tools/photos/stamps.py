"""Tux Paint's stamps: the cut-out photographs among them, each with a short caption."""

import io
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tools.sources import debian
from tools.sources.rasters import on_white
from tools.sources.rows import FILTERED, BadRow, LabelTable, Row

STAMPS = debian.Deb(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2.0-or-later",
)
_ROOT = "usr/share/tuxpaint/stamps/"
_DRAWN_FOLDERS = ("symbols/", "town/roadsigns/", "town/flags/", "seasonal/")
_LEAST_COLOURS = 0.1
_ARTICLE = re.compile(r"^(a pair of|an?|the|some)\s+", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?])\s")  # of a sentence
_ASIDE = re.compile(r"\s*[(,:;]")
_QUOTES = re.compile('["\u201c\u201d]')
_MOST_WORDS = 3  # of a name without an article


def is_photograph(path: str, encoded: bytes) -> bool:
    """Whether a stamp is a photograph: not in a folder of drawings, and hardly two of its pixels alike.

    Photographs have at least 0.1 distinct colours (of 6 bits a channel) for each opaque pixel; drawings have flat areas.
    """
    if path.startswith(_DRAWN_FOLDERS) or "/cartoon/" in path:
        return False
    image = Image.open(io.BytesIO(encoded)).convert("RGBA")
    image.thumbnail((160, 160), Image.Resampling.NEAREST)
    pixels = np.asarray(image).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 200][:, :3]
    return len(opaque) >= 50 and len(np.unique(opaque >> 2, axis=0)) >= _LEAST_COLOURS * len(opaque)


def class_name(caption: str) -> str:
    """The thing that a caption names: "A wild boar." -> "wild boar"; "" for a sentence that names none.

    The first sentence counts, without what follows in brackets or after a comma. A name has an article or at most three
    words, and no exclamation mark: "Eat your broccoli!" is none.
    """
    first = _END.split(caption.strip(), maxsplit=1)[0]
    first = _ASIDE.split(first, maxsplit=1)[0].strip().rstrip(".").strip()
    bare = _ARTICLE.sub("", first)
    if "!" in first or (bare == first and len(first.split()) > _MOST_WORDS):
        return ""
    return _QUOTES.sub("", bare).strip().lower()


class Stamps:
    """The photographs with a caption as rows; each distinct caption is a class."""

    total = None

    def __init__(self, deb: Path, size: int):
        self._size = size
        pictures, texts = {}, {}
        for name, content in debian.files(deb):
            path = posixpath.splitext(name.removeprefix(_ROOT))[0]
            if name.startswith(_ROOT) and name.endswith(".png"):
                pictures[path] = content
            elif name.startswith(_ROOT) and name.endswith(".txt"):
                lines = content.decode("utf-8", "replace").splitlines()
                texts[path] = lines[0].strip() if lines else ""
        self._pictures = {
            path: content
            for path, content in sorted(pictures.items())
            if path in texts and _decodes(path, content)
        }
        self._captions = {path: texts[path] for path in self._pictures}
        self.classes = sorted({class_name(text) for text in self._captions.values()} - {""})
        self.labels = LabelTable(self.classes)

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All of them."""
        for path, caption in self._captions.items():
            where = {"file": STAMPS.file_name, "member": path}
            name = class_name(caption)
            if not name:
                yield BadRow("caption names no thing", caption, where, FILTERED)
                continue
            labels = (self.classes.index(name),)
            yield Row(where, on_white(self._pictures[path], self._size), (caption,), labels, path)

    def described_classes(self) -> list[dict]:
        """The classes as evaluation reads them."""
        return [{"name": name, "described": name, "keywords": [], "code": name} for name in self.classes]


def _decodes(path: str, content: bytes) -> bool:
    try:
        return is_photograph(path, content)
    except (OSError, SyntaxError):
        return False
