"""Files that a user names: patterns to paths, lines of bytes, a picture behind a path."""

import codecs
import posixpath
from collections.abc import Iterator, Sequence

import tensorflow as tf

from basic_tf.data.shards import is_local
from tools.sources.rows import BadRow

PICTURE_ENDINGS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp")


def matching(patterns: Sequence[str]) -> list[str]:
    """The files that match the patterns, in the order of the patterns, then of the names. FileNotFoundError.

    A file of exactly that name comes first: "pairs [2023].csv" is one, and as a pattern would match others.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = [pattern] if tf.io.gfile.exists(pattern) else sorted(tf.io.gfile.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"no file matches {pattern}; patterns go in quotes")
        found |= dict.fromkeys(paths)
    return list(found)


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line, with its end, without the mark that Windows' programs begin UTF-8 with."""
    offset = 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while line := file.readline():
            yield offset, line if offset else line.removeprefix(codecs.BOM_UTF8)
            offset += len(line)


class PictureFile:
    """The picture behind a path; relative ones lie in `root`."""

    def __init__(self, root: str, path: str):
        if path.startswith(("http://", "https://")):
            raise BadRow(
                "a URL, not a file", f"{path[:120]}: fetch the pictures first, for example with img2dataset"
            )
        self._path = posixpath.join(root, path) if is_local(path) else path

    def __call__(self) -> bytes:
        """Reads the file."""
        if "\0" in self._path:
            raise BadRow("missing file", f"a path holds no zero byte: {self._path[:120]!r}")
        with tf.io.gfile.GFile(self._path, "rb") as file:
            return file.read()


def is_hidden(name: str) -> bool:
    """Whether a file or folder holds what a program left there (.ipynb_checkpoints, ._a.jpg, __MACOSX), nobody's data."""
    return name.startswith(".") or name == "__MACOSX"


def ending(path: str) -> str:
    """The end of a file's name in lower case: "a/b.JPG" -> "jpg"."""
    return posixpath.splitext(path)[1].lower().removeprefix(".")
