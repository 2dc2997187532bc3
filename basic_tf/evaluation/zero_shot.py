"""Zero-shot classification (paper section 7): a class is the mean of its embedded prompts, a picture goes to
the nearest.

Class weights: embed every prompt, normalise, mean over the class's prompts, normalise. Scores are cosine
similarities. Ties are stable: of equal scores the lowest class index wins, also where two classes have the
same name (such classes share one weight vector and one score, bit for bit).
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from basic_tf.evaluation import stream
from basic_tf.evaluation.encoder import Encoder
from basic_tf.evaluation.ranking import stable_ranks

_PROMPT_BATCHES = 8
_PICTURE_CHUNK = 1024


def class_weights(encoder: Encoder, prompts: Sequence[Sequence[str]], chunk: int | None = None) -> np.ndarray:
    """The zero-shot classifier: float32 [C, E], unit rows.

    prompts: for each class its prompts (`prompts.class_prompts`). Embeds `chunk` prompts at a time (default: a
    few batches), a few chunks under way, so memory is O(C x E + chunk x E). Classes with the same prompts get
    identical rows and are embedded once.
    """
    prompts = [tuple(texts) for texts in prompts]
    if not prompts or not all(prompts):
        raise ValueError(
            "zero-shot classification needs at least one class and at least one prompt for each class"
        )
    first = {texts: row for row, texts in enumerate(dict.fromkeys(prompts))}
    flat = [(text, row) for texts, row in first.items() for text in texts]
    chunk = chunk or _PROMPT_BATCHES * stream.batch_size(encoder)

    def embedded(part):
        texts, _ = part
        return _unit(encoder.encode_text(texts).astype(np.float64), texts)

    parts = (tuple(zip(*flat[start : start + chunk])) for start in range(0, len(flat), chunk))
    sums = None
    for (_, rows), embeddings in stream.overlapped(embedded, parts):
        if sums is None:
            sums = np.zeros((len(first), embeddings.shape[1]))
        # Prompts of a class stand together; those of the first class here may go on from the chunk before.
        begins = np.flatnonzero(np.diff(rows, prepend=-1))
        classes = np.asarray(rows)[begins]
        embeddings[0] += sums[classes[0]]
        sums[classes] = np.add.reduceat(embeddings, begins, axis=0)
    # The mean and the sum have the same direction; the count of prompts cancels in the normalisation.
    weights = _unit(sums, list(first)).astype(np.float32)
    return weights[[first[texts] for texts in prompts]]


def _unit(rows: np.ndarray, texts: Sequence) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~(norms[:, 0] > 1e-12))  # also NaN
    if bad.size:
        raise ValueError(
            f"the embedding of {texts[bad[0]]!r} is zero or not finite: the text tower is not usable"
        )
    return rows / norms


@dataclasses.dataclass
class ZeroShotResult:
    """What one test set gave.

    examples_of, top1_of, top5_of: int64 [C], the pictures of each class and how many were right (only classes
    in the subset can hold any). kept_records int64 [K], kept_labels int64 [K], kept_predictions int32 [K, k]
    and kept_scores float32 [K, k] (cosines): the first `keep` pictures with their best classes, best first,
    for pictures in reports.
    """

    candidates: int
    examples_of: np.ndarray
    top1_of: np.ndarray
    top5_of: np.ndarray
    kept_records: np.ndarray
    kept_labels: np.ndarray
    kept_predictions: np.ndarray
    kept_scores: np.ndarray

    @property
    def examples(self) -> int:
        """The number of pictures."""
        return int(self.examples_of.sum())

    @property
    def top1(self) -> float:
        """The share of pictures whose best class is theirs."""
        return float(self.top1_of.sum() / self.examples)

    @property
    def top5(self) -> float:
        """The share of pictures whose class is among the best five."""
        return float(self.top5_of.sum() / self.examples)

    @property
    def mean_per_class(self) -> float:
        """The mean over the classes that have pictures of each class's own top-1."""
        present = self.examples_of > 0
        return float(np.mean(self.top1_of[present] / self.examples_of[present]))

    @property
    def standard_error(self) -> float:
        """The binomial standard error of top1, sqrt(p (1 - p) / n): pictures taken as independent."""
        return float(np.sqrt(self.top1 * (1 - self.top1) / self.examples))

    def summary(self) -> dict[str, float | int]:
        """The entry of results.json."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "standard_error": self.standard_error,
            "examples": self.examples,
            "classes": self.candidates,
        }


class ZeroShotClassifier:
    """Counts right answers over a stream of pictures; memory does not depend on how many there are.

    weights: float32 [C, E] from `class_weights`. subset: the classes that compete, as a boolean mask [C] or
    as indices; None for all. A label stays an index into all C classes; one outside the subset is a
    ValueError. keep: how many pictures to keep with their `best` best classes.
    """

    def __init__(
        self,
        weights: np.ndarray,
        subset: np.ndarray | Sequence[int] | Sequence[bool] | None = None,
        keep: int = 1000,
        best: int = 5,
    ):
        self.classes = weights.shape[0]
        self.subset = subset_indices(subset, self.classes)
        # A matrix product may round equal columns differently where they fall in different tiles, so equal
        # classes are scored once: only then is a tie a tie.
        self._unique, self._column = np.unique(weights[self.subset], axis=0, return_inverse=True)
        self._column = self._column.reshape(-1)
        self._position = np.full(self.classes, -1)
        self._position[self.subset] = np.arange(len(self.subset))
        self._keep, self._best = keep, min(best, len(self.subset))
        self._examples_of = np.zeros(self.classes, np.int64)
        self._top1_of = np.zeros(self.classes, np.int64)
        self._top5_of = np.zeros(self.classes, np.int64)
        self._kept = []
        self._seen = 0

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Cosines float32 [N, candidates] of unit rows [N, E] with the competing classes, in the subset's
        order.
        """
        # TensorFlow's product, in the pool that the towers use. NumPy's BLAS has threads of its own, which spin for tens of
        # milliseconds after each product and take the cores from the towers. On the CPU: a GPU's would be in TF32.
        dtype = np.result_type(embeddings, self._unique)
        with tf.device("CPU:0"):
            columns = tf.constant(self._unique, dtype)
            return tf.matmul(tf.constant(embeddings, dtype), columns, transpose_b=True).numpy()[
                :, self._column
            ]

    def update(self, embeddings: np.ndarray, labels: np.ndarray, records: np.ndarray | None = None) -> None:
        """Takes pictures: unit rows [N, E], labels int [N] in 0..C-1, and their record numbers for the
        reports.
        """
        labels = np.asarray(labels, np.int64)
        if embeddings.shape[0] != labels.shape[0]:
            raise ValueError(f"received {embeddings.shape[0]} embeddings and {labels.shape[0]} labels")
        if labels.size and (labels.min() < 0 or labels.max() >= self.classes):
            raise ValueError(
                f"labels must lie in 0..{self.classes - 1}, received {labels.min()}..{labels.max()}"
            )
        outside = np.flatnonzero(self._position[labels] < 0)
        if outside.size:
            raise ValueError(
                f"picture {self._seen + outside[0]} has the label {labels[outside[0]]}, which is not among "
                f"the {len(self.subset)} classes of the subset"
            )
        records = np.arange(self._seen, self._seen + len(labels)) if records is None else np.asarray(records)
        for start in range(0, len(labels), _PICTURE_CHUNK):
            chunk = slice(start, start + _PICTURE_CHUNK)
            self._update(embeddings[chunk], labels[chunk], records[chunk])

    def _update(self, embeddings: np.ndarray, labels: np.ndarray, records: np.ndarray) -> None:
        scores = self.scores(embeddings)  # [N, candidates]
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
            raise ValueError(
                f"the embedding of record {records[bad]} is not finite: the image tower is not usable"
            )
        ranks = stable_ranks(scores, self._position[labels])
        np.add.at(self._examples_of, labels, 1)
        np.add.at(self._top1_of, labels, ranks < 1)
        np.add.at(self._top5_of, labels, ranks < 5)
        room = max(0, self._keep - self._seen)
        if room:
            best = np.argsort(-scores[:room], axis=1, kind="stable")[:, : self._best]
            self._kept.append(
                (
                    records[:room],
                    labels[:room],
                    self.subset[best],
                    np.take_along_axis(scores[:room], best, axis=1),
                )
            )
        self._seen += len(labels)

    def result(self) -> ZeroShotResult:
        """The counts so far; ValueError if no picture was given."""
        if not self._seen:
            raise ValueError("no picture was evaluated: the test set is empty")
        if self._kept:
            records, labels, predictions, scores = (np.concatenate(part) for part in zip(*self._kept))
        else:
            records, labels = np.zeros(0, np.int64), np.zeros(0, np.int64)
            predictions, scores = np.zeros((0, self._best), np.int64), np.zeros((0, self._best), np.float32)
        return ZeroShotResult(
            candidates=len(self.subset),
            examples_of=self._examples_of.copy(),
            top1_of=self._top1_of.copy(),
            top5_of=self._top5_of.copy(),
            kept_records=records,
            kept_labels=labels,
            kept_predictions=predictions.astype(np.int32),
            kept_scores=scores,
        )


def subset_indices(subset, classes: int) -> np.ndarray:
    """Ascending class indices int64 from a boolean mask [C], indices, or None (all). ValueError if empty or
    wrong.
    """
    if subset is None:
        return np.arange(classes)
    subset = np.asarray(subset)
    if subset.dtype == bool:
        if subset.shape != (classes,):
            raise ValueError(
                f"a class mask needs one entry for each of {classes} classes, received {subset.shape}"
            )
        subset = np.flatnonzero(subset)
    indices = np.unique(subset.astype(np.int64))
    if indices.size == 0 or indices.size != subset.size or indices[0] < 0 or indices[-1] >= classes:
        raise ValueError(
            f"a class subset needs distinct indices in 0..{classes - 1}, received {subset.tolist()[:20]}"
        )
    return indices


def evaluate(
    encoder: Encoder,
    weights: np.ndarray,
    batches: Iterable[tuple[Sequence[bytes], np.ndarray, np.ndarray]],
    subset=None,
    keep: int = 1000,
    origin: str = "test set",
) -> ZeroShotResult:
    """Zero-shot accuracy over batches of (encoded pictures, labels, record numbers). origin: whose, for errors."""
    classifier = ZeroShotClassifier(weights, subset=subset, keep=keep)
    for embeddings, labels, records in stream.embedded(encoder, batches, origin):
        classifier.update(embeddings, labels, records)
    return classifier.result()


def mean_over_sets(results: Sequence[ZeroShotResult]) -> tuple[float, float]:
    """The mean top-1 over test sets that share their classes, and its standard error.

    The sets show the same concepts in several styles, so their errors are not independent: the standard error
    groups everything by class (a class is hard in every style or in none). With d_c the part of class c in
    the deviation of the mean, d_c = 1/S sum_s (right_sc - n_sc p_s) / n_s, the variance is C/(C-1) sum_c
    d_c^2.
    """
    if not results:
        raise ValueError("the mean over test sets needs at least one test set")
    counts = np.stack([result.examples_of for result in results]).astype(np.float64)  # [S, C]
    right = np.stack([result.top1_of for result in results]).astype(np.float64)
    accuracies = right.sum(1) / counts.sum(1)  # [S]
    parts = ((right - counts * accuracies[:, None]) / counts.sum(1, keepdims=True)).mean(0)  # [C]
    present = int((counts.sum(0) > 0).sum())
    correction = present / (present - 1) if present > 1 else 1.0
    return float(accuracies.mean()), float(np.sqrt(correction * np.sum(parts**2)))
