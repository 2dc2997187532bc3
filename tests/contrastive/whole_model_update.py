"""The update that block-by-block application must equal: all gradients first, then the optimizer."""

import numpy as np

from basic_tf.contrastive.gradients import contrastive_gradients

# Biases whose gradient is zero in exact arithmetic: of a key (it cancels in the softmax), and those that a ghost
# BatchNorm takes away again. An optimizer that divides by the root of the second moment blows the rounding that
# is left of them up to updates of full size, so no two roads agree there: comparisons freeze them.
KEY_BIASES = r".*/attention/key/bias"
BEFORE_BATCH_NORM = r"image_tower/(stem/conv0|stage\d/block\d/pre_norm)/bias"


def state_of(model, optimizer) -> dict[str, np.ndarray]:
    """Copies of weights, moving statistics and slots by path."""
    return {path: np.array(v) for path, v in (model.parameters() | optimizer.slots()).items()}


def whole_model_step(model, optimizer, images, token_ids, step: int, microbatch=None, **options) -> float:
    """One step from whole-model gradients; the loss."""
    variables = [model.parameters()[path] for path in optimizer.trained_paths()]
    result = contrastive_gradients(model, images, token_ids, microbatch, variables=variables, **options)
    optimizer.apply(result.gradients, variables, step=step)
    if result.statistics:
        model.update_statistics(result.statistics)
    return float(result.loss)


def largest_difference(found: dict, expected: dict) -> tuple[float, str]:
    """max over parameters, statistics and slots of |difference| / |expected| in 2-norms, and where."""
    assert found.keys() == expected.keys()
    worst = 0.0, ""
    for path, value in expected.items():
        value = value.astype(np.float64)
        difference = np.linalg.norm((found[path].astype(np.float64) - value).ravel())
        error = float(difference / max(np.linalg.norm(value.ravel()), 1e-300))
        if not error <= worst[0]:  # NaN counts
            worst = error, path
    return worst
