"""CSV, TSV, JSON lines and Parquet: a row for each pair, pictures as paths or as bytes."""

import base64
import binascii
import dataclasses
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from basic_tf.data.shards import is_local
from tools.pairs.csv_rows import parsed_rows
from tools.pairs.files import PictureFile, lines
from tools.sources.rows import BadRow, LabelTable, Picture, Row

# The first of these that a table has is taken where the user names no column.
_PICTURE_NAMES = (
    "image",
    "jpg",
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "path",
    "file",
    "png",
)
_CAPTION_NAMES = ("caption", "captions", "txt", "text", "alt_text", "title", "sentence")
_ID_NAMES = ("id", "key", "image_id")
_PARQUET_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns; None: the usual names are tried. label: None, there are no labels.

    label_separator: between several labels in one text ("" takes the text as one label). base64: pictures stand in the
    table in base64 (Parquet holds bytes as they are and needs no telling). root: where relative paths begin; None: the
    table's folder.
    """

    picture: str | None = None
    captions: tuple[str, ...] | None = None
    label: str | None = None
    id: str | None = None
    label_separator: str = ""
    base64: bool = False
    root: str | None = None


class Tables:
    """The rows of some tables of one kind: "csv", "tsv", "jsonl" or "parquet"."""

    def __init__(self, paths: Sequence[str], kind: str, columns: Columns, labels: LabelTable):
        self._paths, self._kind, self._columns, self.labels = list(paths), kind, columns, labels
        self.total = sum(map(_parquet_rows, paths)) if kind == "parquet" else None

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All rows. Pictures in files are only read when a row is asked for its picture.

        pictures: False if only captions are wanted: no column of pictures is read or decoded, and labels get no numbers.
        """
        read = {"csv": self._csv, "tsv": self._csv, "jsonl": self._json, "parquet": self._parquet}[self._kind]
        for path in self._paths:
            yield from read(path, pictures)

    def _csv(self, path: str, pictures: bool) -> Iterator[Row | BadRow]:
        parsed = parsed_rows(
            path, "\t" if self._kind == "tsv" else ",", 1 << 26 if self._columns.base64 else 1 << 17
        )
        _, header = next(parsed, ({}, None))
        if not isinstance(header, list):
            raise ValueError(
                f"{path} is empty or no table: expected the names of the columns in its first line"
            )
        header = [name.strip() for name in header]
        chosen = self._chosen(path, header)
        for where, cells in parsed:
            if isinstance(cells, BadRow):
                yield cells
            else:
                yield self._row(path, chosen, dict(zip(header, cells)), where, pictures)

    def _json(self, path: str, pictures: bool) -> Iterator[Row | BadRow]:
        for number, (offset, line) in enumerate(lines(path)):
            where = {"file": path, "row": number, "offset": offset}
            try:
                values = json.loads(line.decode())
            except UnicodeDecodeError as error:
                yield BadRow(
                    "bad encoding", f"no UTF-8: {error.reason} at byte {offset + error.start}", where
                )
                continue
            except ValueError as error:
                if line.strip():
                    yield BadRow("malformed row", str(error), where)
                continue
            if isinstance(values, dict):
                yield self._row(path, self._chosen(path, values, False), values, where, pictures)
            else:
                yield BadRow("malformed row", f"an object is expected, not {type(values).__name__}", where)

    def _parquet(self, path: str, pictures: bool) -> Iterator[Row | BadRow]:
        file = _open_parquet(path)
        chosen = self._chosen(path, file.schema_arrow.names)
        others = (chosen.picture, chosen.label, chosen.id) if pictures else ()
        wanted = [*chosen.captions, *(name for name in others if name)]
        number = 0
        for group in range(file.num_row_groups):  # a damaged one takes no other one with it
            end = number + file.metadata.row_group(group).num_rows
            try:
                batches = file.iter_batches(_PARQUET_ROWS, [group], columns=list(dict.fromkeys(wanted)))
                for batch in batches:
                    for values in _plain_rows(batch):
                        where = {"file": path, "row": number}
                        number += 1
                        if isinstance(values, BadRow):
                            values.where = where
                            yield values
                        else:
                            yield self._row(path, chosen, values, where, pictures)
            except OSError as error:  # pyarrow's, for pages it cannot read
                detail = f"row group {group}: {error}".split("\n")[0]
                where = {"file": path, "row": number}
                yield BadRow("damaged Parquet file", detail, where, rows=end - number)
            number = end

    def _chosen(self, path: str, names: Sequence[str] | Mapping, demanded: bool = True) -> Columns:
        """The columns by their real names. demanded: a name that is not there is an error of the file."""
        given = self._columns
        picture = given.picture or next((n for n in _PICTURE_NAMES if n in names), None)
        captions = given.captions
        if captions is None:
            captions = tuple(n for n in _CAPTION_NAMES if n in names)[:1]
        identity = given.id or next((n for n in _ID_NAMES if n in names), None)
        if demanded:
            missing = [n for n in (picture, *captions, given.label, given.id) if n and n not in names]
            if missing or not picture or not (captions or given.label):
                what = (
                    f"no column {', '.join(missing)}"
                    if missing
                    else "no column for the picture, or none for a text"
                )
                raise ValueError(
                    f"{path} has {what}; it has {', '.join(names)}: name them with --image_column, --caption_columns, "
                    "--label_column"
                )
        return dataclasses.replace(given, picture=picture, captions=captions, id=identity)

    def _row(
        self, path: str, chosen: Columns, values: Mapping, where: Mapping, pictures: bool
    ) -> Row | BadRow:
        try:
            others = (chosen.picture, chosen.label) if pictures else ()
            missing = [n for n in (*others, *chosen.captions) if n and n not in values]
            if missing or not chosen.picture or not (chosen.captions or chosen.label):
                raise BadRow(
                    "missing column", ", ".join(missing) or f"the row has {', '.join(values) or 'nothing'}"
                )
            captions = tuple(caption for name in chosen.captions for caption in _texts(values[name]))
            if not pictures:
                return Row(where, Picture(b""), captions)
            label = values[chosen.label] if chosen.label else None
            if chosen.label_separator and isinstance(label, str):
                label = label.split(chosen.label_separator)
            return Row(
                where,
                self._picture(path, values[chosen.picture]),
                captions,
                self.labels.numbers(label),
                str(values.get(chosen.id) or "") or _identity(values[chosen.picture]),
            )
        except BadRow as error:
            error.where = dict(where)
            return error

    def _picture(self, path: str, value):
        if isinstance(value, dict):  # as Hugging Face's datasets write it: {"bytes": ..., "path": ...}
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Picture(value)
        if not isinstance(value, str) or not value:
            raise BadRow("missing picture", f"neither a path nor bytes: {value!r}"[:120])
        if self._columns.base64:
            try:
                return Picture(base64.b64decode(value, validate=True))
            except (binascii.Error, ValueError) as error:
                raise BadRow("bad encoding", f"no base64: {error}") from error
        root = self._columns.root
        return PictureFile(posixpath.dirname(path) if root is None else root, value)


def _texts(value) -> list[str]:
    if value is None:
        return [""]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if not isinstance(value, str):
        raise BadRow("caption is no text", f"{value!r}"[:120])
    return [value]


def _identity(picture) -> str:
    picture = picture.get("path") if isinstance(picture, dict) else picture
    return picture if isinstance(picture, str) and len(picture) <= 512 else ""


def _open_parquet(path: str):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    try:
        if is_local(path):
            return pyarrow.parquet.ParquetFile(path)
        with tf.io.gfile.GFile(path, "rb") as file:
            return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(file.read()))
    except (OSError, pyarrow.ArrowInvalid) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no whole Parquet file ({reason}); copy or write it again") from error


def _parquet_rows(path: str) -> int:
    return _open_parquet(path).metadata.num_rows


def _plain_rows(batch) -> Iterator[dict | BadRow]:
    """Rows of a record batch as Python values; one that cannot be read (no UTF-8) is a bad row of its own."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield BadRow("bad encoding", f"no UTF-8: {error.reason}")
