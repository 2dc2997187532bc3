"""Warm start: everything is accounted for, or it fails."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import configurables
from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_blocks import resized_relative_bias
from basic_tf.towers.coatnet_table import CoAtNetTable
from basic_tf.towers.resolution import resized_for_tower
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


TABLE = CoAtNetTable((1, 8), (("mbconv", 1, 8), ("attention", 1, 16), ("attention", 1, 16)), 8)


def test_a_stage_at_another_picture_size_resizes_the_relative_biases_alone():
    small, large = CoAtNet(TABLE, 32, seed=1), CoAtNet(TABLE, (64, 48), seed=2)
    old = {path: np.asarray(variable) for path, variable in small.parameters().items()}
    report = warm_start.apply(large.parameters(), old, (), (), "run", resized_for_tower)
    tables = [path for path in old if path.endswith("relative_bias")]
    assert report.resized == tables and len(report.loaded) == len(old) and len(tables) == 2
    assert any(line.split()[0] == "resized" for line in report.lines())
    for path, variable in large.parameters().items():
        expected = old[path]
        if path in tables:
            expected = resized_relative_bias(expected, tuple((side + 1) // 2 for side in variable.shape[1:]))
            assert expected.shape != old[path].shape
        np.testing.assert_array_equal(variable, expected)


def test_another_picture_size_must_be_declared():
    old = {path: np.asarray(v) for path, v in CoAtNet(TABLE, 32).parameters().items()}
    with pytest.raises(checkpoints.CheckpointError, match=r"relative_bias has shape .*ResizedForTower"):
        warm_start.apply(CoAtNet(TABLE, 64).parameters(), old, (), (), "run")
    # Another width is another model, declared or not.
    wide = CoAtNetTable((1, 8), (("mbconv", 1, 8), ("attention", 1, 24), ("attention", 1, 24)), 8)
    with pytest.raises(checkpoints.CheckpointError, match="does not add up"):
        warm_start.apply(CoAtNet(wide, 64).parameters(), old, (), (), "run", resized_for_tower)


def test_a_recipe_can_raise_the_picture_size_from_stage_to_stage():
    sizes = {"contrastive": 24, "finetune": 48}
    configurables.parse(
        ["tests/training/tiny.gin"],
        [
            "finetune/CoAtNet.image_size = 48",
            "finetune/ImageAugmentation.output_size = 48",
            "finetune/WarmStart.resized = @ResizedForTower",
        ],
    )
    recipe = configurables.recipe()
    for name, size in sizes.items():
        model = recipe.stage(name).task(metadata=None).model
        assert model.image_tower.image_size == (size, size)
    assert recipe.stage("contrastive").warm_start.resized is None
    resized = recipe.stage("finetune").warm_start.resized
    assert resized("x/relative_bias", np.ones((2, 3, 3), np.float32), (2, 5, 5)).shape == (2, 5, 5)
    configurables.parse_text(configurables.config_text())  # what the run folder keeps can be read back
    assert configurables.recipe().stage("finetune").warm_start.resized is not None
