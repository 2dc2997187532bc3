import logging

import pytest
import tensorflow as tf

from basic_tf.monitoring.profile import Profiler, parse_steps


@tf.function
def product(x):
    return tf.reduce_sum(tf.matmul(x, x))


def run(folder, profile_steps, first=0, last=20, loop=1):
    with Profiler(profile_steps, str(folder), loop) as profiler:
        for step in range(first + loop, last + 1, loop):
            for _ in range(loop):
                product(tf.ones([64, 64])).numpy()
            profiler.after_step(step)


def traces(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def marked_steps(folder):
    """The steps that are marked in the one trace of the folder."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (trace,) = traces(folder)
    space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    (host,) = [plane for plane in space.planes if plane.name.startswith("/host:CPU")]
    names = {id: metadata.name for id, metadata in host.event_metadata.items()}
    assert any("MatMul" in name for name in names.values())
    statistics = {id: metadata.name for id, metadata in host.stat_metadata.items()}
    return sorted(
        next(
            statistic.int64_value
            for statistic in event.stats
            if statistics[statistic.metadata_id] == "step_num"
        )
        for line in host.lines
        for event in line.events
        if names[event.metadata_id] == "train"
    )


def test_the_trace_covers_the_steps(tmp_path):
    run(tmp_path, "5,8")
    assert marked_steps(tmp_path) == [5, 6, 7]


def test_the_trace_covers_the_loops_that_touch_the_steps(tmp_path):
    run(tmp_path, "9,13", loop=4)
    assert marked_steps(tmp_path) == [8, 12]


def test_the_first_loop_may_come_just_before_the_steps(tmp_path):
    run(tmp_path, "6,7", loop=4)
    assert marked_steps(tmp_path) == [4]


def test_a_run_that_stops_early_leaves_its_trace(tmp_path):
    run(tmp_path, "17,400")
    assert len(traces(tmp_path)) == 1


def test_no_steps_no_trace(tmp_path):
    run(tmp_path, "")
    run(tmp_path, None)
    run(tmp_path, "90,91")
    assert not traces(tmp_path)


def test_steps_that_are_past_are_said_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        run(tmp_path, "5,7", first=8)
    assert not traces(tmp_path)
    assert "steps 5 to 6" in caplog.text


@pytest.mark.parametrize("text", ["100", "7,7", "9,7", "a,b", "1,2,3", "-1,4"])
def test_steps_that_make_no_sense(text):
    with pytest.raises(ValueError, match="100,110"):
        parse_steps(text)
