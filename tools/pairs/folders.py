"""A folder of class folders: each folder's name is the label of the pictures in it, whatever their depth."""

import posixpath
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from tools.pairs.files import PICTURE_ENDINGS, PictureFile, ending, is_hidden
from tools.sources import choices
from tools.sources.rows import BadRow, LabelTable, Row

_BESIDE = ("txt", "json")  # what may lie beside a picture; the .txt of the same name is its caption


class ClassFolders:
    """Pictures in an order drawn by hash, so that the classes are mixed in every shard.

    labelled: whether folders are classes (False: pictures with captions beside them, as img2dataset's `files` output, in
    the folder itself or in others). Hidden folders and files are left out.
    """

    def __init__(self, folder: str, labels: LabelTable, seed: int = 1, labelled: bool = True):
        if not tf.io.gfile.isdir(folder):
            raise FileNotFoundError(f"there is no folder {folder}: check --input")
        self.labels, self._labelled = labels, labelled
        if labelled:
            for name in sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder)):
                if not is_hidden(name) and tf.io.gfile.isdir(posixpath.join(folder, name)):
                    labels.numbers(name)  # in the order of the names, a class without pictures too
        self._files, hidden = [], []
        for root, _, names in tf.io.gfile.walk(folder):
            inside = posixpath.relpath(root, folder)
            parts = [] if inside == "." else inside.split("/")
            if any(map(is_hidden, parts)):
                hidden.append(inside)
                continue
            for name in names:
                lies_loose = labelled and not parts  # what is no picture there (a README) is nobody's loss
                wanted = ending(name) in PICTURE_ENDINGS if lies_loose else ending(name) not in _BESIDE
                if wanted and not is_hidden(name):
                    self._files.append((parts[0] if parts else "", posixpath.join(root, name)))
        if hidden:
            logging.warning(
                "%s: %d hidden folders are left out: %s", folder, len(hidden), ", ".join(hidden[:3])
            )
        if not any(top or not labelled for top, _ in self._files):
            raise ValueError(
                f"{folder} holds no folder with files: expected {folder}/<class>/<picture>, or, with --nofolder_labels, "
                "pictures with a .txt of the same name beside each"
            )
        self._files = choices.ordered(self._files, seed, key=lambda item: posixpath.relpath(item[1], folder))
        self._folder, self.total = folder, len(self._files)

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All files of the class folders, and the pictures beside those folders as bad rows."""
        for top, path in self._files:
            where = {"file": path}
            if ending(path) not in PICTURE_ENDINGS:
                yield BadRow("no picture's file name", f"expected one of {', '.join(PICTURE_ENDINGS)}", where)
                continue
            if self._labelled and not top:
                yield BadRow("not in a class folder", f"expected {self._folder}/<class>/<picture>", where)
                continue
            try:
                labels = self.labels.numbers(top) if self._labelled else ()
                beside = posixpath.splitext(path)[0] + ".txt"
                captions = (_text(beside),) if tf.io.gfile.exists(beside) else ()
            except BadRow as error:
                error.where = where
                yield error
                continue
            yield Row(where, PictureFile("", path), captions, labels, posixpath.relpath(path, self._folder))


def _text(path: str) -> str:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read().decode("utf-8", "surrogateescape")
