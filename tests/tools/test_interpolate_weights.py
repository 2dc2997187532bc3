"""Weights between two stages, as run folders that the other programs read."""

import os
import shutil

import numpy as np
import pytest

from basic_tf import configurables, runs
from basic_tf.evaluation.interpolation import interpolated
from basic_tf.training import checkpoints, stage_run
from tools.checkpoints import interpolated as interpolated_runs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def models(rng):
    shapes = {"a/kernel": (3, 5), "log_inverse_temperature": (), "b/moving_variance": (7,)}
    return [
        {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()} for _ in range(2)
    ]


def test_every_weight_lies_between():
    start, end = models(np.random.default_rng())
    for alpha in (0.0, 0.3, 1.0):
        for path, array in interpolated(start, end, alpha).items():
            expected = start[path].astype(np.float64) * (1 - alpha) + end[path].astype(np.float64) * alpha
            np.testing.assert_array_equal(array, expected.astype(np.float32))
            assert array.dtype == np.float32
    for alpha, whole in ((0.0, start), (1.0, end)):
        assert all(interpolated(start, end, alpha)[path] is array for path, array in whole.items())


@pytest.mark.parametrize(
    "change,alpha,words",
    [
        (lambda m: m, 1.5, "alpha is 1.5"),
        (lambda m: m, float("nan"), "alpha is nan"),
        (lambda m: m | {"c": np.ones(2)}, 0.5, "c in the second"),
        (lambda m: {"a/kernel": m["a/kernel"]}, 0.5, "2 weights are in one alone"),
        (lambda m: m | {"a/kernel": np.ones((5, 3))}, 0.5, r"a/kernel has shape \(3, 5\)"),
    ],
)
def test_other_models_and_numbers_are_refused(change, alpha, words):
    start, end = models(np.random.default_rng(0))
    with pytest.raises(ValueError, match=words):
        interpolated(start, change(end), alpha)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with two stages of a tiny recipe, as train.py would leave it."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "run"
    configurables.parse(["tests/training/tiny.gin"], [])
    recipe = configurables.recipe()
    model = recipe.stage("finetune").task(metadata=None).model
    model.build()
    rng = np.random.default_rng(1)
    for stage in ("contrastive", "finetune"):
        arrays = {
            f"parameters/{p}": rng.normal(size=v.shape).astype(np.float32)
            for p, v in model.parameters().items()
        }
        path = next(iter(model.parameters()))
        arrays[f"average/{path}/average"] = arrays[f"parameters/{path}"] + 1
        checkpoints.save(
            stage_run.checkpoint_folder(str(folder / stage)), 6, arrays, {"stage": stage, "seed": 0}
        )
    (folder / runs.CONFIG).write_text(configurables.config_text())
    (folder / runs.TOKENIZER).write_bytes(b"pieces")
    return folder


def test_the_folders_hold_runs(run, tmp_path, monkeypatch):
    made = interpolated_runs.write(
        f"{run}/contrastive", f"{run}/finetune/", [0.0, 0.25, 1 / 3, 1.0], f"{tmp_path}/between"
    )
    assert [os.path.basename(f)[:10] for f in made["folders"]] == [
        "alpha-0.00",
        "alpha-0.25",
        "alpha-0.33",
        "alpha-1.00",
    ]
    ends = [
        stage_run.trained_arrays(checkpoints.load(stage_run.checkpoint_folder(str(run / stage)), 6))
        for stage in ("contrastive", "finetune")
    ]
    # The tokenizer is read by SentencePiece; there is no text here.
    monkeypatch.setattr(configurables, "tokenizer", os.path.basename)
    for folder, alpha in zip(made["folders"], (0.0, 0.25, 1 / 3, 1.0)):
        loaded = runs.load(folder)
        assert (loaded.stage, loaded.step, loaded.tokenizer) == ("finetune", 6, runs.TOKENIZER)
        for path, variable in loaded.model.parameters().items():
            expected = (1 - alpha) * ends[0][path].astype(np.float64) + alpha * ends[1][path]
            np.testing.assert_allclose(variable, expected, rtol=1e-6, atol=1e-7)


def test_what_cannot_work_is_one_line_and_writes_nothing(run, tmp_path):
    start, end, output = f"{run}/contrastive", f"{run}/finetune", f"{tmp_path}/out"
    with pytest.raises(checkpoints.CheckpointError, match="pretrain holds no checkpoint"):
        interpolated_runs.write(f"{run}/pretrain", end, [0.5], output)
    with pytest.raises(ValueError, match="different numbers"):
        interpolated_runs.write(start, end, [0.5, 0.5], output)
    with pytest.raises(ValueError, match="alpha is 2"):
        interpolated_runs.write(start, end, [0.5, 2.0], output)
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other" / runs.TOKENIZER).write_bytes(b"other pieces")
    with pytest.raises(ValueError, match="different tokenizers"):
        interpolated_runs.write(f"{tmp_path}/other/contrastive", end, [0.5], output)
    assert not os.path.exists(output)
    interpolated_runs.write(start, end, [0.5], output)
    with pytest.raises(ValueError, match=r"alpha-0\.50 exists already"):
        interpolated_runs.write(start, end, [0.5], output)
