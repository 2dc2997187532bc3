"""What lies behind an accuracy: single templates against their ensemble, and which classes are taken for which.

Everything works on embeddings that are there already: no picture is encoded twice.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from basic_tf.evaluation import zero_shot
from basic_tf.evaluation.encoder import Encoder
from basic_tf.evaluation.prompts import class_prompts
from basic_tf.evaluation.ranking import stable_ranks


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class TemplateEffect:
    """One template alone: its top-1, and by how much the ensemble of all is better on the same pictures."""

    template: str
    top1: Interval
    ensemble_gain: Interval


@dataclasses.dataclass(frozen=True)
class TemplateReport:
    """The ensemble's top-1 and every template's, in the order of the templates."""

    ensemble: Interval
    templates: tuple[TemplateEffect, ...]


def template_effects(
    encoder: Encoder,
    classes: Sequence[str | Sequence[str]],
    templates: Sequence[str],
    embeddings: np.ndarray,
    labels: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    canonicalisation: str = "as_is",
) -> TemplateReport:
    """Top-1 of each template alone and of all together on the same pictures, with paired bootstrap intervals.

    embeddings: unit rows [N, E]. labels: int [N]. A resample draws classes, then keeps all pictures of the drawn ones:
    pictures of one class are right or wrong together, so intervals over single pictures would be too narrow.
    """
    labels = np.asarray(labels)
    if len(embeddings) != len(labels) or not len(labels):
        raise ValueError(f"{len(embeddings)} embeddings need as many labels, received {len(labels)}")

    def right(in_templates) -> np.ndarray:
        weights = zero_shot.class_weights(encoder, class_prompts(classes, in_templates, canonicalisation))
        # Equal rows scored once, as in the classifier: only then is a tie a tie.
        unique, column = np.unique(weights, axis=0, return_inverse=True)
        return stable_ranks((embeddings @ unique.T)[:, column.reshape(-1)], labels) < 1

    present, group = np.unique(labels, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(present), np.full(len(present), 1 / len(present)), resamples
    )
    sizes = np.bincount(group, minlength=len(present))

    def interval(values: np.ndarray) -> Interval:
        """values: float [N], one for each picture; the mean over pictures."""
        sums = np.bincount(group, weights=values, minlength=len(present))
        means = drawn @ sums / (drawn @ sizes)
        low, high = np.percentile(means, [2.5, 97.5])
        return Interval(float(np.mean(values)), float(low), float(high))

    together = right(templates).astype(np.float64)
    alone = [right((template,)).astype(np.float64) for template in templates]
    return TemplateReport(
        interval(together),
        tuple(
            TemplateEffect(template, interval(of_one), interval(together - of_one))
            for template, of_one in zip(templates, alone)
        ),
    )


@dataclasses.dataclass(frozen=True)
class ConfusedPair:
    """Pictures of class `label` that were taken for class `predicted`: how many, of how many, and their record numbers."""

    label: int
    predicted: int
    count: int
    examples: int
    records: tuple[int, ...]


def confused_pairs(
    labels: np.ndarray, predictions: np.ndarray, records: np.ndarray, most: int = 20
) -> list[ConfusedPair]:
    """The pairs (true class, best wrong class) with the most pictures, then those with the largest share of their class.

    labels, predictions: int [N], the best class of each picture. records: int [N].
    """
    labels, predictions, records = (np.asarray(part) for part in (labels, predictions, records))
    wrong = np.flatnonzero(labels != predictions)
    sizes = dict(zip(*np.unique(labels, return_counts=True)))
    pairs: dict[tuple[int, int], list[int]] = {}
    for index in wrong:
        pairs.setdefault((int(labels[index]), int(predictions[index])), []).append(int(records[index]))
    found = [
        ConfusedPair(label, predicted, len(own), int(sizes[label]), tuple(own))
        for (label, predicted), own in pairs.items()
    ]
    return sorted(
        found, key=lambda pair: (-pair.count, -pair.count / pair.examples, pair.label, pair.predicted)
    )[:most]


def per_class(
    result: zero_shot.ZeroShotResult, classes: Sequence[str]
) -> list[tuple[str, int, float, float]]:
    """(class, pictures, top-1, top-5) of the classes that have pictures, the hardest first."""
    rows = [
        (name, int(count), float(first / count), float(fifth / count))
        for name, count, first, fifth in zip(classes, result.examples_of, result.top1_of, result.top5_of)
        if count
    ]
    return sorted(rows, key=lambda row: (row[2], row[3], row[0]))
