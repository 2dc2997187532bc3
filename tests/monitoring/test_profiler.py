import logging

import pytest
import tensorflow as tf

from basic_tf.monitoring.profiler import Profiler, parse_steps


@tf.function
def product(x):
    return tf.reduce_sum(tf.matmul(x, x))


def run(folder, profile_steps, first=0, last=20, loop=4):
    with Profiler(profile_steps, str(folder)) as profiler:
        for step in range(first, last, loop):
            profiler.loop(step, loop)
            for i in range(loop):
                with profiler.trace(step + i):
                    product(tf.ones([64, 64])).numpy()


def traces(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_the_trace_names_the_steps_and_the_operations(tmp_path):
    run(tmp_path, "5,7")
    (trace,) = traces(tmp_path)
    content = trace.read_bytes()
    assert b"/host:CPU" in content and b"MatMul" in content and b"train" in content
    from tensorflow.python.profiler.internal import (
        _pywrap_profiler_plugin,
    )  # the reader behind the Profile tab

    table, found = _pywrap_profiler_plugin.xspace_to_tools_data([str(trace)], "trace_viewer")
    assert found
    for step in (4, 5, 6, 7):
        assert f"train {step}".encode() in table or f'"step_num":"{step}"'.encode() in table, table[:3000]
    assert b'"step_num":"8"' not in table


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
