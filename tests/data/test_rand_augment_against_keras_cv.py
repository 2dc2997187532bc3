"""RandAugment's operations against those of keras_cv: TensorFlow, and no line of PIL's or OpenCV's.

Its brightness and contrast are others (a shift; around the mean of each channel), and so are its shears (from the centre
of the corner's pixel): for these PIL alone is the oracle (test_rand_augment.py).
"""

import numpy as np
import pytest
import tensorflow as tf
from keras_cv import layers

from basic_tf.data.rand_augment import OPERATIONS
from tests.data.test_rand_augment import picture

LEVELS = (0, 255)
MOVED = {"fill_mode": "constant", "fill_value": 128.0}


def column(value):
    """One value for the only picture of a batch, beside height, width and channels."""
    return tf.reshape(tf.constant(value, tf.float32), (1, 1, 1, 1))


def solarized(images, strength, sign):
    given = {"additions": column(0.0), "thresholds": column(256 * (1 - strength))}
    return layers.Solarization(LEVELS).augment_images(images, given)


def translated(images, width, height):
    given = {"width_translations": tf.constant([[width]]), "height_translations": tf.constant([[height]])}
    return layers.RandomTranslation(0.0, 0.0, **MOVED).augment_images(images, given)


def enhanced(layer):
    """keras_cv blends from the picture (0) to the degenerate one (1), PIL the other way round."""
    return lambda images, strength, sign: layer.augment_images(images, column(-sign * 0.9 * strength))


# (operation of keras_cv, levels by which rounding may differ: it returns floats; PIL cuts off what auto_contrast makes).
ORACLES = {
    "auto_contrast": (lambda images, *_: layers.AutoContrast(LEVELS).augment_images(images), 1.001),
    "equalize": (lambda images, *_: layers.Equalization(LEVELS).augment_images(images), 0),
    "posterize": (
        lambda images, s, _: layers.Posterization(LEVELS, 8 - round(4 * s)).augment_image(images),
        0,
    ),
    "solarize": (solarized, 0),
    "colour": (enhanced(layers.RandomColorDegeneration(0.5)), 1),
    "sharpness": (enhanced(layers.RandomSharpness(0.5, LEVELS)), 1),
    "translate_x": (lambda images, s, sign: translated(images, -0.45 * s * sign, 0.0), 0.51),
    "translate_y": (lambda images, s, sign: translated(images, 0.0, -0.45 * s * sign), 0.51),
    "rotate": (
        lambda images, s, sign: layers.RandomRotation(0.1, **MOVED).augment_images(
            images, {"angles": tf.constant([np.deg2rad(30 * s * sign)], tf.float32)}
        ),
        0.51,
    ),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("strength,sign", [(0.5, 1.0), (0.5, -1.0), (1.0, -1.0), (0.27, 1.0)])
def test_operations_are_those_of_keras_cv(name, strength, sign):
    before = picture(seed=11)
    oracle, tolerance = ORACLES[name]
    theirs = oracle(tf.constant(before[None], tf.float32), strength, sign)[0].numpy()
    ours = OPERATIONS[name](before, strength, sign)
    assert (ours != before).any()
    assert np.abs(ours - theirs).max() <= tolerance
