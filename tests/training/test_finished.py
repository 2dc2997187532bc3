"""A stage has ended for the run that asks, or goes on, or is refused in words; no stage starts from half of another."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from basic_tf import configurables
from basic_tf.parallel import strategies
from basic_tf.training import checkpoints, finished, loop, preemption
from basic_tf.training.stage_run import Options, checkpoint_folder
from basic_tf.training.stages import ConfigurationError
from basic_tf.training.warm_start import WarmStart
from tests import tiny_data

STEPS = 3


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    data = tiny_data.make(str(tmp_path_factory.mktemp("data")))

    def run(folder, name="pretrain", **options):
        bindings = [
            f"TRAIN='{data}/train.json'",
            f"MODEL='{data}/tokenizer.model'",
            f"Duration.steps={STEPS}",
        ]
        configurables.parse(["tests/training/tiny.gin"], bindings)
        stage, runtime = configurables.recipe().stage(name), strategies.create("one_device")
        loop.run_stage(stage, str(folder), runtime, Options(**options), preemption.StopRequest())
        return checkpoints.load_latest(checkpoint_folder(f"{folder}/{name}"))

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def test_a_stage_that_was_cut_short_goes_on_to_its_end(train, whole, tmp_path, capsys):
    assert train(tmp_path, train_steps=1).step == 1
    assert train(tmp_path, train_steps=1).step == 1
    assert "stage pretrain: finished at step 1\n" in capsys.readouterr().out
    last = train(tmp_path)
    assert last.step == STEPS
    for path, array in whole[1].arrays.items():
        np.testing.assert_array_equal(last.arrays[path], array, err_msg=path)
    assert json.loads((tmp_path / "pretrain/finished.json").read_text()) == {
        "step": STEPS, "total_steps": STEPS, "schedule_steps": STEPS, "seed": 0,
    }  # fmt: skip


def test_what_a_finished_stage_is_not_the_end_of(train, whole):
    folder, last = whole
    assert train(folder, train_steps=2).step == STEPS  # it has more than that
    with pytest.raises(ConfigurationError, match=f"schedule of {STEPS} steps, and this run's has 5"):
        train(folder, train_steps=5)
    with pytest.raises(ConfigurationError, match="--seed=0, this run has --seed=4"):
        train(folder, seed=4)
    assert train(folder).step == STEPS and last.metadata["schedule_steps"] == STEPS


def test_a_stage_does_not_start_from_half_of_another(train, tmp_path):
    train(tmp_path, train_steps=1)
    with pytest.raises(ConfigurationError, match=f"pretrain, which is at step 1 of {STEPS}"):
        train(tmp_path, "contrastive")
    with pytest.raises(ConfigurationError, match=r"pretrain, which was trained with --seed=0; .* --seed=5"):
        train(tmp_path, "contrastive", seed=5)
    assert train(tmp_path, "contrastive", train_steps=1).step == 1  # a trial of both
    train(tmp_path)
    for options in ({}, {"train_steps": 2}):
        with pytest.raises(
            ConfigurationError, match=f"started from pretrain at step 1 of {STEPS}, .* {STEPS}; delete"
        ):
            train(tmp_path, "contrastive", **options)


@pytest.mark.parametrize(
    "step, schedule, train_steps, ends",
    [
        (6, 6, None, True),
        (1, 6, None, False),
        (1, 6, 1, True),
        (3, 6, 4, False),
        (8, 8, None, True),
        (6, 6, 9, False),
    ],
)
def test_for_whom_a_stage_has_ended(step, schedule, train_steps, ends):
    assert finished.Finished(step, step, schedule, 0).ends(train_steps) == ends


def test_marks_of_older_versions_and_damaged_ones(tmp_path):
    (tmp_path / finished.FILE).write_text('{"step": 7}')
    mark = finished.read(str(tmp_path))
    assert mark.ends(None) and mark.ends(7) and not mark.ends(8) and mark.seed is None
    for text in ("", "{", "[]", "{}", '"x"'):
        (tmp_path / finished.FILE).write_text(text)
        assert finished.read(str(tmp_path)) is None
    finished.remove(str(tmp_path))
    finished.remove(str(tmp_path))
    assert not list(tmp_path.iterdir())


def source(folder, step, metadata, mark=True):
    stage = Path(folder, "pretrain")
    path = checkpoints.save(f"{stage}/checkpoints", step, {}, {"stage": "pretrain", **metadata})
    if mark:
        (stage / finished.FILE).write_text('{"step": 6}')
    return checkpoints.Checkpoint(step, {}, metadata, path)


def check(folder, checkpoint, name="pretrain", **options):
    stage = types.SimpleNamespace(name="contrastive", warm_start=WarmStart(name))
    return finished.check_source(stage, str(folder), checkpoint, Options(**options))


def test_sources_of_older_versions(tmp_path):
    with pytest.raises(ConfigurationError, match="is at step 4 and has not ended"):
        check(tmp_path, source(tmp_path, 4, {"seed": 0}, mark=False))
    assert check(tmp_path, source(tmp_path, 6, {"seed": 0})) == {"step": 6, "schedule_steps": None}
    with pytest.raises(ConfigurationError, match="--seed=0"):
        check(tmp_path, source(tmp_path, 6, {"seed": 0}), seed=1)


def test_an_older_checkpoint_of_a_finished_source_is_refused(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"step 4 of 6: a later one is damaged\. Delete .*finished\.json"
    ):
        check(tmp_path, source(tmp_path, 4, {"seed": 0, "schedule_steps": 6}))


def test_half_trained_weights_of_another_run_are_warned_of(tmp_path, caplog):
    path = f"{tmp_path}/pretrain"
    with caplog.at_level("WARNING", logger="absl"):
        check("elsewhere", source(tmp_path, 6, {"seed": 3, "schedule_steps": 6}), path)
        check("elsewhere", source(tmp_path, 6, {}, mark=False), path)  # a tool made it
        assert not caplog.text
        check("elsewhere", source(tmp_path, 4, {"seed": 3, "schedule_steps": 6}), path)
    assert "at step 4 of 6" in caplog.text
