"""What cannot work on the devices at hand: one line and exit code 1, before training starts."""

import dataclasses

import pytest

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "flags,bindings,message",
    [
        (["--runtime=dtensor", "--mesh=4by2"], [], "--mesh=4x2"),
        (["--runtime=multi_worker"], [], "TF_CONFIG"),
        *(
            pytest.param(flags, bindings, message, marks=slow)
            for flags, bindings, message in (
                (["--runtime=dtensor", "--mesh=4x2", "--logical_devices=6"], [], "needs 8 devices, but there are 6"),
                (["--runtime=dtensor", "--mesh=2x1", "--mode=train_and_eval"], [], "continuous_eval"),
                (["--runtime=dtensor", "--mesh=3x1"], [], "16 cannot be divided among 3 replicas"),
                (["--runtime=mirrored", "--logical_devices=3"], [], "cannot be divided among 3"),
                (
                    ["--runtime=dtensor", "--mesh=2x1"],
                    ["joint/Contrastive.microbatch = 3"],
                    "microbatch = 3 does not divide the 8 rows of a replica",
                ),
                (["--runtime=dtensor", "--mesh=2x2"], ["joint/Rule.pattern = 'image_towr/.*'"], "image_towr"),
                (["--runtime=dtensor", "--mesh=2x2"], ["joint/Rule.layout = ('model',)"], "dimensions"),
                (
                    ["--runtime=dtensor", "--mesh=2x2"],
                    ["joint/Contrastive.apply_by_block = True"],
                    "apply_by_block",
                ),
            )
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(run, flags, bindings, message):
    (ended,) = run.ended("one_device", flags=flags, bindings=(*run.bindings, *bindings))
    assert ended.code == 1, ended.errors
    assert message in ended.last_line and ended.last_line.startswith("train: ")
    assert "Traceback" not in ended.errors
    assert not run.checkpoint_steps()


@slow
@pytest.mark.parametrize("runtime", ["mirrored_2", "multi_worker_2", "dtensor_2x1"])
def test_a_checkpoint_of_another_model_is_one_line(run, runtime):
    run.losses("one_device", steps=2)
    run.forget_the_end()
    (run.folder / "config.gin").unlink()
    for ended in run.ended(runtime, bindings=(), seconds=120):
        assert ended.code == 1, ended.errors
        assert ended.last_line.startswith("train: ") and "is of another model" in ended.last_line
    assert run.last().step == 2


@slow
def test_a_worker_that_cannot_work_does_not_keep_the_others(run):
    """The same line from each: all of them find the same fault."""
    bad = dataclasses.replace(run, bindings=(*run.bindings, "joint/Contrastive.microbatch = 3"))
    for ended in bad.ended("multi_worker_2", seconds=120):
        assert ended.code == 1 and "does not divide the 8 rows" in ended.last_line, ended.errors
