"""Weight interpolation between a zero-shot model and its fine-tuned successor (WiSE-FT, arXiv 2109.01903)."""

import numpy as np


def interpolated(
    start: dict[str, np.ndarray], end: dict[str, np.ndarray], alpha: float
) -> dict[str, np.ndarray]:
    """(1 - alpha) start + alpha end for every weight (WiSE-FT section 3): path -> array of start's type.

    alpha 0 is `start` and 1 is `end`, bit for bit. BatchNorm's moving statistics and the temperature (as
    log(1 / tau)) are interpolated like the other weights. The sum is taken in float64. Raises ValueError if alpha is
    outside [0, 1] or the two are not the same model.
    """
    check_alpha(alpha)
    check_same_model(start, end)
    if alpha in (0.0, 1.0):
        return dict(start if alpha == 0.0 else end)
    return {
        path: ((1.0 - alpha) * array.astype(np.float64) + alpha * end[path].astype(np.float64)).astype(
            array.dtype
        )
        for path, array in start.items()
    }


def check_alpha(alpha: float) -> None:
    """ValueError unless alpha lies in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; it must lie in [0, 1]: 0 is the first model, 1 the second")


def check_same_model(start: dict[str, np.ndarray], end: dict[str, np.ndarray]) -> None:
    """ValueError unless both have the same paths and shapes."""
    only = sorted(set(start) ^ set(end))
    if only:
        where = "first" if only[0] in start else "second"
        raise ValueError(
            f"the two are different models: {len(only)} weights are in one alone, {only[0]} in the {where}"
        )
    for path, array in start.items():
        if array.shape != end[path].shape:
            raise ValueError(
                f"the two are different models: {path} has shape {array.shape} in the first, {end[path].shape} in the "
                "second"
            )
