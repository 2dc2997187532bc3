"""Changes of colour as affine maps of the three channels, one 3 x 4 matrix for each picture."""

import numpy as np

_COLOUR_NOISE = 24  # difference between channels that a grey JPEG may show
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def colour_maps(
    strengths, paint: np.ndarray, coloured: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All colour changes composed: rgb -> rgb @ matrix + offset, rgb in [0, 1].

    strengths: an `images.ImageAugmentation`.
    paint: float32 [B, 22], `Choices.paint`. coloured: bool [B], the pictures that inversion and
    recolouring must leave alone (None: none). Returns float32 [B, 3, 3] and [B, 3].
    """
    count = len(paint)
    eye = np.eye(3)
    matrix, offset = np.tile(eye, (count, 1, 1)), np.zeros((count, 3))
    open_to_all = np.ones(count, bool) if coloured is None else ~coloured

    def then(chosen, step, addition):
        nonlocal matrix, offset
        step = np.where(chosen[:, None, None], step, eye)
        offset = np.einsum("bi,bij->bj", offset, step) + np.where(chosen[:, None], addition, 0.0)
        matrix = matrix @ step

    def factor(column, strength):
        return 1 + (2 * paint[:, column].astype(np.float64) - 1) * strength

    everyone = np.ones(count, bool)
    then((paint[:, 0] < strengths.invert_probability) & open_to_all, -eye, 1.0)
    then((paint[:, 1] < strengths.recolour_probability) & open_to_all, *_ink_map(paint[:, 9:22]))
    then(everyone, eye * np.stack([factor(i, strengths.gain) for i in (2, 3, 4)], 1)[:, None, :], 0.0)
    contrast = factor(5, strengths.contrast)[:, None]
    then(everyone, eye * contrast[..., None], 0.5 * (1 - contrast))
    kept = np.where(paint[:, 7] < strengths.grey_probability, 0.0, factor(6, strengths.saturation))[
        :, None, None
    ]
    then(everyone, kept * eye + (1 - kept) * np.outer(_LUMA, np.ones(3)), 0.0)
    then(everyone, eye, (factor(8, strengths.brightness) - 1)[:, None])
    return matrix.astype(np.float32), offset.astype(np.float32)


def _ink_map(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(matrix, offset) [B, 3, 3], [B, 3] of x -> 1 - (1 - x) @ ink for random maps `ink` of the channels.

    Each new ink is a mean of the old ones times a strength, the largest of which is between 0.6 and 1: white
    stays white, and black becomes a colour that stands out from it. v: [B, 13] uniform draws.
    """
    v = v.astype(np.float64)
    weights = v[:, :9].reshape(-1, 3, 3) + 1e-3
    weights /= weights.sum(1, keepdims=True)
    strength = v[:, 9:12] / np.maximum(v[:, 9:12].max(1, keepdims=True), 1e-6)
    ink = weights * (strength * (0.6 + 0.4 * v[:, 12:13]))[:, None, :]
    return ink, 1 - ink.sum(1)


def is_coloured(pictures: np.ndarray) -> np.ndarray:
    """bool [B]: whether a picture uint8 [B, H, W, 3] has colours of its own (beyond a codec's noise)."""
    return (pictures.max(-1) - pictures.min(-1)).max((1, 2)) > _COLOUR_NOISE
