"""Opens a public test: pictures from TensorFlow Datasets or from our TFRecords, names and templates of the prompts file."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from basic_tf.evaluation import datasets, prompts
from basic_tf.evaluation.public_sets import PUBLIC_SETS, PublicSet, camel_case_words, plain_label


class MissingTestError(Exception):
    """A test whose pictures are not on disk; the message is one line that says how to get them."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The content of the prompts file, by data set."""

    path: str
    classes: dict[str, list[str]]
    templates: dict[str, list[str]]
    wordnet_ids: dict[str, list[str]]

    @classmethod
    def load(cls, path: str) -> "Prompts":
        """Reads the JSON file of tools/prepare_prompts.py; ValueError says how to make it."""
        if not tf.io.gfile.exists(path):
            raise ValueError(
                f"there are no prompts at {path}; make them with python tools/prepare_prompts.py --output={path}"
            )
        try:
            with tf.io.gfile.GFile(path) as file:
                content = json.load(file)
            return cls(path, content["classes"], content["templates"], content["wordnet_ids"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no file of tools/prepare_prompts.py ({error!r}); make it again"
            ) from error

    def mask(self, subset: str) -> np.ndarray:
        """Which of ImageNet's classes a subset has, bool [1000], from their WordNet ids."""
        return np.isin(self.wordnet_ids["imagenet"], self.wordnet_ids[subset])


@dataclasses.dataclass(frozen=True)
class TfdsTest:
    """One public test out of TensorFlow Datasets; the same members as `datasets.TestSet`."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    subset: np.ndarray | None
    multi_label: bool
    pictures: tf.data.Dataset
    described: None = None

    def batches(self, size: int = 256) -> Iterator[tuple[list[bytes], np.ndarray, np.ndarray]]:
        """(encoded pictures, labels int64 [n] or int8 [n, C], numbers int64 [n]), in the order of the files.

        Several labels to a picture are 1 where it shows the class, 0 where not, -1 where all it shows of it is difficult:
        the devkit of VOC leaves the picture out for that class.
        """
        numbered = enumerate(self.pictures.as_numpy_iterator())
        while chunk := list(itertools.islice(numbered, size)):
            labels = [example["label"] for _, example in chunk]
            if self.multi_label:
                of_class = np.zeros((len(chunk), len(self.classes)), np.int8)
                for row, (_, example) in enumerate(chunk):
                    of_class[row, example["label"]] = -1
                    of_class[row, example["clear"]] = 1
                labels = of_class
            yield (
                [example["image"] for _, example in chunk],
                np.asarray(labels),
                np.array([n for n, _ in chunk]),
            )

    def read_images(self, records: np.ndarray) -> list[bytes]:
        """The encoded pictures with these numbers."""
        wanted = set(np.asarray(records).tolist())
        found = {}
        for number, example in enumerate(self.pictures.as_numpy_iterator()):
            if number in wanted:
                found[number] = example["image"]
                if len(found) == len(wanted):
                    break
        return [found[number] for number in np.asarray(records).tolist()]


def open_public(name: str, prompts_file: Prompts, data_dir: str | None, tfds_dir: str | None):
    """The test of that name. MissingTestError if it is not on disk; KeyError for a name that is no public test.

    data_dir: of our TFRecords. tfds_dir: of TensorFlow Datasets (default: its own, ~/tensorflow_datasets).
    """
    spec = PUBLIC_SETS[name]
    return (
        _from_records(spec, prompts_file, data_dir)
        if spec.tfds is None
        else _from_tfds(spec, prompts_file, tfds_dir)
    )


def _from_records(spec: PublicSet, prompts_file: Prompts, data_dir: str | None):
    if data_dir is None or spec.name not in datasets.tests(data_dir):
        where = f"there is no {data_dir}/test_{spec.name}.json" if data_dir else "no --data_dir is given"
        raise MissingTestError(f"{spec.name} is not on disk: {where}{spec.preparation}")
    test = datasets.open_test(data_dir, spec.name)
    _check_records(spec, test, prompts_file)
    classes = tuple(map(camel_case_words, test.classes)) if spec.camel_case else test.classes
    return dataclasses.replace(test, classes=classes, templates=_templates(spec, prompts_file))


def _check_records(spec: PublicSet, test: datasets.TestSet, prompts_file: Prompts) -> None:
    """ValueError if the records are another test than the published figures are of."""
    problem = None
    names = spec.classes and tuple(prompts_file.classes[spec.classes])
    border = test.source.metadata.get("crop_border", spec.crop_border)
    if len(test.classes) != spec.class_count:
        problem = f"it has {len(test.classes)} classes, the test of the field has {spec.class_count}"
    elif names and test.classes != names:
        wrong = next(row for row, name in enumerate(names) if test.classes[row] != name)
        problem = f"class {wrong} is {test.classes[wrong]!r}, but {names[wrong]!r} in {prompts_file.path}"
    elif border != spec.crop_border:
        problem = f"its pictures were cropped by {border} pixels on each side, not by {spec.crop_border}"
    if problem:
        raise ValueError(f"{test.path} is not {spec.title}: {problem}{spec.preparation}")


def _from_tfds(spec: PublicSet, prompts_file: Prompts, tfds_dir: str | None) -> TfdsTest:
    os.environ.setdefault(
        "NO_GCE_CHECK", "true"
    )  # no look for a machine of a cloud: a minute where there is no network
    import tensorflow_datasets as tfds  # seconds, and only here

    builder = tfds.builder(spec.tfds, data_dir=tfds_dir, try_gcs=False)
    multi_label = spec.figure == "mean_average_precision"
    keys = {"label": "labels", "clear": "labels_no_difficult"} if multi_label else {"label": "label"}
    try:
        pictures = builder.as_dataset(
            split=spec.split,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(
                {"image": True, **dict.fromkeys(keys.values(), True)}, {"image": tfds.decode.SkipDecoding()}
            ),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    except AssertionError as error:  # what TFDS raises where nothing was prepared
        folder = f" --data_dir={tfds_dir}" if tfds_dir else ""
        raise MissingTestError(
            f"{spec.name} is not on disk: build it with `tfds build {spec.tfds}{folder}`{spec.preparation}"
        ) from error
    pictures = pictures.map(
        lambda example: {
            "image": example["image"],
            **{ours: example[theirs] for ours, theirs in keys.items()},
        }
    )
    feature = builder.info.features[keys["label"]]
    labels = tuple((feature.feature if multi_label else feature).names)
    return TfdsTest(
        spec.name,
        _classes(spec, prompts_file, labels),
        _templates(spec, prompts_file),
        None if spec.subset is None else prompts_file.mask(spec.subset),
        multi_label,
        pictures,
    )


def _classes(spec: PublicSet, prompts_file: Prompts, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Class names in the order of TFDS' labels."""
    if spec.classes is None:
        if all(label.isdigit() for label in labels):
            raise ValueError(
                f"{spec.name}: TFDS knows no label names; build it again with `tfds build {spec.tfds}`"
            )
        return tuple(plain_label(label) for label in labels)
    names = spec.classes if isinstance(spec.classes, tuple) else tuple(prompts_file.classes[spec.classes])
    if len(names) != len(labels):
        raise ValueError(f"{spec.name}: {len(names)} class names for {len(labels)} labels of TFDS")
    if spec.classes == "imagenet" and list(labels) != prompts_file.wordnet_ids["imagenet"]:
        raise ValueError(f"{spec.name}: the WordNet ids of TFDS are not in the order of {prompts_file.path}")
    # TFDS learns some label names only when a set is built; where it has them, the order must be ours.
    if isinstance(spec.classes, tuple) and not all(label.isdigit() for label in labels):
        theirs = tuple(plain_label(label) for label in labels)
        if theirs != names:
            first = next(row for row in range(len(names)) if theirs[row] != names[row])
            raise ValueError(
                f"{spec.name}: class {first} is {names[first]!r} here, but {theirs[first]!r} in TFDS"
            )
    return names


def _templates(spec: PublicSet, prompts_file: Prompts) -> tuple[str, ...]:
    templates = (
        spec.templates if isinstance(spec.templates, tuple) else prompts_file.templates[spec.templates]
    )
    return prompts.check_templates(templates, spec.name)
