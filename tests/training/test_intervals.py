"""Every so many steps: the numbers that make sense."""

import dataclasses

import pytest

from basic_tf.training.stages import ConfigurationError, Stage


def stage(**fields):
    others = {f.name: None for f in dataclasses.fields(Stage) if f.default is dataclasses.MISSING}
    return Stage(**(others | {"name": "pretrain", "batch_size": 8} | fields))


@pytest.mark.parametrize(
    "field, value",
    [("evaluate_steps", -1), ("evaluate_steps", 2.5), ("evaluate_steps", None), ("checkpoint_steps", -3),
     ("checkpoint_seconds", 0), ("checkpoint_seconds", float("nan")), ("checkpoint_seconds", "60"),
     ("summary_steps", 0), ("summary_steps", 0.5), ("keep_checkpoints", 0), ("batch_size", 0)],
)  # fmt: skip
def test_impossible_numbers_are_said(field, value):
    with pytest.raises(ConfigurationError, match=rf"pretrain/Stage\.{field} is .*it must be a"):
        stage(**{field: value}).check()


def test_numbers_that_work():
    stage(evaluate_steps=0, checkpoint_steps=0, checkpoint_seconds=1e9, summary_steps=1).check()
