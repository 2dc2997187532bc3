"""Rounding into bfloat16 by the hash."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from basic_tf import randomness
from basic_tf.optimization import rounding
from basic_tf.optimization.adafactorw import AdaFactorW


def test_stochastic_rounding_picks_a_neighbour_with_the_right_probability():
    # 1 + 3/512: the bfloat16 neighbours are 1 and 1 + 1/128, the distance from the lower is 3/4 of the gap.
    value = tf.fill([64, 501], 1.0 + 3 / 512)
    rounded = rounding.stochastic_bfloat16(value, randomness.step_key(1, 2), "a")
    rounded = tf.cast(rounded, tf.float32).numpy()
    assert set(np.unique(rounded)) == {1.0, 1.0 + 1 / 128}
    upper = np.mean(rounded > 1)
    assert abs(upper - 0.75) < 5 * np.sqrt(0.75 * 0.25 / rounded.size)


def test_every_result_is_a_neighbour_and_the_mean_is_unbiased():
    rng = np.random.default_rng(0)
    value = (rng.normal(size=999) * 10.0 ** rng.uniform(-20, 20, size=999)).astype(np.float32)
    draws = np.stack(
        [
            rounding.stochastic_bfloat16(tf.constant(value), randomness.step_key(3, step), "a")
            .numpy()
            .astype(np.float64)
            for step in range(50)
        ]
    )
    spacing = np.abs(value.astype(np.float64)) * 2.0**-7  # at least one unit in the last place
    assert (np.abs(draws - value) <= spacing).all()
    deviation = (draws.mean(0) - value) / spacing
    assert abs(deviation.mean()) < 5 * 0.5 / np.sqrt(50 * 999)


def test_values_that_bfloat16_holds_and_values_that_are_not_finite_stay():
    value = np.array([0.0, -0.0, 1.5, -(2.0**100), np.inf, -np.inf, np.nan], np.float32)
    for step in range(20):
        rounded = rounding.stochastic_bfloat16(tf.constant(value), randomness.step_key(0, step), "s").numpy()
        np.testing.assert_array_equal(rounded.astype(np.float32), value)
    all_ones = tf.bitcast(tf.constant([0x7FFFFFFF], tf.uint32), tf.float32)  # the NaN that overflows
    assert np.isnan(
        rounding.stochastic_bfloat16(all_ones, randomness.step_key(0, 0), "s").numpy().astype(np.float32)
    )


def test_streams_and_steps_differ_and_repeat():
    value = tf.fill([777], 1.0 + 1 / 256)
    draw = {
        (stream, step): rounding.stochastic_bfloat16(value, randomness.step_key(0, step), stream).numpy()
        for stream in ("a", "b")
        for step in (0, 1)
    }
    again = rounding.stochastic_bfloat16(value, randomness.step_key(0, 1), "b").numpy()
    np.testing.assert_array_equal(again, draw["b", 1])
    keys = list(draw)
    for i, first in enumerate(keys):
        for second in keys[:i]:
            assert abs(np.mean(draw[first] == draw[second]) - 0.5) < 0.1


def test_other_dtypes_are_cast_and_the_key_is_required():
    value = tf.constant([1.0 + 1e-4])
    assert rounding.narrow(value, tf.float32, "stochastic", None, "a").numpy() == value.numpy()
    nearest = rounding.narrow(value, tf.bfloat16, "nearest", None, "a").numpy()
    assert nearest == value.numpy().astype(ml_dtypes.bfloat16)
    with pytest.raises(ValueError, match="noise key"):
        rounding.narrow(value, tf.bfloat16, "stochastic", None, "a")


def test_small_increments_move_a_stochastic_slot_and_not_a_nearest_one():
    """beta1 = 0.999: each step adds a thousandth, which round-to-nearest drops once the slot is near 1/2."""
    means = {}
    for mode in ("nearest", "stochastic"):
        variable = tf.Variable(tf.zeros([17, 19]))
        optimizer = AdaFactorW(0.0, beta1=0.999, momentum_rounding=mode, seed=5)
        optimizer.build({"kernel": variable})
        update = tf.function(lambda step, o=optimizer, v=variable: o.apply([tf.ones([17, 19])], [v], step))
        for step in range(700):
            update(tf.constant(step))
        means[mode] = np.mean(optimizer.slots()["kernel/momentum"].numpy().astype(np.float32))
    exact = 1 - 0.999**700
    assert abs(means["stochastic"] - exact) < 0.02
    assert abs(means["nearest"] - exact) > 0.1


def test_bfloat16_weights_move_by_small_updates_with_stochastic_rounding():
    variable = tf.Variable(tf.ones([64, 64], tf.bfloat16))
    optimizer = AdaFactorW(2.0**-12, weight_decay=0.0, weight_rounding="stochastic")
    optimizer.build({"kernel": variable})
    update = tf.function(lambda step: optimizer.apply([tf.ones([64, 64])], [variable], step))
    for step in range(64):
        update(tf.constant(step))
    moved = 1 - np.mean(variable.numpy().astype(np.float64))
    assert abs(moved - 64 * 2.0**-12) < 0.1 * 64 * 2.0**-12
