"""RandAugment (arXiv 1909.13719): a few operations out of fourteen, drawn for each picture by the project's hash.

The operations are those of PIL that AutoAugment defined, with the strengths of its ImageNet policies; OpenCV computes
them here. Applied after the window is cut: uint8 in, uint8 out.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from basic_tf.randomness import uniform_numpy

_GREY = (128, 128, 128)  # what lies outside a picture that was moved
_LUMA = np.array([19595, 38470, 7471], np.int64)  # ITU-R BT.601 in 16-bit fixed point, as PIL's mode L
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`layers` operations in turn on each picture, each drawn evenly from `OPERATIONS`, all of strength `magnitude`.

    layers: N of the paper. magnitude: M of the paper, from 0 to 10; directions (of a rotation, shear or shift) are drawn.
    CoAtNet was pretrained on JFT with N = 2, M = 5 (arXiv 2106.04803, table 10).
    """

    layers: int = 2
    magnitude: float = 5.0

    def __post_init__(self):
        if not isinstance(self.layers, int) or self.layers < 0:
            raise ValueError(f"RandAugment.layers is {self.layers!r}; it must be a whole number >= 0")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"RandAugment.magnitude is {self.magnitude}; it must lie in [0, 10]")

    def __call__(self, pictures: np.ndarray, key: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> uint8 [B, S, S, 3]; each row follows from its own index and the key alone.

        key: uint32 [2], `randomness.step_key_numpy(seed, step)`. examples: int [B], indices in the global batch.
        """
        if not self.layers:
            return pictures
        draws = uniform_numpy(key, examples, "images/rand_augment", (self.layers, 2))
        operations = tuple(OPERATIONS.values())
        result = np.empty_like(pictures)
        for row, picture in enumerate(pictures):
            for choice, direction in draws[row]:
                operation = operations[int(choice * len(operations))]
                picture = operation(picture, self.magnitude / 10, 1.0 if direction < 0.5 else -1.0)
            result[row] = picture
        return result


def _looked_up(picture: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Each channel through its own table of 256 levels, tables [3, 256]."""
    tables = np.clip(tables, 0, 255).astype(np.uint8)
    return cv2.LUT(picture, np.ascontiguousarray(tables.T).reshape(1, 256, 3))


def _auto_contrast(picture, strength, sign):
    tables = []
    for channel in range(3):
        low, high = int(picture[..., channel].min()), int(picture[..., channel].max())
        levels = np.arange(256)
        # PIL's order of operations: its results are truncated, so a rounding error is a level.
        scale = 255.0 / (high - low) if high > low else 1.0
        tables.append(np.trunc(levels * scale - low * scale) if high > low else levels)
    return _looked_up(picture, np.stack(tables))


def _equalize(picture, strength, sign):
    tables = []
    for channel in range(3):
        histogram = np.bincount(picture[..., channel].reshape(-1), minlength=256)
        occupied = histogram[histogram > 0]
        step = (histogram.sum() - occupied[-1]) // 255
        before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        tables.append((step // 2 + before) // step if step and len(occupied) > 1 else np.arange(256))
    return _looked_up(picture, np.stack(tables))


def _solarize(picture, strength, sign):
    levels = np.arange(256)
    return _looked_up(picture, np.tile(np.where(levels < 256 * (1 - strength), levels, 255 - levels), (3, 1)))


def _posterize(picture, strength, sign):
    bits = 8 - round(4 * strength)
    return picture & np.uint8(256 - (1 << (8 - bits)))


def _blended(picture, degenerate, strength, sign) -> np.ndarray:
    """PIL's enhancement by 1 - 0.9 s or 1 + 0.9 s: towards the degenerate picture, or away from it."""
    factor = 1 + sign * 0.9 * strength
    mixed = degenerate + factor * (picture.astype(np.float32) - degenerate)
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def _luma(picture: np.ndarray) -> np.ndarray:
    return ((picture.astype(np.int64) @ _LUMA + 0x8000) >> 16).astype(np.float32)


def _colour(picture, strength, sign):
    return _blended(picture, _luma(picture)[..., None], strength, sign)


def _contrast(picture, strength, sign):
    mean = np.float32(np.floor(_luma(picture).mean(dtype=np.float64) + 0.5))
    return _blended(picture, mean, strength, sign)


def _brightness(picture, strength, sign):
    return _blended(picture, np.float32(0), strength, sign)


def _sharpness(picture, strength, sign):
    smooth = picture.astype(np.float32)
    filtered = np.floor(cv2.filter2D(smooth, -1, _SMOOTH) + 0.5)
    smooth[1:-1, 1:-1] = filtered[1:-1, 1:-1]  # PIL leaves the border
    return _blended(picture, smooth, strength, sign)


def _moved(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Output (x, y) is read at matrix (x, y, 1), both of pixel centres; bilinear, grey outside."""
    matrix = matrix.astype(np.float64)
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # from centres at x + 1/2 to OpenCV's at x
    height, width = picture.shape[:2]
    return cv2.warpAffine(
        picture,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_GREY,
    )


def _rotate(picture, strength, sign):
    angle = np.deg2rad(30 * strength * sign)
    centre = np.array(picture.shape[1::-1]) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return _moved(picture, np.column_stack([turn, centre - turn @ centre]))


def _shear_x(picture, strength, sign):
    return _moved(picture, np.array([[1, 0.3 * strength * sign, 0], [0, 1, 0]]))


def _shear_y(picture, strength, sign):
    return _moved(picture, np.array([[1, 0, 0], [0.3 * strength * sign, 1, 0]]))


def _translate_x(picture, strength, sign):
    return _moved(picture, np.array([[1, 0, 0.45 * strength * sign * picture.shape[1]], [0, 1, 0]]))


def _translate_y(picture, strength, sign):
    return _moved(picture, np.array([[1, 0, 0], [0, 1, 0.45 * strength * sign * picture.shape[0]]]))


# name -> (picture uint8 [H, W, 3], strength in [0, 1], sign) -> picture
OPERATIONS: dict[str, Callable] = {
    "identity": lambda picture, strength, sign: picture,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "colour": _colour,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
