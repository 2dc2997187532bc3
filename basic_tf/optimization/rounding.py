"""Rounding on the way into a narrow slot.

Round-to-nearest drops any increment below half a unit in the last place: a bfloat16 slot has 8 significant
bits and stops moving when the increment is below 1/512 of its value. Stochastic rounding is right on average
instead.
"""

import tensorflow as tf

from basic_tf import randomness

MODES = ("nearest", "stochastic")


def stochastic_bfloat16(value: tf.Tensor, noise_key: tf.Tensor, stream: str, draw=0) -> tf.Tensor:
    """Rounds up with a probability equal to the distance from the lower neighbour (in bfloat16 units).

    value: float32 or float64 (narrowed to float32 first), any static shape. noise_key: uint32 [2] from
    `randomness.step_key`. stream: names the draw, here the slot's path. draw: which one, where a slot is
    rounded several times a step (int or int32 scalar tensor). Infinities and NaN stay what they are.

    The upper half of a float32's bits *is* a bfloat16, so adding 16 random bits and cutting off the lower
    half rounds the magnitude; the carry into the exponent is the right neighbour.
    """
    value = tf.cast(value, tf.float32)
    noise = randomness.Noise(noise_key, tf.reshape(tf.cast(draw, tf.int32), [1]))
    words = tf.reshape(randomness.bits(noise, stream, max(value.shape.num_elements(), 1)), value.shape)
    low_half = tf.constant(0xFFFF, tf.uint32)
    words = tf.bitwise.bitwise_and(words, low_half)
    moved = tf.bitcast(value, tf.uint32) + words
    cut = tf.bitcast(tf.bitwise.bitwise_and(moved, tf.bitwise.invert(low_half)), tf.float32)
    # A NaN's bits may overflow into those of a finite number.
    return tf.cast(tf.where(tf.math.is_finite(value), cut, value), tf.bfloat16)


def narrow(value: tf.Tensor, dtype, mode: str, noise_key: tf.Tensor | None, stream: str, draw=0) -> tf.Tensor:
    """Casts to a slot's dtype. `stochastic` concerns bfloat16 alone; others round to nearest."""
    if mode == "stochastic" and tf.as_dtype(dtype) == tf.bfloat16:
        if noise_key is None:
            raise ValueError(
                f"stochastic rounding of {stream} needs a noise key (randomness.step_key(seed, step))"
            )
        return stochastic_bfloat16(value, noise_key, stream, draw)
    return tf.cast(value, dtype)
