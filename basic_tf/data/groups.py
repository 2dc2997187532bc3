"""Batches whose examples are of distinct concepts: the groups behind `order.DistinctOrder`, read from the labels."""

import numpy as np

from basic_tf.data.order import DistinctOrder, ExampleOrder
from basic_tf.data.records import parse_example

_READ_AT_ONCE = 1024


def label_groups(source, kind: str) -> np.ndarray:
    """int64 [count]: for each record its first label of the given kind; records without one are groups of their own.

    The dataset's json names the kinds of its labels (`label_kinds`, one for each of `label_names`). ValueError without.
    """
    kinds = np.asarray(source.metadata.get("label_kinds") or ())
    if kind not in kinds:
        raise ValueError(
            f"the dataset's json has no label of kind {kind!r} (it has {', '.join(sorted(set(kinds))) or 'no label_kinds'})"
        )
    of_kind = kinds == kind
    # A record that cannot be read, or has no such label, can be no false negative: a number of its own.
    groups = len(kinds) + np.arange(source.count, dtype=np.int64)
    for start in range(0, source.count, _READ_AT_ONCE):
        indices = np.arange(start, min(start + _READ_AT_ONCE, source.count))
        for index, payload in zip(indices, source.read(indices), strict=True):
            if payload is None:
                continue
            try:
                labels = parse_example(payload).labels
            except ValueError:
                continue
            found = labels[(labels >= 0) & (labels < len(kinds))]
            found = found[of_kind[found]]
            if found.size:
                groups[index] = found[0]
    return groups


def distinct_labels(source, batch_size: int, seed: int, kind: str = "concept") -> DistinctOrder:
    """An order in which no batch holds two records with the same label of `kind`, as far as that is possible.

    In a contrastive batch a second picture of the same concept is a false negative.
    """
    return DistinctOrder(label_groups(source, kind), batch_size, seed)


def distinct_where_labelled(part, seed: int, run: int, kind: str = "concept"):
    """For `mixture.MixtureOrder.orders`: the order of a part, in which `run` examples in a row are of distinct labels of
    `kind`, where the part's json knows such labels; else a permutation for each epoch.

    A batch of a mixture takes the next examples of each part, and may begin amid such a run: choose a run of several
    times what a batch takes. A label of n records stays distinct up to runs of 1 / n of the part.
    """
    if kind in (part.metadata.get("label_kinds") or ()):
        return DistinctOrder(label_groups(part, kind), min(run, part.count), seed)
    return ExampleOrder(part.count, seed)
