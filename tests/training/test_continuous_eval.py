"""`--mode=continuous_eval`: beside a training run, in a process of its own as people run it; and what damage does to it."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.training import checkpoints, loop, stage_run
from tests import tiny_data

ROOT = Path(__file__).resolve().parents[2]


def started(data, folder, mode, *flags):
    command = [
        sys.executable, "-m", "basic_tf.train", "--gin_file=tests/training/tiny.gin", f"--model_dir={folder}",
        f"--mode={mode}", "--stage=contrastive", f"--gin_param=TRAIN='{data}/train.json'",
        f"--gin_param=MODEL='{data}/tokenizer.model'",
        f"--gin_param=EVAL='{data}'", "--gin_param=contrastive/Stage.warm_start=None",
        "--gin_param=contrastive/Duration.steps=600", "--gin_param=Stage.checkpoint_steps=50", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def curves(folder):
    """{tag: steps} of every event file in a folder."""
    found = {}
    for path in sorted(Path(folder).glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


class Run:
    """What is asked of a stage's run; its state is the step alone."""

    total_steps = 10

    def __init__(self, folder):
        self.folder, self.global_step = (
            stage_run.checkpoint_folder(str(folder)),
            tf.Variable(0, dtype=tf.int64),
        )

    def save(self, step):
        checkpoints.save(self.folder, step, {"step": np.asarray(step)}, {})

    def restore(self, training):
        assert not training
        found = checkpoints.load_latest(self.folder)
        self.global_step.assign(found.step if found else 0)
        return found and found.metadata


@pytest.mark.parametrize("later", [[], [6]])
def test_a_damaged_newest_checkpoint_is_tried_once(tmp_path, monkeypatch, later):
    run, evaluated, coming = Run(tmp_path / "stage"), [], list(later)
    for step in (2, 4):
        run.save(step)
    (tmp_path / "stage/checkpoints/step-000000004/arrays-00000-of-00001.safetensors").write_bytes(b"")

    def evaluate(steps):
        evaluated.append(int(run.global_step))
        assert len(evaluated) < 5
        if coming:
            run.save(coming.pop())
        return {}

    monkeypatch.setattr(loop, "built", lambda *_: run)
    count = loop.evaluate_stage(
        types.SimpleNamespace(name="stage"), str(tmp_path), None, None,
        lambda run, report: types.SimpleNamespace(evaluate=evaluate), True, 0.3, 0.05,
    )  # fmt: skip
    assert evaluated == [2, *later] and count == len(evaluated)


@pytest.mark.slow
def test_it_follows_a_run_and_ends_with_it(tmp_path):
    data, folder = tiny_data.make(str(tmp_path / "data")), tmp_path / "run"
    watcher = started(data, folder, "continuous_eval", "--eval_timeout=200")  # before there is any checkpoint
    trainer = started(data, folder, "train")
    try:
        assert trainer.wait(200) == 0, trainer.stderr.read()
        out, error = watcher.communicate(timeout=100)
    finally:
        for process in (trainer, watcher):
            process.kill()
    assert watcher.returncode == 0, error
    evaluated = [int(step.replace(",", "")) for step in re.findall(r"evaluated step ([\d,]+)", out)]
    assert len(evaluated) >= 2 and evaluated == sorted(set(evaluated)) and evaluated[-1] == 600
    lines = (folder / "contrastive/evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == evaluated
    of_evaluation, of_training = curves(folder / "contrastive/evaluation"), curves(folder / "contrastive")
    assert (
        of_evaluation["zero_shot/in_distribution/top1"] == evaluated
    )  # one run of TensorBoard, beside the losses
    assert of_training["loss"][-1] == 600
