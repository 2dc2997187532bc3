"""Prepared data sets of TensorFlow Datasets, by name: read as they lie on disk, nothing is downloaded."""

import functools
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping

from tools.sources.rows import BadRow, LabelTable, Picture, Row

# Of the last part of a text's name ("captions/text"). Most texts of data sets are none that a picture could be paired with:
# names of files, places, licences, the page around it.
_CAPTION_LIKE = re.compile(
    r"(alt_text|captions?|descriptions?|sentences?|texts?|titles?|txt)(?!.*_(id|url|path|file_?name)$)(_|$)"
)


class TfdsSplit:
    """One split of a prepared data set: its pictures still encoded, its texts, the names of its classes."""

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str | None,
        captions: tuple[str, ...] | None,
        label: str | None,
        report: Callable[[str], None] = print,
    ):
        """name: "mnist", "coco_captions/2014:1.1.0". captions, label: features ("captions", "captions/text"); None: texts
        that are called like captions, the first class label.

        ValueError if it is not prepared in data_dir, or has no such split or feature. report: is told what is taken.
        """
        os.environ.setdefault("NO_GCE_CHECK", "true")  # no look for a cloud's machine
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        try:
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
        except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"the data set {name} is not prepared in {data_dir or tfds.core.constants.DATA_DIR}: run `tfds build "
                f"{name}` (or tfds.builder({name!r}).download_and_prepare()) there, or name its place with --tfds_data_dir"
            ) from error
        if split not in builder.info.splits:
            known = ", ".join(builder.info.splits)
            raise ValueError(
                f"the data set {name} has no split {split}; it has {known}: give one with --tfds_split"
            )
        features = dict(sorted(builder.info.features.items()))  # read from disk, they come in any order
        kinds = tfds.features
        pictures = [key for key, kind in features.items() if isinstance(kind, kinds.Image)]
        if not pictures:
            raise ValueError(f"the data set {name} has no picture; its features are {', '.join(features)}")
        classes = [key for key, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
        if label and label not in features:
            raise ValueError(f"the data set {name} has no {label}; its features are {', '.join(features)}")
        self._picture, self._label = pictures[0], label or (classes[0] if classes else None)
        texts = dict(_texts(features, kinds))
        self._captions = [texts[path] for path in _chosen(name, list(texts), captions)]
        if not self._captions and self._label is None:
            raise ValueError(
                f"the data set {name} has no class label, and no text called like a caption; its texts are "
                f"{', '.join(texts) or 'none'}: name them with --caption_columns"
            )
        taken = {
            "picture": self._picture,
            "label": self._label,
            "captions": ", ".join(map("/".join, self._captions)),
        }
        report(f"{name}: " + ", ".join(f"{what} from {key or 'nothing'}" for what, key in taken.items()))
        self.labels = LabelTable(list(features[self._label].names) if self._label else None)
        self._where, self._key = f"tfds:{builder.info.full_name}/{split}", "id" if "id" in features else None
        self.total = builder.info.splits[split].num_examples
        self.licence = builder.info.redistribution_info.license or ""
        self._dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={self._picture: tfds.decode.SkipDecoding()},
        )

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All examples."""
        for number, example in enumerate(self._dataset.as_numpy_iterator()):
            where = {"file": self._where, "row": number}
            captions = tuple(
                text.decode("utf-8", "surrogateescape")
                for keys in self._captions
                for text in _flat(functools.reduce(operator.getitem, keys, example))
            )
            labels = (
                () if self._label is None else tuple(int(n) for n in _flat(example[self._label]) if n >= 0)
            )
            identity = example[self._key] if self._key else f"{self._where}/{number}"
            identity = identity.decode("utf-8", "replace") if isinstance(identity, bytes) else str(identity)
            yield Row(where, Picture(example[self._picture]), captions, labels, identity)


def _texts(features: Mapping, kinds, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and keys of each text, also of those in dictionaries and in sequences of them: "captions/text"."""
    for key, kind in features.items():
        own = (*keys, key)
        while isinstance(kind, kinds.Sequence):
            kind = kind.feature
        if isinstance(kind, kinds.FeaturesDict):
            yield from _texts(dict(kind.items()), kinds, own)
        elif isinstance(kind, kinds.Text):
            yield "/".join(own), own


def _chosen(name: str, texts: list[str], given: tuple[str, ...] | None) -> list[str]:
    """The texts that are captions: the given ones (a dictionary's name stands for those in it), or all that are called so.

    ValueError for a given one that is no text.
    """
    if given is None:
        return _like_captions(texts)
    found = []
    for wanted in given:
        inside = [text for text in texts if text.startswith(f"{wanted}/")]
        own = [wanted] if wanted in texts else _like_captions(inside) or inside
        if not own:
            raise ValueError(
                f"the data set {name} has no text {wanted}; its texts are {', '.join(texts) or 'none'}: name one of them "
                "with --caption_columns"
            )
        found += own
    return found


def _like_captions(texts: list[str]) -> list[str]:
    return [text for text in texts if _CAPTION_LIKE.match(text.rpartition("/")[2])]


def _flat(value) -> list:
    """A feature of one example as a list: texts may come one or many, labels too."""
    if isinstance(value, bytes):
        return [value]
    return list(value.reshape(-1)) if getattr(value, "ndim", 0) else [value]
