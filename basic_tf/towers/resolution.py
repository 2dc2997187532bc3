"""Weights of a tower at another picture size: progressive resolution, and fine-tuning on larger pictures."""

import numpy as np

from basic_tf.towers.coatnet_blocks import resized_relative_bias


def resized_for_tower(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A weight for a tower whose pictures have another size, or None where the size has no say in the shape.

    Of CoAtNet's weights only the relative-bias tables, [heads, 2H-1, 2W-1], follow the picture: they are stretched by
    bilinear interpolation (CoAtNet A.1). path: parameter path. array: as it was. shape: as the new tower has it.
    """
    is_table = path.endswith("/relative_bias") and array.ndim == len(shape) == 3
    if not is_table or array.shape[0] != shape[0] or any(side % 2 == 0 for side in shape[1:]):
        return None
    return resized_relative_bias(np.asarray(array), tuple((side + 1) // 2 for side in shape[1:]))
