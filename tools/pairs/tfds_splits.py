"""Prepared data sets of TensorFlow Datasets, by name: read as they lie on disk, nothing is downloaded."""

import os
from collections.abc import Iterator

from tools.sources.rows import BadRow, LabelTable, Picture, Row


class TfdsSplit:
    """One split of a prepared data set: its pictures still encoded, its texts, the names of its classes."""

    def __init__(
        self, name: str, split: str, data_dir: str | None, captions: tuple[str, ...] | None, label: str | None
    ):
        """name: "mnist", "coco_captions/2014:1.1.0". captions, label: features; None: every text, every class label.

        ValueError if it is not prepared in data_dir, or has no such split or feature.
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
        features = dict(builder.info.features.items())
        kinds = tfds.features
        pictures = [key for key, kind in features.items() if isinstance(kind, kinds.Image)]
        if not pictures:
            raise ValueError(f"the data set {name} has no picture; its features are {', '.join(features)}")
        classes = [key for key, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
        texts = [
            key
            for key, kind in features.items()
            if isinstance(kind, kinds.Text) and key not in ("id", "file_name")
        ]
        missing = [key for key in (*(captions or ()), label) if key and key not in features]
        if missing:
            raise ValueError(
                f"the data set {name} has no {', '.join(missing)}; its features are {', '.join(features)}"
            )
        self._picture, self._captions = pictures[0], list(texts if captions is None else captions)
        self._label = label or (classes[0] if classes else None)
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
                for key in self._captions
                for text in _flat(example[key])
            )
            labels = (
                () if self._label is None else tuple(int(n) for n in _flat(example[self._label]) if n >= 0)
            )
            identity = example[self._key] if self._key else f"{self._where}/{number}"
            identity = identity.decode("utf-8", "replace") if isinstance(identity, bytes) else str(identity)
            yield Row(where, Picture(example[self._picture]), captions, labels, identity)


def _flat(value) -> list:
    """A feature of one example as a list: texts may come one or many, labels too."""
    if isinstance(value, bytes):
        return [value]
    return list(value.reshape(-1)) if getattr(value, "ndim", 0) else [value]
