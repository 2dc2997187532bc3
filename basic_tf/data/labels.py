"""Class labels of records as arrays."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np


def class_count(metadata: Mapping) -> int:
    """The number of classes a dataset's json tells: that of its label_names."""
    names = metadata.get("label_names")
    if not names:
        raise ValueError(
            "the dataset's json has no label_names: give num_classes, or prepare the data with labels"
        )
    return len(names)


def multi_hot(labels: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """float32 [B, num_classes]: 1 at each label of each example."""
    hot = np.zeros((len(labels), num_classes), np.float32)
    rows = np.repeat(np.arange(len(labels)), [len(own) for own in labels])
    hot[rows, np.fromiter(itertools.chain.from_iterable(labels), np.int64, len(rows))] = 1.0
    return hot


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """LookupError unless all labels, int [n], lie in [0, num_classes)."""
    # Python's numbers: this runs once a record, and NumPy takes ten times as long for a label or two.
    values = labels.tolist()
    if values and (min(values) < 0 or max(values) >= num_classes):
        wrong = max(values) if max(values) >= num_classes else min(values)
        raise LookupError(
            f"a record has the label {wrong}, but labels must lie in [0, {num_classes}): "
            "check num_classes and the dataset's label_names"
        )
