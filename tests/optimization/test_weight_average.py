"""The moving average of the weights against a float64 loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from basic_tf.optimization.weight_average import WeightAverage


def _weights(steps=40):
    rng = np.random.default_rng(2)
    return rng.normal(size=(steps + 1, 7, 5)).astype(np.float32), rng.normal(size=(steps + 1,)).astype(
        np.float32
    )


def test_equals_the_formula():
    kernels, scalars = _weights()
    kernel, scalar = keras.Variable(kernels[0]), tf.Variable(scalars[0])
    average = WeightAverage(0.9)
    average.build({"a/kernel": kernel, "t": scalar})
    for path, value in average.averaged().items():
        np.testing.assert_array_equal(value.numpy(), {"a/kernel": kernels[0], "t": scalars[0]}[path])
    update = tf.function(average.update)
    exact = kernels[0].astype(np.float64)
    for step in range(40):
        kernel.assign(kernels[step + 1])
        scalar.assign(scalars[step + 1])
        update(tf.constant(step))
        decay = min(0.9, (1 + step) / (10 + step))
        exact = decay * exact + (1 - decay) * kernels[step + 1]
        np.testing.assert_allclose(average.averaged()["a/kernel"].numpy(), exact, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(kernel.numpy(), kernels[-1])
    assert list(average.slots()) == ["a/kernel/average", "t/average"]


def test_constant_weights_are_their_own_average_and_slow_decay_is_exact():
    """1 - 0.99999 in float32 would be wrong by a thousandth of itself."""
    weight = tf.Variable(tf.fill([3], 2.0))
    average = WeightAverage(0.99999)
    average.build({"w": weight})
    update = tf.function(average.update)
    for step in range(30):
        update(tf.constant(step))
    np.testing.assert_allclose(average.averaged()["w"].numpy(), 2.0, rtol=1e-5)


def test_new_weights_may_be_given_and_narrow_weights_are_averaged_in_float32():
    weight = tf.Variable(tf.ones([3], tf.bfloat16))
    average = WeightAverage(0.5)
    average.build({"w": weight})
    average.update(100, {"w": tf.fill([3], 1.0078125)})
    np.testing.assert_array_equal(average.slots()["w/average"].numpy(), np.float32(1.00390625))
    assert average.averaged()["w"].dtype == tf.bfloat16
    with pytest.raises(ValueError, match="missing for w"):
        average.update(101, {})


def test_errors():
    with pytest.raises(ValueError, match="decay is 1"):
        WeightAverage(1.0)
    average = WeightAverage()
    with pytest.raises(ValueError, match="build"):
        average.update(0)
    average.build({"w": tf.Variable(1.0)})
    with pytest.raises(ValueError, match="built already"):
        average.build({"w": tf.Variable(1.0)})
