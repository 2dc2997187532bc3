"""Embeddings whose population loss is known in closed form: images uniform on the sphere, partners at a fixed angle.

An image u is uniform on the unit sphere of R^d; its text is c u + sqrt(1 - c^2) w with w uniform among the unit vectors
orthogonal to u, so texts are uniform too. Then E_y'[exp(s u.v')] = Z(s) for every u, and the population loss is
log Z(s) - s c. Encoders that are random rotations of such data are random features with a known loss.
"""

import numpy as np


def log_partition(dimension: int, s: float) -> float:
    """log Z(s) = log E exp(s t), t the cosine with a uniform direction: 0F1(; d/2; s^2 / 4), all terms positive."""
    term = total = 1.0
    k = 0
    while term > 1e-17 * total:
        term *= s * s / 4 / ((k + 1) * (dimension / 2 + k))
        total += term
        k += 1
    return float(np.log(total))


def population_loss(dimension: int, s: float, cosine: float) -> float:
    """log Z(s) - s c, the same in both directions."""
    return log_partition(dimension, s) - s * cosine


def relative_variance(dimension: int, s: float) -> float:
    """Var[exp(s t)] / Z(s)^2."""
    return float(np.expm1(log_partition(dimension, 2 * s) - 2 * log_partition(dimension, s)))


def positive_weight(dimension: int, s: float, cosine: float) -> float:
    """exp(s c) / Z(s)."""
    return float(np.exp(s * cosine - log_partition(dimension, s)))


def sample(pairs: int, dimension: int, cosine: float, rng: np.random.Generator):
    """Unit rows [N, d] of images and of their texts."""
    images = _unit(rng.standard_normal((pairs, dimension)))
    noise = rng.standard_normal((pairs, dimension))
    noise = _unit(noise - np.einsum("nd,nd->n", noise, images)[:, None] * images)
    return images, cosine * images + np.sqrt(1 - cosine**2) * noise


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def simulated_bias(
    dimension: int, s: float, count: int, cosine: float | None, rng: np.random.Generator, draws: int = 20_000
) -> tuple[float, float, float]:
    """(bias, its standard error, standard deviation of one draw) of log (1/count) sum exp(s t_k) against log Z(s).

    cosine: of the own pair, which is one of the `count`; None: all are independent negatives.
    """
    half = (dimension - 1) / 2
    values = np.empty(draws)
    chunk = max(1, 2_000_000 // count)
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        cosines = 2 * rng.beta(half, half, (rows, count)) - 1
        if cosine is not None:
            cosines[:, 0] = cosine
        values[start : start + rows] = np.log(np.exp(s * (cosines - 1)).mean(1)) + s
    bias = values - log_partition(dimension, s)
    return float(bias.mean()), float(bias.std(ddof=1) / np.sqrt(draws)), float(bias.std(ddof=1))
