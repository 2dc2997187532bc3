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
