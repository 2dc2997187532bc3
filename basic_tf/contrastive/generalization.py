"""Normalised contrastive losses, and estimates of the generalisation gap (BASIC, arXiv 2111.10050, theory section).

The paper compares losses at different batch sizes after replacing the sum in the softmax's denominator by a mean
(docs/theory.md says what is the paper's and what is ours). With unit embeddings f(x), g(y), inverse temperature s:

    l(x, y)     = log E_y'[exp(s f(x).g(y'))] - s f(x).g(y)                  the population loss
    l_M(x, y)   = log (1/M) sum_k exp(s f(x).g(y_k)) - s f(x).g(y)           an estimate from a pool of M texts

and the same from text to image; here a loss is the mean of both directions. A pool that holds the pair's own text, as a
training batch does, gives the training loss less log B. Everything is float64 NumPy on embeddings that fit in memory, tile
by tile: O(M x tile) for a pool of M pairs.
"""

import dataclasses

import numpy as np

_TILE = 512
# exp(s (cosine - 1)) must not underflow: exp(-2 s) at worst.
_LARGEST_INVERSE_TEMPERATURE = 350.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its standard error for the sampling of pairs, the encoders taken as fixed."""

    value: float
    standard_error: float

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates."""
        return Estimate(self.value - other.value, float(np.hypot(self.standard_error, other.standard_error)))


@dataclasses.dataclass(frozen=True)
class Gaps:
    """Three estimates of the generalisation gap; their definitions are ours (docs/theory.md), larger is worse.

    same_estimator: l_B(test) - l_B(train), both in batches of B with the own pair in the pool. It has the training
    objective's bias on both sides, which cancels only as far as the positives are alike.
    reference_pool: l_M(test) - l_M(train), pools of M other pairs of the own split, the own pair left out: the one to
    compare batch sizes with, its bias is O(1/M) and does not know B.
    train_objective: l_M(test) - l_B(train), the quantity of the theorem. It can be negative at small B.
    """

    same_estimator: Estimate
    reference_pool: Estimate
    train_objective: Estimate
    batch: int
    pool: int


def normalised_loss(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    inverse_temperature: float,
    pool: int,
    own_pair: bool,
    partitions: int = 1,
    seed: int = 0,
) -> Estimate:
    """The mean normalised loss of N pairs in disjoint random pools.

    image_embeddings, text_embeddings: unit rows [N, D]; row i of both is one pair. pool: pairs in a pool. With
    `own_pair` a pool is a training batch of B = pool pairs and the result is the contrastive loss less log B; without,
    each pair's own partner is left out and M = pool - 1 negatives remain. partitions: how many random partitions are
    averaged; pairs that fill no pool are left out of a partition.

    The standard error is that of the first-order (Hoeffding) projection: a pair counts as a query and as a negative of the
    others. ValueError for shapes that do not fit, rows that are not unit, or fewer pairs than a pool.
    """
    images, texts = _checked(image_embeddings, text_embeddings, inverse_temperature)
    pairs, smallest = len(images), 1 if own_pair else 2
    if not smallest <= pool <= pairs:
        raise ValueError(f"a pool needs {smallest} to {pairs} pairs (as many as there are), received {pool}")
    influence, seen, means = np.zeros(pairs), np.zeros(pairs), []
    for partition in range(partitions):
        order = np.random.default_rng((seed, partition)).permutation(pairs)
        for start in range(0, pairs - pool + 1, pool):
            rows = order[start : start + pool]
            losses, as_negative = _pool_losses(images[rows], texts[rows], inverse_temperature, own_pair)
            means.append(losses.mean())
            influence[rows] += losses + as_negative
            seen[rows] += 1
    of_pairs = influence[seen > 0] / seen[seen > 0]
    error = np.std(of_pairs, ddof=1) / np.sqrt(len(of_pairs)) if len(of_pairs) > 1 else np.inf
    return Estimate(float(np.mean(means)), float(error))


def gaps(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    inverse_temperature: float,
    batch: int,
    pool: int = 8192,
    partitions: int = 1,
    seed: int = 0,
) -> Gaps:
    """The three gaps of a model with unit embeddings (images [N, D], texts [N, D]) of its train and test pairs.

    pool: of the reference estimates, at most the smaller split. ValueError if a split has fewer than `batch` pairs.
    """
    pool = min(pool, len(train[0]), len(test[0]))

    def loss(split, size, own_pair):
        return normalised_loss(*split, inverse_temperature, size, own_pair, partitions, seed)

    train_batch, test_batch = loss(train, batch, True), loss(test, batch, True)
    train_pool, test_pool = loss(train, pool, False), loss(test, pool, False)
    return Gaps(test_batch - train_batch, test_pool - train_pool, test_pool - train_batch, batch, pool)


@dataclasses.dataclass(frozen=True)
class BiasTerms:
    """What the first-order bias of the estimators is made of (docs/theory.md).

    variance: E_x Var_y'[exp(s f.g)] / p(x)^2, the relative variance of the denominator. positive: E[exp(s f(x).g(y)) /
    p(x)], the weight of the own pair.
    """

    variance: float
    positive: float

    def left_out(self, negatives: int) -> float:
        """Bias of the estimate from M negatives: - variance / 2M + O(1/M^2)."""
        return -self.variance / (2 * negatives)

    def in_batch(self, batch: int) -> float:
        """Bias of the training objective less log B: (positive - 1 - variance / 2) / B + O(1/B^2)."""
        return (self.positive - 1 - self.variance / 2) / batch


def bias_terms(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, inverse_temperature: float
) -> BiasTerms:
    """The terms from N pairs, each pair's own partner left out of p; mean of both directions. O(N x tile) memory.

    Consistent, not unbiased: where the few largest similarities carry the second moment (1/s small against the spread of
    cosines), N pairs show too little of it, and so does the first-order bias itself.
    """
    images, texts = _checked(image_embeddings, text_embeddings, inverse_temperature)
    pairs = len(images)
    if pairs < 3:
        raise ValueError(f"the bias needs at least 3 pairs, received {pairs}")
    first, second = np.zeros((2, pairs)), np.zeros((2, pairs))
    for start, weights in _tiles(images, texts, inverse_temperature, own_pair=False):
        rows = slice(start, start + len(weights))
        first[0, rows], second[0, rows] = weights.sum(1), (weights**2).sum(1)
        first[1] += weights.sum(0)
        second[1] += (weights**2).sum(0)
    mean = first / (pairs - 1)
    variance = (second - (pairs - 1) * mean**2) / (pairs - 2)
    own = np.exp(inverse_temperature * (np.einsum("nd,nd->n", images, texts) - 1))
    return BiasTerms(float(np.mean(variance / mean**2)), float(np.mean(own / mean)))


def _checked(images, texts, inverse_temperature: float) -> tuple[np.ndarray, np.ndarray]:
    images, texts = np.asarray(images, np.float64), np.asarray(texts, np.float64)
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise ValueError(
            f"expected two arrays of one shape [N, D], received {images.shape} and {texts.shape}"
        )
    if not 0 < inverse_temperature <= _LARGEST_INVERSE_TEMPERATURE:
        raise ValueError(
            f"the inverse temperature must lie in (0, {_LARGEST_INVERSE_TEMPERATURE:.0f}], received {inverse_temperature}"
        )
    for name, rows in (("image", images), ("text", texts)):
        worst = np.abs(np.linalg.norm(rows, axis=1) - 1).max()
        if not worst < 1e-3:  # also NaN
            raise ValueError(f"{name} embeddings must be unit rows; a norm is off by {worst:.2g}")
    return images, texts


def _tiles(images: np.ndarray, texts: np.ndarray, inverse_temperature: float, own_pair: bool):
    """(first row, exp(s (cosine - 1)) [tile, N]), the diagonal zero unless `own_pair`."""
    for start in range(0, len(images), _TILE):
        weights = np.exp(inverse_temperature * (images[start : start + _TILE] @ texts.T - 1))
        if not own_pair:
            rows = np.arange(len(weights))
            weights[rows, start + rows] = 0
        yield start, weights


def _pool_losses(images: np.ndarray, texts: np.ndarray, inverse_temperature: float, own_pair: bool):
    """Losses [M] of the pairs of one pool, and what each adds to the others' as a negative, less its mean [M]."""
    count = len(images) - (not own_pair)
    rows, columns = np.zeros(len(images)), np.zeros(len(images))
    for start, weights in _tiles(images, texts, inverse_temperature, own_pair):
        rows[start : start + len(weights)] = weights.sum(1)
        columns += weights.sum(0)
    # log mean exp(s c) - s c_own = log(sum exp(s (c - 1)) / count) + s (1 - c_own)
    own = inverse_temperature * (1 - np.einsum("nd,nd->n", images, texts))
    losses = 0.5 * (np.log(rows / count) + np.log(columns / count)) + own
    as_text, as_image = np.zeros(len(images)), np.zeros(len(images))
    for start, weights in _tiles(images, texts, inverse_temperature, own_pair):
        part = slice(start, start + len(weights))
        as_text += (weights / rows[part, None]).sum(0)  # its weight in the softmax of every image
        as_image[part] = (weights / columns).sum(1)
    return losses, 0.5 * (as_text + as_image) - 1
