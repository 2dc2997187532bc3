"""Which tests a data folder holds, and reading them in order.

A data_dir is a folder, or several with commas between ("data/emoji,data/clipart"), whose tests have different names.
A folder has `test_<name>.json` for each zero-shot test and `retrieval.json`, written with their records by
the tools/prepare_*.py programs. The json of a test names its classes: `classes`, a list of names or of
{"name": ..., "described": ...}, where `described` (a string or several) is a richer text for the same class.
"""

import dataclasses
import posixpath
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from basic_tf.data.records import RecordSource, parse_example

_PREFIX = "test_"
_RETRIEVAL = "retrieval"
_READ = 256


@dataclasses.dataclass(frozen=True)
class TestSet:
    """One zero-shot test: where it is, its class names, and a richer text for each class where the data has
    one.

    templates and subset (classes that compete): where the test has its own, as a public one has.
    """

    __test__ = False  # not a pytest class

    name: str
    path: str
    classes: tuple[str, ...]
    described: tuple[tuple[str, ...], ...] | None
    source: RecordSource
    templates: tuple[str, ...] | None = None
    subset: np.ndarray | None = None
    multi_label: bool = False

    def batches(self, size: int = _READ) -> Iterator[tuple[list[bytes], np.ndarray, np.ndarray]]:
        """(encoded pictures, labels int64 [n], record numbers int64 [n]) in the order of the file.

        Damaged records are left out (the record source counts and logs them). A record without exactly one
        label is a ValueError: a zero-shot test has one right answer.
        """
        for records, examples in _examples(self.source, size):
            labels = []
            for record, example in zip(records, examples):
                if len(example.labels) != 1:
                    raise ValueError(
                        f"{self.path}: record {record} has {len(example.labels)} labels; "
                        "a zero-shot test needs exactly one"
                    )
                labels.append(int(example.labels[0]))
            yield [example.image for example in examples], np.asarray(labels, np.int64), records

    def read_images(self, records: np.ndarray) -> list[bytes]:
        """The encoded pictures of some records."""
        return [
            parse_example(payload).image
            for payload in self.source.read(np.asarray(records))
            if payload is not None
        ]


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """Pictures with one or more captions each."""

    name: str
    path: str
    source: RecordSource

    def batches(self, size: int = _READ) -> Iterator[tuple[list[bytes], list[list[str]], np.ndarray]]:
        """(encoded pictures, the captions of each, record numbers int64 [n]) in the order of the file.

        A record without a caption is a ValueError.
        """
        for records, examples in _examples(self.source, size):
            for record, example in zip(records, examples):
                if not example.captions:
                    raise ValueError(
                        f"{self.path}: record {record} has no caption; retrieval needs at least one of every picture"
                    )
            images = [example.image for example in examples]
            yield images, [list(example.captions) for example in examples], records


def _examples(source: RecordSource, size: int):
    for start in range(0, source.count, size):
        indices = np.arange(start, min(start + size, source.count))
        payloads = source.read(indices)
        kept = [
            (index, parse_example(payload))
            for index, payload in zip(indices, payloads)
            if payload is not None
        ]
        if kept:
            yield np.asarray([index for index, _ in kept], np.int64), [example for _, example in kept]


def folders(data_dir: str) -> list[str]:
    """The folders of a data_dir. FileNotFoundError if one is none."""
    parts = [part.strip() for part in data_dir.split(",") if part.strip()]
    for part in parts:
        if not tf.io.gfile.isdir(part):
            raise FileNotFoundError(f"--data_dir={part} is not a folder; tools/prepare_emoji.py makes one")
    return parts


def tests(data_dir: str) -> dict[str, str]:
    """The path of each test by its name."""
    found: dict[str, str] = {}
    for folder in folders(data_dir):
        for file in tf.io.gfile.listdir(folder):
            if file.startswith(_PREFIX) and file.endswith(".json"):
                name, path = file[len(_PREFIX) : -len(".json")], posixpath.join(folder, file)
                if name in found:
                    raise ValueError(f"two tests are called {name}: {found[name]} and {path}; rename one")
                found[name] = path
    return found


def test_names(data_dir: str) -> list[str]:
    """The names of the zero-shot tests in a data_dir: `test_openmoji.json` is "openmoji".

    FileNotFoundError if there is none, and no retrieval.json either.
    """
    names = tests(data_dir)
    if not names and not retrieval_path(data_dir):
        raise FileNotFoundError(
            f"{data_dir} holds no test (neither test_*.json nor {_RETRIEVAL}.json); tools/prepare_emoji.py writes some"
        )
    return sorted(names)


test_names.__test__ = False


def open_test(data_dir: str, name: str) -> TestSet:
    """Opens `<data_dir>/test_<name>.json`. FileNotFoundError lists the tests that are there."""
    path = tests(data_dir).get(name)
    if path is None:
        raise FileNotFoundError(
            f"no test {name!r} in {data_dir}; there are: {', '.join(test_names(data_dir)) or 'none'}"
        )
    source = RecordSource.open(path)
    classes, described = class_texts(source.metadata, path)
    return TestSet(name, path, classes, described, source)


def retrieval_path(data_dir: str) -> str | None:
    """The first `<folder>/retrieval.json`, or None if no folder has one."""
    for folder in folders(data_dir):
        path = posixpath.join(folder, f"{_RETRIEVAL}.json")
        if tf.io.gfile.exists(path):
            return path
    return None


def open_retrieval(data_dir: str) -> RetrievalSet | None:
    """Opens the first `<folder>/retrieval.json`, or None if no folder has one."""
    path = retrieval_path(data_dir)
    return RetrievalSet(_RETRIEVAL, path, RecordSource.open(path)) if path else None


def class_texts(metadata: dict, path: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...] | None]:
    """Class names, and the richer texts of each class (None unless every class has some)."""
    entries = metadata.get("classes") or metadata.get("label_names")
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path}: expected `classes` (or `label_names`), a list of names or of {{name, described}}"
        )
    names, described = [], []
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise ValueError(f"{path}: class {index} has no name: {entry!r}")
        names.append(entry["name"])
        texts = entry.get("described") or ()
        described.append((texts,) if isinstance(texts, str) else tuple(texts))
    return tuple(names), tuple(described) if all(described) else None
