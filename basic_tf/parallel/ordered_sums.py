"""Sums that do not depend on which of their terms is ready first."""

import contextlib

import tensorflow as tf
from tensorflow.python.eager import context


@contextlib.contextmanager
def ordered_sums():
    """Functions that this thread calls inside give the same bits at every call, where their operations do.

    Where TensorFlow expects a graph to fill 80 % of a device (a CPU counts as one of 256 MiB), its memory optimizer turns
    sums of three and more terms into additions to one buffer, each made as soon as its term is there
    (tensorflow/core/grappler/optimizers/memory_optimizer.cc, SchedulingPass). Such sums are gradients of what is used more
    than twice, and totals of microbatches that the arithmetic optimizer joins with them. It is switched off here. Neither
    `tf.config.optimizer.set_experimental_options` nor `enable_op_determinism` does so, hence TensorFlow's inner names.
    """
    active = context.context()
    before = active.function_call_options
    config = tf.compat.v1.ConfigProto.FromString(before.config_proto_serialized)
    rewriting = config.graph_options.rewrite_options
    rewriting.memory_optimization = rewriting.NO_MEM_OPT
    active.function_call_options = context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        active.function_call_options = before
