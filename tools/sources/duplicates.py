"""Pictures that show the same pixels, or nearly so."""

from collections.abc import Sequence

import numpy as np

_SIDE = 16
_ROWS = 256


def near_identical(pictures: np.ndarray, others: Sequence[np.ndarray], most: float = 0.02) -> np.ndarray:
    """Which of `pictures` are near-identical to any of `others`: bool [N].

    pictures, others: uint8 [N, S, S, 3] and [M, S, S, 3], S a multiple of 16. Two pictures are near-identical
    if the sum of their absolute differences is at most `most` of the ink (255 - value, summed) of the one
    that has more; 0 finds equal pixels only. Reduced pictures find the candidates: reduction never makes the
    difference of two pictures larger.
    """
    pictures, others = np.asarray(pictures), np.asarray(others)
    found = np.zeros(len(pictures), bool)
    if not len(pictures) or not len(others):
        return found
    small, small_others = _reduced(pictures), _reduced(others)
    ink, ink_others = small.sum(1), small_others.sum(1)  # ink survives reduction
    by_ink = np.argsort(ink_others)
    sorted_ink = ink_others[by_ink]
    for start in range(len(pictures)):
        # |ink difference| <= difference <= most * larger ink
        low = np.searchsorted(sorted_ink, ink[start] * (1 - most) * 0.9999)
        high = np.searchsorted(sorted_ink, ink[start] / (1 - most) * 1.0001, "right")
        for chunk in range(low, high, _ROWS):
            near = by_ink[chunk : min(chunk + _ROWS, high)]
            limit = most * np.maximum(ink[start], ink_others[near])
            candidates = near[np.abs(small_others[near] - small[start]).sum(1) <= limit * 1.0001]
            if len(candidates) and _any_equal(pictures[start], others[candidates], most):
                found[start] = True
                break
    return found


def _any_equal(picture: np.ndarray, others: np.ndarray, most: float) -> bool:
    picture, others = picture.astype(np.int32), others.astype(np.int32)
    difference = np.abs(others - picture).sum((1, 2, 3))
    ink = np.maximum((255 - others).sum((1, 2, 3)), (255 - picture).sum())
    return bool((difference <= most * ink).any())


def _reduced(pictures: np.ndarray) -> np.ndarray:
    """float32 [N, 768]: ink per block."""
    count, side = pictures.shape[:2]
    block = side // _SIDE
    if block * _SIDE != side:
        raise ValueError(f"pictures must have a side that is a multiple of {_SIDE}, got {side}")
    shape = (count, _SIDE, block, _SIDE, block, 3)
    return (255.0 - pictures.reshape(shape).mean((2, 4), dtype=np.float32)).reshape(count, -1)
