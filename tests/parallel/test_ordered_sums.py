import contextlib
import types

import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from basic_tf.parallel.ordered_sums import ordered_sums
from basic_tf.training.trainer import Trainer

ELEMENTS, TERMS = 1 << 24, 5  # five terms of 64 MiB: above TensorFlow's 80 % of 256 MiB


def sum_of_many():
    @tf.function(autograph=False)
    def total(x):
        return tf.add_n([tf.sin(x * float(3**n)) * 3.0 ** (-n) for n in range(TERMS)])

    return total


def rewritten(total, x, surrounding) -> bool:
    """Whether TensorFlow makes additions to one buffer of the sum."""
    context.enable_run_metadata()
    try:
        with surrounding:
            total(x)
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    return any(
        node.op == "TemporaryVariable" for graph in graphs for node in graph.post_optimization_graph.node
    )


def test_sums_are_left_as_they_are():
    x = tf.linspace(0.0, 1.0, ELEMENTS)
    if not rewritten(sum_of_many(), x, contextlib.nullcontext()):
        pytest.fail("TensorFlow no longer cuts this sum up: try whether ordered_sums is still needed")
    assert not rewritten(sum_of_many(), x, ordered_sums())


def test_settings_are_back_afterwards():
    before = context.context().function_call_options
    with pytest.raises(RuntimeError), ordered_sums():
        assert context.context().function_call_options is not before
        raise RuntimeError
    assert context.context().function_call_options is before


@pytest.mark.parametrize("host_loop", [True, False])
def test_training_steps_run_inside(host_loop):
    def ordered():
        config = tf.compat.v1.ConfigProto.FromString(
            context.context().function_call_options.config_proto_serialized
        )
        return config.graph_options.rewrite_options.memory_optimization != 0

    seen = []
    runtime = types.SimpleNamespace(
        host_loop=host_loop,
        collectives=None,
        iterator=lambda rows: iter([{}] * 3),
        replicated=lambda value: value,
        step_function=lambda step: lambda batch, number: seen.append(ordered()),
    )
    task = types.SimpleNamespace(apply_by_block=False)
    trainer = Trainer(task, {"w": None}, None, None, None, runtime, 0, tf.Variable(0, dtype=tf.int64))
    trainer._loop_function = lambda iterator, steps, first: seen.append(ordered())
    trainer.train(tf.constant(3))
    assert seen == [True] * (3 if host_loop else 1) and not ordered()
