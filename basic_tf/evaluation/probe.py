"""Linear probes on frozen features: ridge regression in closed form and multinomial logistic regression by L-BFGS.

Both in float64. The intercept is not penalised. Curves over the number of examples a class draw their examples by seed, so
that the same call gives the same curve.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_PENALTIES = tuple(10.0**power for power in range(-6, 3))


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """weights: float64 [D, C]. intercept: float64 [C]. penalty: the one it was fitted with."""

    weights: np.ndarray
    intercept: np.ndarray
    penalty: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The best class int64 [N]; of equal scores the lowest."""
        return np.argmax(features @ self.weights + self.intercept, axis=1)

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """The share of right predictions."""
        return float(np.mean(self.predict(features) == labels))


def ridge(
    features: np.ndarray, labels: np.ndarray, classes: int, penalties: Sequence[float] = _PENALTIES
) -> LinearProbe:
    """min sum_i |x_i W + b - onehot(y_i)|^2 + N penalty |W|^2, in closed form.

    features: [N, D]. labels: int [N]. Of several penalties the one with the smallest leave-one-out error is taken, which
    ridge regression has in closed form too: the residual over 1 - leverage. ValueError for input that does not fit.
    """
    features, labels = _checked(features, labels, classes)
    targets = np.eye(classes)[labels]
    feature_mean, target_mean = features.mean(0), targets.mean(0)
    left, values, right = np.linalg.svd(features - feature_mean, full_matrices=False)
    projected = left.T @ (targets - target_mean)  # [R, C]
    best = None
    for penalty in penalties:
        # A direction without variance and without penalty has no say.
        shrunk = values**2 + len(features) * penalty
        kept = np.divide(values**2, shrunk, out=np.zeros_like(values), where=shrunk > 0)
        leverage = (left**2 * kept).sum(1) + 1 / len(features)  # the intercept's share included
        residuals = targets - target_mean - left @ (kept[:, None] * projected)
        error = float(np.mean((residuals / np.maximum(1 - leverage, 1e-12)[:, None]) ** 2))
        if best is None or error < best[0]:
            inverse = np.divide(values, shrunk, out=np.zeros_like(values), where=shrunk > 0)
            best = (error, right.T @ (inverse[:, None] * projected), penalty)
    _, weights, penalty = best
    return LinearProbe(weights, target_mean - feature_mean @ weights, penalty)


def logistic(
    features: np.ndarray, labels: np.ndarray, classes: int, penalty: float, iterations: int = 1000
) -> LinearProbe:
    """min (1/N) sum_i cross-entropy(softmax(x_i W + b), y_i) + penalty / 2 |W|^2, by L-BFGS.

    penalty > 0. RuntimeError if it has not converged after `iterations`.
    """
    from scipy.optimize import minimize

    features, labels = _checked(features, labels, classes)
    if penalty <= 0:
        raise ValueError(f"logistic regression needs a penalty > 0, received {penalty}")
    count, width = features.shape

    def loss_and_gradient(flat: np.ndarray):
        weights, intercept = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logits = features @ weights + intercept
        logits -= logits.max(1, keepdims=True)
        probabilities = np.exp(logits)
        total = probabilities.sum(1)
        loss = np.mean(np.log(total) - logits[np.arange(count), labels]) + penalty / 2 * np.sum(weights**2)
        probabilities /= total[:, None]
        probabilities[np.arange(count), labels] -= 1
        probabilities /= count
        gradient = features.T @ probabilities + penalty * weights
        return loss, np.concatenate([gradient.ravel(), probabilities.sum(0)])

    found = minimize(
        loss_and_gradient,
        np.zeros((width + 1) * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-15, "gtol": 1e-9},
    )
    if found.nit >= iterations:
        raise RuntimeError(f"L-BFGS has not converged after {iterations} iterations (penalty {penalty:g})")
    weights = found.x[: width * classes].reshape(width, classes)
    return LinearProbe(weights, found.x[width * classes :], penalty)


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Accuracy with so many examples a class: mean and standard deviation over the draws."""

    shots: int
    accuracy: float
    deviation: float
    draws: int


def few_shot_curve(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    draws: int = 5,
    seed: int = 0,
) -> list[CurvePoint]:
    """Accuracy of a ridge probe against the number of training examples a class.

    train, test: (features [N, D], labels int [N]). Classes with fewer examples give all they have; numbers beyond the
    largest class are left out.
    """
    features, labels = _checked(*train, classes)
    test_features, test_labels = _checked(*test, classes)
    largest = int(np.bincount(labels, minlength=classes).max())
    points = []
    for count in sorted(set(shots)):
        if count > largest:
            break
        accuracies = []
        for draw in range(draws):
            order = np.random.default_rng((seed, count, draw)).permutation(len(labels))
            # The rank of each example among those of its class, in the drawn order.
            by_class = order[np.argsort(labels[order], kind="stable")]
            sizes = np.bincount(labels, minlength=classes)
            rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            chosen = by_class[rank < count]
            probe = ridge(features[chosen], labels[chosen], classes)
            accuracies.append(probe.accuracy(test_features, test_labels))
        spread = float(np.std(accuracies, ddof=1)) if draws > 1 else 0.0
        points.append(CurvePoint(count, float(np.mean(accuracies)), spread, draws))
    return points


def _checked(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise ValueError(
            f"a probe needs features [N, D] and labels [N], received {features.shape} and {labels.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("features are not finite: the image tower is not usable")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, received {labels.min()}..{labels.max()}")
    return features, labels.astype(np.int64)
