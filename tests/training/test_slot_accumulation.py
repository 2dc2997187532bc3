"""Contrastive.accumulate_in_slots through the trainer, as gin binds it."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import configurables
from basic_tf.parallel import strategies
from basic_tf.training import stage_run
from basic_tf.training.stages import ConfigurationError
from basic_tf.training.trainer import Trainer
from tests import tiny_data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    data = tiny_data.make(str(tmp_path_factory.mktemp("data")))

    def build(*params, runtime=None, stage="finetune"):
        bindings = [
            f"TRAIN='{data}/train.json'",
            f"MODEL='{data}/tokenizer.model'",
            "AdaFactorW.factor_min_dim = 8",
        ]
        configurables.parse(["tests/training/tiny.gin"], [*bindings, *params])
        stage = configurables.recipe().stage(stage)
        return stage_run.built(
            stage,
            str(tmp_path_factory.mktemp("run")),
            runtime or strategies.create("one_device"),
            stage_run.Options(),
        )

    return build


def trained(run):
    trainer = Trainer(
        run.task, run.trained, run.optimizer, run.average,
        lambda host, hosts: run.batches.dataset(0, host, hosts), run.runtime, run.seed, run.global_step,
    )  # fmt: skip
    losses = [float(trainer.train(tf.constant(1))["loss"]) for _ in range(2)]
    return losses, {path: np.asarray(v, np.float64) for path, v in run.state().items()}


OPTIONS = ("Contrastive.microbatch = 8", "AdaFactorW.momentum_dtype = 'float32'", "AdaFactorW.eps = 1e-3")


def test_a_stage_accumulates_in_its_slots(built, monkeypatch):
    """The text tower's stage: the small trace."""
    run = built(*OPTIONS, "Contrastive.accumulate_in_slots = 'sketch'", stage="contrastive")
    before = {path: np.asarray(v, np.float64) for path, v in run.state().items()}
    monkeypatch.setattr(run.optimizer, "apply", None)  # the ordinary update is not used
    losses, after = trained(run)
    assert np.isfinite(losses).all()
    for path, value in after.items():
        assert np.isfinite(value).all()
        frozen = path.startswith("parameters/image_tower/") or path == "step"
        assert np.any(value != before[path]) != frozen or path == "step", path


@pytest.mark.slow
def test_both_towers_with_and_without(built):
    losses, state = trained(built(*OPTIONS))
    other, slots = trained(built(*OPTIONS, "Contrastive.accumulate_in_slots = 'sketch'"))
    assert other[0] == losses[0]
    assert other[1] == pytest.approx(losses[1], rel=1e-2)
    assert state.keys() == slots.keys()
    assert any(np.any(state[p] != slots[p]) for p in state if p.startswith("parameters/"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["Contrastive.microbatch = None"], "microbatch is not set"),
        (["Contrastive.apply_by_block = True"], "apply_by_block is set"),
        (["AdaFactorW.global_clip_norm = 1.0"], "global_clip_norm is 1.0"),
        (["Contrastive.accumulate_in_slots = 'guess'"], "'guess'; choose one of sketch, pieces, uncorrected"),
    ],
)
def test_what_cannot_be_is_one_line(built, params, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        built("Contrastive.microbatch = 4", "Contrastive.accumulate_in_slots = 'sketch'", *params)
    assert "\n" not in str(caught.value)


def test_another_runtime_is_refused(built, monkeypatch):
    runtime = strategies.create("one_device")
    monkeypatch.setattr(runtime, "name", "mirrored")
    with pytest.raises(ConfigurationError, match="works on one device; this run has the runtime mirrored"):
        built("Contrastive.microbatch = 4", "Contrastive.accumulate_in_slots = 'sketch'", runtime=runtime)
