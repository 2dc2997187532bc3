import io
import math

import pytest

from basic_tf.monitoring.progress import Chronometer, ProgressLine, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


def line_of(clock, stream, **kwargs):
    kwargs = {"flops_per_example": 2e6, "gemm_rate": 1e9, "live": False, "plain_seconds": 0.0} | kwargs
    return ProgressLine(100, 50, stream=stream, clock=clock, name="contrastive", **kwargs)


def test_duration():
    assert [duration(s) for s in (0, 59.6, 427, 7623, 90061, math.nan, math.inf)] == [
        "0:00", "1:00", "7:07", "2:07:03", "1d 1:01:01", "?", "?",
    ]  # fmt: skip


def test_speeds_leave_out_compilation_and_pauses():
    clock, stream = Clock(), io.StringIO()
    line = line_of(clock, stream)
    clock.pass_(500)  # compilation
    assert line.update(10, {"loss": 3.0}) == {}
    clock.pass_(2)
    with line.pause("evaluating"):
        clock.pass_(1000)
    clock.pass_(3)
    speeds = line.update(20, {"loss": 2.0, "temperature": 0.05}, data_wait_seconds=1.0)
    # 10 steps of 50 pairs in 5 s: 100 pairs/s; 2e6 * 100 of 1e9 FLOP/s is a fifth.
    assert speeds == pytest.approx(
        {"pairs_per_second": 100, "data_wait_share": 0.2, "matrix_rate_share": 0.2, "training_seconds": 5}
    )
    shown = stream.getvalue().splitlines()[-1]
    for part in ("contrastive 20/100", "20%", "loss 2", "temperature 0.05", "100 pairs/s", "data wait 20%",
                 "matrix rate 20%", "0:05 trained", "0:40 left"):  # fmt: skip
        assert part in shown


def test_a_wait_that_is_not_measured_is_not_shown():
    clock, stream = Clock(), io.StringIO()
    line = line_of(clock, stream)
    line.update(10, {}, None)
    clock.pass_(5)
    speeds = line.update(20, {}, None)
    assert set(speeds) == {"pairs_per_second", "matrix_rate_share", "training_seconds"}
    assert "100 pairs/s" in stream.getvalue() and "data wait" not in stream.getvalue()


def test_nested_pauses_count_once():
    clock = Clock()
    chronometer = Chronometer(clock=clock)
    chronometer.lap(1)
    clock.pass_(1)
    with chronometer.pause():
        clock.pass_(10)
        with chronometer.pause():
            clock.pass_(10)
    chronometer.lap(2)
    assert chronometer.seconds == pytest.approx(1)


def test_a_pause_that_raises_still_ends():
    clock = Clock()
    chronometer = Chronometer(clock=clock)
    chronometer.lap(1)
    with pytest.raises(RuntimeError), chronometer.pause():
        clock.pass_(10)
        raise RuntimeError
    clock.pass_(2)
    chronometer.lap(2)
    assert chronometer.seconds == pytest.approx(2)


def test_totals_survive_a_restart():
    clock = Clock()
    line = line_of(clock, None)
    line.update(1, {})
    clock.pass_(4)
    line.update(3, {}, data_wait_seconds=1)
    state = line.state()
    assert state == {"seconds": 4.0, "steps": 2, "wait_seconds": 1.0}
    clock.pass_(10_000)  # the machine was away
    line = line_of(clock, None, state=state)
    line.update(4, {})
    clock.pass_(2)
    assert line.update(5, {})["training_seconds"] == pytest.approx(6)
    assert line.state()["steps"] == 3


def test_the_rate_follows_the_present():
    clock = Clock()
    chronometer = Chronometer(clock=clock)
    chronometer.lap(0)
    for step in range(1, 11):  # 100 s at 0.1 steps/s
        clock.pass_(10)
        chronometer.lap(step)
    for step in range(11, 41):  # 30 s at 1 step/s
        clock.pass_(1)
        chronometer.lap(step)
    assert chronometer.steps_per_second() == pytest.approx(1)
    assert chronometer.seconds == pytest.approx(130)


def test_plain_lines_come_now_and_then_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    line = line_of(clock, stream, plain_seconds=10.0)
    for step in range(1, 101):
        clock.pass_(1)
        line.update(step, {"loss": 1.0})
    line.close()
    line.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11  # steps 1, 11, ..., 91 and the last
    assert "1/100" in lines[0] and "100/100" in lines[-1]
    assert not any("\x1b" in text for text in lines)


def test_close_shows_an_unprinted_last_line():
    clock, stream = Clock(), io.StringIO()
    with line_of(clock, stream, plain_seconds=10.0) as line:
        line.update(1, {})
        clock.pass_(1)
        line.update(2, {})
    assert "2/100" in stream.getvalue().splitlines()[-1]


def test_live_line_repaints_and_leaves_the_last_state():
    clock, stream = Clock(), io.StringIO()
    line = line_of(clock, stream, live=True)
    for step in (1, 2):
        clock.pass_(1)
        line.update(step, {"loss": 0.25})
    with line.pause("evaluating"):
        stream.write("EVALUATION\n")
    line.close()
    text = stream.getvalue()
    assert "\x1b" in text and "[evaluating]" in text.replace("\n", "") and "EVALUATION" in text
    assert "loss 0.25" in text.split("EVALUATION")[1]


def test_without_flops_no_share_is_claimed():
    clock, stream = Clock(), io.StringIO()
    line = line_of(clock, stream, gemm_rate=None, unit="pictures")
    line.update(1, {})
    clock.pass_(1)
    speeds = line.update(2, {})
    assert set(speeds) == {"pictures_per_second", "data_wait_share", "training_seconds"}
    assert "matrix" not in stream.getvalue() and "pictures/s" in stream.getvalue()


def test_mistakes_are_errors():
    with pytest.raises(ValueError, match="at least one"):
        ProgressLine(0, 5, stream=None)
    line = ProgressLine(5, 5, stream=None)
    line.update(3, {})
    with pytest.raises(ValueError, match="step 2 after step 3"):
        line.update(2, {})
