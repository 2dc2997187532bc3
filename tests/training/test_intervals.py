"""Every so many steps: the numbers that make sense, and the same steps whatever the loop and wherever a run resumes."""

import dataclasses

import orbit
import pytest

from basic_tf import configurables
from basic_tf.monitoring.metrics_log import read_metrics
from basic_tf.parallel import strategies
from basic_tf.training import loop, preemption
from basic_tf.training.stage_run import Options
from basic_tf.training.stages import ConfigurationError, Stage
from tests import tiny_data


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


@pytest.mark.parametrize("every, total", [(4, 10), (5, 10), (0, 7), (20, 7), (1, 3)])
def test_evaluations_do_not_depend_on_where_a_run_resumes(every, total):
    whole = list(loop._evaluation_steps(0, total, every))
    assert whole == [*(range(every, total, every) if every else ()), total]
    for first in range(1, total + 1):
        assert list(loop._evaluation_steps(first, total, every)) == [step for step in whole if step > first]


def test_a_run_of_loops_that_resumes_logs_and_evaluates_every_so_many_steps(tmp_path):
    data, evaluated = tiny_data.make(str(tmp_path / "data")), []
    bindings = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", "Duration.steps=11"]
    bindings += ["Stage.evaluate_steps=5", "Stage.summary_steps=4"]

    class Evaluator(orbit.AbstractEvaluator):
        def __init__(self, run, report):
            self.run, self.report = run, report

        def evaluate(self, steps):
            evaluated.append(int(self.run.global_step))
            self.report({"figure": 1.0})

    for train_steps in (3, None):
        configurables.parse(["tests/training/tiny.gin"], bindings)
        loop.run_stage(
            configurables.recipe().stage("pretrain"), str(tmp_path), strategies.create("one_device"),
            Options(steps_per_loop=3, train_steps=train_steps), preemption.StopRequest(), Evaluator,
        )  # fmt: skip
    assert evaluated == [3, 5, 10, 11]  # 3 was the end of the first run
    lines = read_metrics(f"{tmp_path}/pretrain/metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 5, 8, 11]
