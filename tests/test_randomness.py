"""The hash: the same bits everywhere, and bits good enough for dropout."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import randomness


def _noise(seed, step, examples):
    return randomness.Noise(randomness.step_key(seed, step), tf.constant(examples, tf.int32))


@pytest.mark.parametrize("seed,step", [(0, 0), (1, 2), (2**40 + 17, 499_999), (12345, 2**31 + 5)])
def test_tensorflow_and_numpy_agree_bit_for_bit(seed, step):
    examples = np.array([0, 1, 7, 65_535, 2**20])
    noise = _noise(seed, step, examples)
    np.testing.assert_array_equal(noise.key, randomness.step_key_numpy(seed, step))
    key = randomness.step_key_numpy(seed, step)
    np.testing.assert_array_equal(
        randomness.bits(noise, "a/b", 33), randomness.bits_numpy(key, examples, "a/b", 33)
    )
    np.testing.assert_array_equal(
        randomness.uniform(noise, "a/b", (3, 5)), randomness.uniform_numpy(key, examples, "a/b", (3, 5))
    )


@pytest.mark.parametrize("compile", [False, True])
def test_graph_and_xla_agree_with_eager(compile):
    function = tf.function(lambda n: randomness.uniform(n, "layer", (17,)), jit_compile=compile)
    noise = _noise(3, 4, np.arange(9))
    np.testing.assert_array_equal(function(noise), randomness.uniform(noise, "layer", (17,)))


def test_rows_depend_on_the_example_alone_not_on_the_batch():
    whole = randomness.uniform(_noise(3, 4, np.arange(12)), "layer", (8,))
    part = randomness.uniform(_noise(3, 4, np.array([5, 6, 11])), "layer", (8,))
    np.testing.assert_array_equal(part, whole.numpy()[[5, 6, 11]])


def test_uniform_moments_and_independence():
    values = randomness.uniform(_noise(11, 3, np.arange(500)), "layer", (400,)).numpy()
    assert values.min() >= 0 and values.max() < 1
    # 200,000 draws: the standard error of the mean is 6.5e-4, of the variance 1.7e-4.
    assert abs(values.mean() - 0.5) < 4 * 6.5e-4
    assert abs(values.var() - 1 / 12) < 4 * 1.7e-4
    other = randomness.uniform(_noise(11, 4, np.arange(500)), "layer", (400,)).numpy()
    stream = randomness.uniform(_noise(11, 3, np.arange(500)), "layer2", (400,)).numpy()
    for pair in (other, stream, np.roll(values, 1, 0), np.roll(values, 1, 1)):
        assert abs(np.corrcoef(values.ravel(), pair.ravel())[0, 1]) < 4 / np.sqrt(values.size)
