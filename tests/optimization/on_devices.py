"""A program of its own: the optimizer on four logical devices against one.

Run: python -m tests.optimization.on_devices dtensor|mirrored float32|bfloat16

Device counts are fixed once per process, hence not a plain test. It prints the largest differences and fails
by itself.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from basic_tf.optimization import rules
from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.schedules import Schedule
from basic_tf.optimization.weight_average import WeightAverage
from basic_tf.parallel import strategies

SHAPES = {
    "a/convolution/kernel": (3, 3, 36, 50),
    "a/depthwise/kernel": (3, 3, 42, 1),
    "a/dense/kernel": (66, 46),
    "a/bias": (46,),
    "temperature": (),
}
STEPS = 4


def _problem():
    rng = np.random.default_rng(0)
    values = {path: np.asarray(rng.normal(size=shape) * 0.1, np.float32) for path, shape in SHAPES.items()}
    gradients = {
        path: np.asarray(rng.normal(size=(STEPS, *shape)), np.float32) for path, shape in SHAPES.items()
    }
    return values, gradients


def _state(variables, momentum, apply):
    """Optimizer and average built on `variables`, after STEPS calls of apply(optimizer, average, step)."""
    optimizer = AdaFactorW(
        Schedule(1e-2, 20, warmup_steps=2),
        momentum_dtype=momentum,
        momentum_rounding="stochastic",
        global_clip_norm=None if momentum == "bfloat16" else 30.0,
    )
    optimizer.build(variables)
    average = WeightAverage(0.9)
    average.build(variables)
    for step in range(STEPS):
        apply(optimizer, average, step)
    return {**variables, **optimizer.slots(), **average.slots()}


def on_one(momentum):
    """path -> array of weights, slots and averages, on one device."""
    values, gradients = _problem()
    variables = {path: tf.Variable(value) for path, value in values.items()}

    @tf.function
    def update(optimizer, average, current, step):
        optimizer.apply(current, step=step)
        average.update(step)

    def apply(optimizer, average, step):
        update(optimizer, average, {p: tf.constant(g[step]) for p, g in gradients.items()}, tf.constant(step))

    return {path: variable.numpy() for path, variable in _state(variables, momentum, apply).items()}


def on_mesh(momentum):
    """The same on a 2 x 2 DTensor mesh; slots must be sharded as their parameters are."""
    values, gradients = _problem()
    mesh = dtensor.create_mesh([("batch", 2), ("model", 2)], device_type="CPU")

    def replicated(value):
        return dtensor.copy_to_mesh(tf.constant(value), dtensor.Layout.replicated(mesh, np.ndim(value)))

    variables = {}
    for path, value in values.items():
        layout = rules.default_layout(path, value.shape, 2, smallest=64)
        layout = dtensor.Layout([name or dtensor.UNSHARDED for name in layout], mesh)
        variables[path] = dtensor.DVariable(dtensor.relayout(replicated(value), layout))

    @tf.function
    def update(optimizer, current, step):
        optimizer.apply(current, step=step)

    @tf.function
    def move(average, step):
        average.update(step)

    def apply(optimizer, average, step):
        current = {
            path: dtensor.relayout(replicated(g[step]), variables[path].layout)
            for path, g in gradients.items()
        }
        update(optimizer, current, replicated(step))
        move(average, replicated(step))

    state = _state(variables, momentum, apply)
    sharding = {path: list(variable.layout.sharding_specs) for path, variable in state.items()}
    cut, whole = "model", "unsharded"
    expected = {
        "a/convolution/kernel/momentum": [whole, whole, whole, cut],
        "a/convolution/kernel/second_moment_rows": [whole, whole, whole],
        "a/convolution/kernel/second_moment_columns": [whole, whole, cut],
        "a/depthwise/kernel/second_moment": [whole, whole, cut, whole],
        "a/dense/kernel/second_moment_rows": [cut],
        "a/dense/kernel/average": [cut, whole],
    }
    assert {path: sharding[path] for path in expected} == expected, sharding
    return {
        path: dtensor.relayout(
            variable.read_value(), dtensor.Layout.replicated(mesh, variable.shape.rank)
        ).numpy()
        for path, variable in state.items()
    }


def on_replicas(momentum, runtime):
    """The same through the update half of the mirrored runtime; copies must stay equal."""
    values, gradients = _problem()
    with runtime.scope():
        variables = {path: tf.Variable(value) for path, value in values.items()}

        @tf.function
        def update(optimizer, average, current, step):
            def half(current):
                optimizer.apply(current, step=step)

            runtime.update(next(iter(variables.values())), half, (current,))
            runtime.update(next(iter(variables.values())), average.update, (step,))

        def apply(optimizer, average, step):
            current = {path: tf.constant(g[step]) for path, g in gradients.items()}
            update(optimizer, average, current, tf.constant(step))

        state = _state(variables, momentum, apply)
    spread = runtime.replica_spread(state)
    assert not spread, spread
    return {path: variable.numpy() for path, variable in state.items()}


def main(kind, momentum):
    """Compares; float32 momentum to rounding, bfloat16 momentum to one unit of its last place."""
    if kind == "mirrored":
        runtime = strategies.create("mirrored", logical_devices=4)
    else:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
        dtensor.initialize_accelerator_system("CPU")
    bound = {"float32": 1e-6, "bfloat16": 1e-3}[momentum]
    expected = on_one(momentum)
    got = on_mesh(momentum) if kind == "dtensor" else on_replicas(momentum, runtime)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        value = value.astype(np.float64)
        error = np.abs(got[path].astype(np.float64) - value).max() / np.abs(value).max()
        limit = 2.0**-7 if path.endswith("momentum") and momentum == "bfloat16" else bound
        print(kind, momentum, path, error)
        assert error <= limit, (kind, momentum, path, error)


if __name__ == "__main__":
    main(*sys.argv[1:])
