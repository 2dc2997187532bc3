import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.monitoring.metrics_log import MetricsLog, read_metrics


def train(log, first, last):
    for step in range(first, last + 1):
        log.write(step, {"loss": 1.0 / step})
        if step % 4 == 0:
            log.write(step, {"top1": step / 100}, kind="evaluation")


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole, killed = str(tmp_path / "a/metrics.jsonl"), str(tmp_path / "b/metrics.jsonl")
    with MetricsLog(whole) as log:
        train(log, 1, 12)
    log = MetricsLog(killed)
    train(log, 1, 7)
    with open(killed, "a") as file:  # the kill came in the middle of a line
        file.write('{"step": 8, "kind": "tr')
    for resumed_at in (6, 8, 3, 0, 8):  # checkpoints are older than the last line, or as old
        log = MetricsLog(killed, resumed_step=resumed_at)
        train(log, resumed_at + 1, 9)
    log = MetricsLog(killed, resumed_step=8)
    log.write(8, {"top1": 8 / 100}, kind="evaluation")  # an evaluation that is made again
    train(log, 9, 12)
    log.close()
    assert Path(whole).read_text() == Path(killed).read_text()
    assert len(read_metrics(whole)) == 15


def test_each_line_is_there_at_once_and_is_strict_json(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    log = MetricsLog(path)
    log.write(
        0,
        {
            "loss": tf.constant(0.5),
            "weights": np.array([1, 2]),
            "bad": float("nan"),
            "deep": {"x": (np.inf,)},
        },
    )

    def no_constant(name):
        raise AssertionError(name)

    (line,) = Path(path).read_text().splitlines()
    assert json.loads(line, parse_constant=no_constant) == {
        "step": 0,
        "kind": "train",
        "loss": 0.5,
        "weights": [1, 2],
        "bad": None,
        "deep": {"x": [None]},
    }


def test_step_zero_survives_a_restart_before_the_first_checkpoint(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    log = MetricsLog(path)
    log.write(0, {"top1": 0.01}, kind="evaluation")
    log.write(1, {"loss": 3.0})
    MetricsLog(path, resumed_step=0).close()
    assert [record["step"] for record in read_metrics(path)] == [0]


def test_reserved_names_are_refused(tmp_path):
    with MetricsLog(str(tmp_path / "metrics.jsonl")) as log, pytest.raises(ValueError, match="'kind'"):
        log.write(1, {"kind": 3})


def test_what_is_there_is_known_after_a_restart(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    with MetricsLog(path) as log:
        train(log, 1, 8)
    with MetricsLog(path, resumed_step=4) as log:
        assert log.has(4, "evaluation") and log.has(4, "train")
        assert not log.has(3, "evaluation") and not log.has(8, "evaluation")


def test_evaluations_made_afterwards_in_another_way_are_all_kept(tmp_path):
    path, figures = (
        str(tmp_path / "evaluation.jsonl"),
        ({"top1": 0.1}, {"top1": 0.3}, {"top1": 0.1, "x/top1": 1}),
    )
    for made in (*figures, figures[1]):
        with MetricsLog(path, resumed_step=None) as log:
            for _ in range(2):
                log.write(9, made, kind="evaluation")
    lines = read_metrics(path)
    assert [{k: v for k, v in line.items() if k not in ("step", "kind")} for line in lines] == list(figures)
