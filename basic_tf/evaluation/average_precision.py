"""Mean average precision over classes, 11 points of recall (PASCAL VOC 2007), for pictures with several labels."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class MultiLabelResult:
    """average_precision_of: float64 [C], NaN for a class without any picture."""

    average_precision_of: np.ndarray
    examples: int

    @property
    def mean_average_precision(self) -> float:
        """The mean over the classes that have pictures."""
        return float(np.nanmean(self.average_precision_of))

    def summary(self) -> dict[str, float | int]:
        """The entry of results.json."""
        return {
            "mean_average_precision": self.mean_average_precision,
            "examples": self.examples,
            "classes": len(self.average_precision_of),
        }


def eleven_point(scores: np.ndarray, right: np.ndarray) -> float:
    """Of one class: the mean over recalls 0, 0.1, ..., 1 of the best precision at that recall or beyond.

    scores: float [N], higher is surer. right: bool [N], at least one. Of equal scores the earlier picture comes first.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / hits[-1]
    # A tenth of recall that is reached exactly counts, whatever its last bit.
    return float(np.mean([precision[recall >= point - 1e-12].max() for point in np.linspace(0, 1, 11)]))


class MultiLabelClassifier:
    """Collects the scores of all pictures and classes: float32 [N, C] is kept, rankings need it.

    weights: float32 [C, E], unit rows.
    """

    def __init__(self, weights: np.ndarray):
        self._weights = weights
        self._scores: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def update(self, embeddings: np.ndarray, labels: np.ndarray, records=None) -> None:
        """embeddings: unit rows [n, E]; labels [n, C]: 1 the class is shown, 0 it is not, -1 left out for that class."""
        del records
        if labels.shape != (len(embeddings), len(self._weights)):
            raise ValueError(
                f"expected labels [{len(embeddings)}, {len(self._weights)}], received {labels.shape}"
            )
        scores = embeddings @ self._weights.T
        if not np.isfinite(scores).all():
            raise ValueError("an image embedding is not finite: the image tower is not usable")
        self._scores.append(scores)
        self._labels.append(labels)

    def result(self) -> MultiLabelResult:
        """ValueError if no picture was given."""
        if not self._scores:
            raise ValueError("no picture was evaluated: the test set is empty")
        scores, labels = np.concatenate(self._scores), np.concatenate(self._labels)
        precisions = []
        for own_scores, own in zip(scores.T, labels.T):
            right, counted = own > 0, own >= 0
            precisions.append(eleven_point(own_scores[counted], right[counted]) if right.any() else np.nan)
        return MultiLabelResult(np.array(precisions), len(labels))
