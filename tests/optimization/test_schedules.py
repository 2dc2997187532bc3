"""Schedules against their formulas; durations in one unit."""

import math

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.optimization.schedules import Duration, Schedule, schedule


def _curve(rates, steps):
    """Eagerly with Python ints and in a graph with int64 tensors: both must agree."""
    eager = np.array([rates(step).numpy() for step in steps])
    graph = tf.function(rates)
    traced = np.array([graph(tf.constant(step, tf.int64)).numpy() for step in steps])
    np.testing.assert_allclose(eager, traced, rtol=1e-6, atol=1e-12)
    assert rates(0).dtype == tf.float32 and rates(0).shape == ()
    return eager.astype(np.float64)


def test_linear_with_warm_up():
    rates = Schedule(8e-4, 130, warmup_steps=30, shape="linear", end_value=1e-5)
    steps = [0, 14, 29, 30, 80, 129, 130, 131, 10_000]
    expected = [
        8e-4 / 30,
        8e-4 * 15 / 30,
        8e-4,
        8e-4,
        (8e-4 + 1e-5) / 2,
        1e-5 + (8e-4 - 1e-5) / 100,
        1e-5,
        1e-5,
        1e-5,
    ]
    np.testing.assert_allclose(_curve(rates, steps), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", ["linear", "cosine", "rsqrt", "constant"])
def test_arithmetic_in_float64(shape):
    rates = Schedule(0.3, 29, warmup_steps=7, shape=shape, end_value=0.01, timescale=11)
    for step in (0, 5, 7, 12, 28, 29):
        after, left = max(step - 7, 0), min(29 - step, 22) / 22
        expected = {
            "linear": 0.01 + 0.29 * left,
            "cosine": 0.01 + 0.29 * math.sin(0.5 * math.pi * left) ** 2,
            "rsqrt": max(0.3 / math.sqrt(1 + after / 11), 0.01),
            "constant": 0.3,
        }[shape]
        expected = 0.3 * (step + 1) / 7 if step < 7 else expected
        found = rates(step, tf.float64)
        assert found.dtype == tf.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


def test_cosine_rsqrt_and_constant():
    steps = [0, 5, 9, 10, 60, 109, 110, 500]

    def expected(after_warmup):
        return [0.5 * (s + 1) / 10 if s < 10 else after_warmup(s - 10) for s in steps]

    cosine = Schedule(0.5, 110, warmup_steps=10, shape="cosine", end_value=0.1)
    np.testing.assert_allclose(
        _curve(cosine, steps),
        expected(lambda s: 0.1 + 0.4 * (1 + math.cos(math.pi * min(s / 100, 1))) / 2),
        rtol=1e-5,
    )
    rsqrt = Schedule(0.5, 110, warmup_steps=10, shape="rsqrt", timescale=40, end_value=0.2)
    np.testing.assert_allclose(
        _curve(rsqrt, steps), expected(lambda s: max(0.5 * math.sqrt(40 / (40 + s)), 0.2)), rtol=1e-5
    )
    constant = Schedule(0.5, 110, warmup_steps=10, shape="constant")
    np.testing.assert_allclose(_curve(constant, steps), expected(lambda s: 0.5), rtol=1e-6)


def test_cool_down_is_a_straight_line_from_where_the_curve_stands():
    rates = Schedule(0.5, 110, warmup_steps=10, shape="rsqrt", timescale=40, cooldown_steps=20)
    start = 0.5 * math.sqrt(40 / 120)
    got = _curve(rates, [89, 90, 95, 100, 110, 400])
    np.testing.assert_allclose(
        got, [0.5 * math.sqrt(40 / 119), start, 0.75 * start, 0.5 * start, 0, 0], rtol=1e-5, atol=1e-9
    )


def test_warm_up_as_a_fraction_and_none_at_all():
    assert Schedule(1.0, 500_000, warmup_fraction=0.02).warmup == 10_000
    assert Schedule(1.0, 10).warmup == 0
    np.testing.assert_allclose(Schedule(1.0, 10)(0).numpy(), 1.0)
    whole = Schedule(1.0, 10, warmup_steps=10)
    np.testing.assert_allclose(_curve(whole, [0, 9, 10]), [0.1, 1.0, 0.0], atol=1e-7)


def test_long_runs_keep_their_precision():
    """Float32 counts exactly to 16.7 million only; the step is subtracted as an integer."""
    rates = Schedule(1.0, 100_000_000, warmup_steps=99_999_900)
    np.testing.assert_allclose(rates(99_999_950).numpy(), 0.5, rtol=1e-6)


def test_durations():
    assert Duration(steps=7).to_steps() == 7
    assert Duration(examples=1000).to_steps(batch_size=64) == 16
    assert Duration(examples=1024).to_steps(batch_size=64) == 16
    assert Duration(epochs=0.1).to_steps(batch_size=10, examples_per_epoch=300) == 3
    assert Duration(epochs=5).to_steps(batch_size=65_536, examples_per_epoch=6_600_000_000) == 503_541
    twice = [
        schedule(
            1.0, Duration(epochs=10), warmup=Duration(examples=500), batch_size=b, examples_per_epoch=1000
        )
        for b in (10, 20)
    ]
    assert [(s.total_steps, s.warmup) for s in twice] == [(1000, 50), (500, 25)]
    np.testing.assert_allclose(twice[0](600).numpy(), twice[1](300).numpy(), rtol=1e-6)
    fraction = schedule(1.0, Duration(steps=200), warmup_fraction=0.1, shape="cosine", end_value=0.5)
    assert (fraction.warmup, fraction.shape, fraction.end_value) == (20, "cosine", 0.5)


def test_durations_that_make_no_sense():
    with pytest.raises(ValueError, match=r"exactly one.*none came"):
        Duration()
    with pytest.raises(ValueError, match="steps=3 and epochs=2"):
        Duration(steps=3, epochs=2)
    with pytest.raises(ValueError, match="-1 steps"):
        Duration(steps=-1)
    with pytest.raises(ValueError, match="batch size"):
        Duration(examples=3).to_steps()
    with pytest.raises(ValueError, match="examples in the data set"):
        Duration(epochs=3).to_steps(batch_size=2)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"shape": "square"}, "square"),
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "give one"),
        ({"warmup_fraction": 1.5}, "between 0 and 1"),
        ({"warmup_steps": 11}, "does not fit"),
        ({"cooldown_steps": 5}, "decays by itself"),
        ({"shape": "constant", "cooldown_steps": 11}, "cool-down"),
        ({"shape": "rsqrt", "timescale": 0}, "timescale"),
        ({"end_value": -1.0}, "negative"),
        ({"end_value": 2.0}, "above the peak"),
    ],
)
def test_schedules_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(1.0, 10, **options)
