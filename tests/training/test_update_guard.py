"""Updates that would do harm are passed over, whole; the others are what they are without a guard."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.weight_average import WeightAverage
from basic_tf.parallel import strategies
from basic_tf.training import checkpoints, stage_run, tasks
from basic_tf.training.trainer import Trainer
from basic_tf.training.update_guard import UpdateGuard


class _Line(tasks.Task):
    """loss = mean (x . w - y)^2, with a moving mean of x; batch rows [x, y]."""

    def __init__(self, width):
        self.model = self
        self.weight = tf.Variable(tf.zeros([width]), name="w")
        self.moving = tf.Variable(tf.zeros([width]), trainable=False, name="moving")

    def parameters(self):
        return {"w/kernel": self.weight}

    def step(self, batch, noise_key, variables, collectives):
        x, y = batch["rows"][:, :-1], batch["rows"][:, -1]
        error = tf.linalg.matvec(x, variables[0]) - y
        gradient = 2 * tf.reduce_mean(error[:, None] * x, 0)
        return tasks.StepResult([gradient], [tf.reduce_mean(x, 0)], {"loss": tf.reduce_mean(error**2)})

    def update_statistics(self, statistics):
        self.moving.assign(0.9 * self.moving + 0.1 * statistics[0])

    def multiply_adds_per_example(self, trained):
        return 0.0


def trained(batches, guard):
    """State after each step, and the metrics."""
    task = _Line(batches.shape[2] - 1)
    variables = task.parameters()
    optimizer, average = AdaFactorW(0.05), WeightAverage(0.9)
    optimizer.build(variables)
    average.build(variables)
    if guard is not None:
        guard.build()
    step = tf.Variable(0, dtype=tf.int64)
    rows = tf.data.Dataset.from_tensor_slices({"rows": batches})
    runtime = strategies.create("one_device")
    trainer = Trainer(task, variables, optimizer, average, lambda host, hosts: rows, runtime, 0, step, guard)
    states, metrics = [], []
    for _ in batches:
        metrics.append({k: float(v) for k, v in trainer.train(tf.constant(1)).items()})
        held = {"w": task.weight, "moving": task.moving, **optimizer.slots(), **average.slots()}
        states.append({path: np.array(v, np.float32) for path, v in held.items()})
    return states, metrics


def batches(steps, seed=None, width=5):
    return np.random.default_rng(seed).normal(size=(steps, 7, width + 1)).astype(np.float32)


def equal(first, second):
    return all(np.array_equal(first[path], second[path]) for path in first)


def test_without_trouble_a_guard_changes_nothing():
    data = batches(8)
    with_guard, metrics = trained(data, UpdateGuard(spike_factor=50.0))
    without, _ = trained(data, None)
    assert all(equal(a, b) for a, b in zip(with_guard, without, strict=True))
    assert all(m["update_passed_over"] == 0 for m in metrics)
    assert not equal(without[0], without[1])


@pytest.mark.parametrize("harm", [np.nan, np.inf, -np.inf])
def test_a_broken_batch_changes_nothing(harm):
    data = batches(7)
    data[2, 3, 1] = data[3, 0, -1] = harm
    guard = UpdateGuard(consecutive=2)
    states, metrics = trained(data, guard)
    assert [m["update_passed_over"] for m in metrics] == [0, 0, 1, 1, 0, 0, 0]
    assert equal(states[1], states[3]) and not equal(states[3], states[4])
    assert all(np.isfinite(v).all() for v in states[-1].values())
    assert (int(guard.passed_over), int(guard.accepted), int(guard.in_a_row)) == (2, 5, 0)
    broken, _ = trained(data, None)
    assert not np.isfinite(broken[-1]["w"]).all()  # what the guard is for


def test_a_gradient_can_break_where_the_loss_does_not():
    guard = UpdateGuard()
    guard.build()
    finite, broken = tf.ones([3]), tf.constant([1.0, np.nan])
    assert float(guard.passes_over(tf.constant(1.0), [finite, broken])) == 1
    # Squares of these would overflow float32; the gradient itself is in order.
    assert float(guard.passes_over(tf.constant(1.0), [finite * 1e30])) == 0


def test_a_spike_is_passed_over_once_the_mean_is_known():
    data = batches(30, seed=3)
    data[4] *= 100  # too early to tell
    calm = trained(data[:20], None)[1]
    data[20] *= 1000
    guard = UpdateGuard(spike_factor=30.0, decay=0.5, warm_up=12)
    states, metrics = trained(data, guard)
    assert [i for i, m in enumerate(metrics) if m["update_passed_over"]] == [20]
    assert equal(states[19], states[20])
    mean = calm[0]["loss"]
    for m in calm[1:]:
        mean += 0.5 * (m["loss"] - mean)
    expected = 30 * mean
    assert metrics[20]["loss"] > expected
    for m in metrics[21:]:
        mean += 0.5 * (m["loss"] - mean)
    np.testing.assert_allclose(float(guard.mean), mean, rtol=1e-5)


def test_too_many_in_a_row_stop_and_are_named():
    guard = UpdateGuard(consecutive=2)
    guard.build()
    for step, bad in enumerate([0, 1, 1], start=11):
        guard.update(tf.constant(np.nan if bad else 2.5), tf.constant(float(bad)))
        guard.check(step, np.nan, "contrastive")
    guard.update(tf.constant(np.nan), tf.constant(1.0))
    with pytest.raises(
        FloatingPointError,
        match=r"steps 12 to 14 were passed over, 3 in a row .* 2\.5 on average.*--seed, with another --model_dir",
    ):
        guard.check(14, np.nan, "contrastive")


def test_a_resumed_run_warns_of_new_ones_alone(tmp_path, caplog):
    guard = UpdateGuard()
    guard.build()
    run = types.SimpleNamespace(
        folder=str(tmp_path), options=stage_run.Options(), guard=guard, runtime=types.SimpleNamespace(host=0),
        state=lambda: {f"update_guard/{name}": variable for name, variable in guard.slots().items()},
    )  # fmt: skip
    guard.passed_over.assign(3)
    arrays = {path: np.asarray(variable) for path, variable in run.state().items()}
    checkpoints.save(stage_run.checkpoint_folder(run.folder), 20, arrays, {"seed": 0})
    guard.passed_over.assign(0)
    stage_run.StageRun.restore(run, training=False)
    with caplog.at_level("WARNING", logger="absl"):
        guard.update(tf.constant(1.0), tf.constant(0.0))
        guard.check(21, 1.0, "contrastive")
        assert not caplog.text
        guard.update(tf.constant(np.nan), tf.constant(1.0))
        guard.check(22, np.nan, "contrastive")
    assert "(4 so far)" in caplog.text


@pytest.mark.parametrize("options", [{"consecutive": 0}, {"spike_factor": 1.0}, {"decay": 1.0}])
def test_impossible_numbers_are_said(options):
    with pytest.raises(ValueError, match=f"UpdateGuard.{next(iter(options))}"):
        UpdateGuard(**options)


@pytest.mark.slow
def test_every_replica_passes_over_the_same_updates():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.guard_on_replicas"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["passed_over"] == [0, 0, 1, 1, 0, 0] and not found["spread"]
    weights = np.array(found["weights"])  # [step, replica, width]
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[1], weights[3])
    assert np.isfinite(weights).all() and (weights[3] != weights[4]).all()
