"""The two optimizer rules in float64 NumPy, written from their formulas, one parameter at a time."""

import ml_dtypes
import numpy as np


def _factored(shape, full, smallest):
    """Axes (rows, columns) of the two largest dimensions, or None."""
    if full or len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
    a, b = order[-2:]
    return (min(a, b), max(a, b)) if min(shape[a], shape[b]) >= smallest else None


class _Second:
    """A second moment, full or as factors; kept as two dense arrays of means so that nothing is clever."""

    def __init__(self, shape, full, smallest):
        self.axes = _factored(shape, full, smallest)
        self.rows, self.columns, self.full = 0.0, 0.0, 0.0

    def move(self, squared, beta2):
        if self.axes is None:
            self.full = beta2 * self.full + (1 - beta2) * squared
            return self.full
        row, column = self.axes
        self.rows = beta2 * self.rows + (1 - beta2) * squared.mean(column, keepdims=True)
        self.columns = beta2 * self.columns + (1 - beta2) * squared.mean(row, keepdims=True)
        return self.rows * self.columns / self.rows.mean(row, keepdims=True)


def _clip(update, limit):
    if limit is None:
        return update
    return update / max(1.0, np.sqrt(np.mean(update**2)) / limit)


def _stored(moment, bfloat16):
    return moment.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64) if bfloat16 else moment


def adafactorw(
    value,
    gradients,
    rates,
    beta1=0.9,
    beta2=0.999,
    decay=0.0,
    eps=1e-8,
    clip=1.0,
    bfloat16=False,
    full=False,
    smallest=32,
    correct=True,
):
    """The values after each gradient, float64 [steps, *shape]."""
    value, moment = value.astype(np.float64), np.zeros(value.shape)
    second, history = _Second(value.shape, full, smallest), []
    for index, (gradient, rate) in enumerate(zip(gradients, rates)):
        gradient, count = gradient.astype(np.float64), index + 1
        exact = beta1 * moment + (1 - beta1) * gradient
        moment = _stored(exact, bfloat16)
        v = second.move(gradient**2, beta2)
        m_hat = exact / (1 - beta1**count) if correct else exact
        v_hat = v / (1 - beta2**count) if correct else v
        value = value - rate * (_clip(m_hat / (np.sqrt(v_hat) + eps), clip) + decay * value)
        history.append(value)
    return np.stack(history)


def big_vision(
    value,
    gradients,
    rates,
    beta1=0.9,
    beta2=0.999,
    decay=0.0,
    eps=1e-30,
    clip=None,
    bfloat16=False,
    smallest=32,
):
    """Scaling ViT's modified Adafactor: normalise, clip, then average the normalised updates."""
    value, moment = value.astype(np.float64), np.zeros(value.shape)
    second, history = _Second(value.shape, False, smallest), []
    kept = float(np.asarray(beta1, ml_dtypes.bfloat16)) if bfloat16 else beta1
    for index, (gradient, rate) in enumerate(zip(gradients, rates)):
        gradient = gradient.astype(np.float64)
        v = second.move(gradient**2 + eps, min(beta2, 1 - (index + 1.0) ** -0.8))
        exact = kept * moment + (1 - beta1) * _clip(gradient / np.sqrt(v), clip)
        moment = _stored(exact, bfloat16)
        value = value - rate * (exact + decay * value)
        history.append(value)
    return np.stack(history)


def accumulated(
    value, steps, rates, correction, signs=None, beta1=0.9, beta2=0.999, decay=0.0, clip=1.0, smallest=32
):
    """AdaFactorW with slot accumulation: the values after each step, float64 [steps, *shape].

    steps: [steps, N, R, *shape], pieces whose sum over N and R is the step's gradient. correction: "uncorrected",
    "pieces", or "sketch" with signs(step) -> (column signs [columns, K], row signs [rows, K]).
    """
    value, moment = value.astype(np.float64), np.zeros(value.shape)
    axes = _factored(value.shape, False, smallest)
    means, history = [0.0, 0.0], []
    for index, (pieces, rate) in enumerate(zip(steps.astype(np.float64), rates)):
        number, parts = pieces.shape[:2]
        c = number * pieces.sum(1)
        moment = beta1 * moment + (1 - beta1) * c.mean(0)
        squared = (c**2).mean(0)
        if correction == "pieces":
            variances = (parts * number * pieces).var(1, ddof=1).mean(0) / parts
            squared = squared - (1 - 1 / number) * variances
        if axes is None:
            means[0] = beta2 * means[0] + (1 - beta2) * squared
            means[0] = np.maximum(means[0], 0)
            v = means[0]
        else:
            for k, axis in ((0, axes[1]), (1, axes[0])):
                statistic = squared.mean(axis, keepdims=True)
                if correction == "sketch":
                    drawn = signs(index)[k]
                    projected = np.moveaxis(c.mean(0), axis, -1) @ drawn  # [others, K]
                    statistic = np.expand_dims((projected**2).sum(-1) / drawn.size, axis)
                means[k] = np.maximum(beta2 * means[k] + (1 - beta2) * statistic, 0)
            v = means[0] * means[1] / means[0].mean(axes[0], keepdims=True)
        count = index + 1
        update = moment / (1 - beta1**count) / (np.sqrt(v / (1 - beta2**count)) + 1e-8)
        if correction == "pieces":
            update = np.where(v > 0, update, 0)
        value = value - rate * (_clip(update, clip) + decay * value)
        history.append(value)
    return np.stack(history)
