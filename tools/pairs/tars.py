"""WebDataset: tar shards whose neighbours of one name are one sample (000017.jpg, 000017.txt, 000017.json).

The tar files are walked block by block here: Python's tarfile takes a damaged header for the end of the archive, and
what follows would be lost in silence.
"""

import contextlib
import gzip
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from basic_tf.data.shards import is_local
from tools.pairs.files import PICTURE_ENDINGS, is_hidden
from tools.sources.rows import FILTERED, BadRow, LabelTable, Picture, Row

_BLOCK = 512
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Member(NamedTuple):
    """A file in a tar. offset: of its header. data: whole, or as much as the archive still has; nothing if passed over."""

    name: str
    offset: int
    data: bytes
    whole: bool


class Damage(NamedTuple):
    """A place where the archive is broken."""

    cause: str
    offset: int
    detail: str


def members(file, unread: tuple[str, ...] = ()) -> Iterator[Member | Damage]:
    """The regular files of an uncompressed tar stream, in order. Behind a damaged header the next good one is sought.

    unread: endings of names, as ".jpg"; what such files hold is passed over.
    """
    offset, lost = 0, None
    long_name = ""  # from an extended header, for the member that follows
    while True:
        block = file.read(_BLOCK)
        start, offset = offset, offset + len(block)
        if len(block) < _BLOCK:
            what = f"it ends after {offset:,} bytes without an end mark"
            yield Damage(
                "truncated tar", start, what if lost is None else f"nothing readable follows; {what}"
            )
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:
            if lost is None:
                return
            continue  # zeros inside a damaged part
        except tarfile.HeaderError as error:
            if lost is None:
                lost, long_name = start, ""
                yield Damage("damaged tar header", start, str(error))
            continue
        if lost is not None and block[257:262] != b"ustar":
            continue
        lost = None
        if header.type in _REGULAR and (long_name or header.name).lower().endswith(unread):
            name, long_name = long_name or header.name, ""
            offset += header.size + -header.size % _BLOCK
            with contextlib.suppress(tf.errors.OutOfRangeError):  # cut here: the next read finds the end
                file.seek(offset)
            yield Member(name, start, b"", True)
            continue
        data = (
            file.read(header.size)
            if header.type not in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
            else b""
        )
        padding = file.read(-len(data) % _BLOCK)
        offset += len(data) + len(padding)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE:
            long_name = _pax(data).get("path", "")
        elif header.type in _REGULAR:
            name, long_name = long_name or header.name, ""
            yield Member(name, start, data, len(data) == header.size)
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            long_name = ""


def _pax(data: bytes) -> dict[str, str]:
    """The records of an extended header: "<length> <key>=<value>\\n"."""
    found = {}
    while data:
        length = data.split(b" ", 1)[0]
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found


class WebDataset:
    """The samples of some tar shards (.tar, .tar.gz).

    captions: names of values of a sample's .json that are its captions; None: its .txt, else "caption" of its .json.
    label: a value of its .json; None: its .cls. A sample's picture is its first member with a picture's ending.
    """

    total = None

    def __init__(
        self, paths: Sequence[str], labels: LabelTable, captions: tuple[str, ...] | None, label: str | None
    ):
        self._paths, self.labels, self._captions, self._label = list(paths), labels, captions, label

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All samples, and a bad row for each damage of an archive.

        pictures: False if only captions are wanted: then no picture is read, and labels get no numbers.
        """
        for path in self._paths:
            # GFile reads ahead by more than most pictures hold: nothing would be saved by passing over them.
            with open(path, "rb") if is_local(path) else tf.io.gfile.GFile(path, "rb") as raw:
                zipped = path.endswith((".gz", ".tgz"))
                try:
                    file = gzip.GzipFile(fileobj=raw, mode="rb") if zipped else raw
                    yield from self._samples(path, file, pictures)
                except (EOFError, zlib.error, OSError) as error:
                    if not zipped:
                        raise
                    cause = "truncated tar" if isinstance(error, EOFError) else "damaged gzip"
                    yield BadRow(cause, f"what follows is lost: {error}", {"file": path})

    def _samples(self, path: str, file, pictures: bool) -> Iterator[Row | BadRow]:
        key, group = None, {}
        left_out = []  # README, ._000017.jpg of a Mac: they lie between samples, or between the files of one
        unread = () if pictures else tuple(f".{ending}" for ending in PICTURE_ENDINGS)
        for member in members(file, unread):
            if isinstance(member, Damage):
                if group:
                    yield self._sample(path, key, group, pictures)
                    key, group = None, {}
                yield BadRow(member.cause, member.detail, {"file": path, "offset": member.offset})
                continue
            folder, name = posixpath.split(member.name)
            stem, _, ending = name.partition(".")
            if is_hidden(name) or not ending:
                left_out.append(member.name)
                continue
            own, ending = posixpath.join(folder, stem), ending.lower()
            if group and (own != key or ending in group):
                yield self._sample(path, key, group, pictures)
                group = {}
            key = own
            group[ending] = member
        if group:
            yield self._sample(path, key, group, pictures)
        if left_out:
            detail = f"hidden, or without an ending: {', '.join(left_out[:3])}"
            yield BadRow("no part of a sample", detail, {"file": path}, FILTERED, len(left_out))

    def _sample(self, path: str, key: str, group: dict[str, Member], pictures: bool) -> Row | BadRow:
        where = {"file": path, "offset": min(m.offset for m in group.values()), "member": key}
        try:
            cut = [m.name for m in group.values() if not m.whole]
            if cut:
                raise BadRow("truncated tar", f"the archive ends inside {cut[0]}")
            picture = next((group[ending] for ending in group if ending in PICTURE_ENDINGS), None)
            if picture is None:
                raise BadRow("missing picture", f"the sample has {', '.join(sorted(group))}")
            facts = _facts(group)
            captions = self._captions_of(group, facts)
            labels = self._labels_of(group, facts) if pictures else ()
            return Row(where, Picture(picture.data), captions, labels, key)
        except BadRow as error:
            error.where = where
            return error

    def _captions_of(self, group: dict[str, Member], facts: dict) -> tuple[str, ...]:
        if self._captions is None:
            found = (
                [group["txt"].data] if "txt" in group else [facts["caption"]] if "caption" in facts else []
            )
        else:
            missing = [name for name in self._captions if name not in facts]
            if missing:
                raise BadRow("missing column", f"no {', '.join(missing)} in the sample's .json")
            found = [item for name in self._captions for item in _listed(facts[name])]
        return tuple(_text(caption) for caption in found)

    def _labels_of(self, group: dict[str, Member], facts: dict) -> tuple[int, ...]:
        if self._label is not None:
            if self._label not in facts:
                raise BadRow("missing column", f"no {self._label} in the sample's .json")
            return self.labels.numbers(facts[self._label])
        return self.labels.numbers(_text(group["cls"].data) if "cls" in group else None)


def _facts(group: dict[str, Member]) -> dict:
    """What the sample's .json says."""
    try:
        facts = json.loads(group["json"].data) if "json" in group else {}
    except ValueError as error:
        raise BadRow("malformed json", str(error)) from error
    if not isinstance(facts, dict):
        raise BadRow("malformed json", f"an object is expected, not {type(facts).__name__}")
    return facts


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRow("bad encoding", f"no UTF-8: {error.reason} at byte {error.start}") from error
    if not isinstance(value, str):
        raise BadRow("caption is no text", f"{value!r}"[:120])
    return value
