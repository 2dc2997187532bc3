"""Warm start: everything is accounted for, or it fails."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.training import checkpoints, warm_start


def _parameters():
    return {
        "image_tower/stem/kernel": tf.Variable(tf.zeros([2, 2])),
        "text_tower/embedding": tf.Variable(tf.zeros([3])),
    }


_OLD = {"image_tower/stem/kernel": np.ones((2, 2)), "image_tower/head/kernel": np.ones(5)}


def test_loads_what_matches_and_reports_the_rest():
    parameters = _parameters()
    report = warm_start.apply(parameters, _OLD, ("text_tower/.*",), ("image_tower/head/.*",), "run/pretrain")
    assert report.loaded == ["image_tower/stem/kernel"]
    assert report.fresh == ["text_tower/embedding"]
    assert report.ignored == ["image_tower/head/kernel"]
    np.testing.assert_array_equal(parameters["image_tower/stem/kernel"], np.ones((2, 2)))
    np.testing.assert_array_equal(parameters["text_tower/embedding"], np.zeros(3))
    assert "run/pretrain" in report.lines()[0]


@pytest.mark.parametrize(
    "fresh,ignored,message",
    [
        ((), ("image_tower/head/.*",), "text_tower/embedding is not in"),
        (("text_tower/.*",), (), "image_tower/head/kernel of .* has no place"),
        (("text_tower/.*", "projection/.*"), ("image_tower/head/.*",), "'projection/.\\*' matches nothing"),
        (("text_tower/.*",), ("image_tower/head/.*", "x"), "ignored pattern 'x' matches nothing"),
    ],
)
def test_anything_unexplained_fails_and_assigns_nothing(fresh, ignored, message):
    parameters = _parameters()
    with pytest.raises(checkpoints.CheckpointError, match=message):
        warm_start.apply(parameters, _OLD, fresh, ignored, "run")
    np.testing.assert_array_equal(parameters["image_tower/stem/kernel"], np.zeros((2, 2)))


def test_another_shape_fails():
    old = {**_OLD, "image_tower/stem/kernel": np.ones((2, 3))}
    with pytest.raises(checkpoints.CheckpointError, match=r"shape \(2, 3\)"):
        warm_start.apply(_parameters(), old, ("text_tower/.*",), ("image_tower/head/.*",), "run")
