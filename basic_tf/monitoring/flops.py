"""Arithmetic that a model needs and that this machine can do: both sides of "share of the matrix rate"."""

import json
import math
import os
import time
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from basic_tf.machine import cores


def gemm_rate(cache_file: str | None = None, seconds: float = 0.3) -> float:
    """FLOP/s of a large float32 matrix product on this process's devices, all replicas together.

    Measured for about `seconds` on one device of the best kind (GPU, else CPU; a TPU is measured where it is
    the default device) and multiplied by the number of such devices. `cache_file` (in the run folder, gs://
    works) keeps the figure, so that a restart on the same devices reports shares of the same rate; other
    devices measure anew.
    """
    kinds = {kind: tf.config.list_logical_devices(kind) for kind in ("TPU", "GPU", "CPU")}
    kind = next(kind for kind, devices in kinds.items() if devices)
    # Logical CPU devices of tests share the same cores: the machine is counted once.
    count = 1 if kind == "CPU" else len(kinds[kind])
    key = f"{kind} x {count}" if kind != "CPU" else f"CPU, {cores()} cores"
    if cache_file and tf.io.gfile.exists(cache_file):
        try:
            with tf.io.gfile.GFile(cache_file) as file:
                cached = json.load(file)
            if cached["devices"] == key:
                return float(cached["gemm_flops_per_second"])
        except (ValueError, KeyError, TypeError) as error:
            logging.warning("Measuring the matrix rate again: %s is damaged (%s).", cache_file, error)
    rate = count * _measure(kinds[kind][0].name, seconds)
    if cache_file:
        tf.io.gfile.makedirs(os.path.dirname(cache_file))
        with tf.io.gfile.GFile(cache_file, "w") as file:
            json.dump({"devices": key, "gemm_flops_per_second": rate}, file)
    return rate


def _measure(device: str, seconds: float) -> float:
    """The best of several products, large enough (5 ms each) that launching them costs nothing."""
    size, best = 512, 0.0
    with tf.device(device):
        while True:
            matrix = tf.fill([size, size], 1.0 / size)
            product = tf.function(lambda a: tf.linalg.matmul(a, a))
            product(matrix)[0, 0].numpy()  # traces, allocates
            begin = time.perf_counter()
            product(matrix)[0, 0].numpy()  # reading one element waits for the device
            if time.perf_counter() - begin >= 5e-3 or size >= 8192:
                break
            size *= 2
        end = time.perf_counter() + seconds
        while True:
            begin = time.perf_counter()
            product(matrix)[0, 0].numpy()
            now = time.perf_counter()
            best = max(best, 2.0 * size**3 / (now - begin))
            if now >= end:
                return best


def forward_flops(function: Callable, *inputs: tf.TensorSpec) -> float:
    """Floating-point operations of the matrix products and convolutions in one call of `function`.

    `function` is traced with `inputs` (fully static shapes; batch 1 gives the figure for one example) and
    never run. A multiply-add counts as 2. Element-wise work, norms and softmax are left out, as is usual for
    model-FLOPs utilisation. Training costs 3 times the forward pass (a gradient for the input and one for the
    kernel of every product), 1 time where a tower is frozen. Raises ValueError where a shape is unknown or a
    loop hides products.
    """
    return _graph_flops(tf.function(function, autograph=False).get_concrete_function(*inputs).graph)


def _graph_flops(graph) -> float:
    return math.fsum(_operation_flops(operation) for operation in graph.get_operations())


def _operation_flops(operation: tf.Operation) -> float:
    kind = operation.type
    if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        contracted = _shape(operation, operation.inputs[0])[-2 if transposed else -1]
        return 2.0 * math.prod(_shape(operation, operation.outputs[0])) * contracted
    if kind in ("Conv2D", "DepthwiseConv2dNative"):
        # Kernel [kh, kw, input channels of a group, out], or depthwise [kh, kw, channels, multiplier].
        kernel = _shape(operation, operation.inputs[1])
        products = math.prod(kernel[:3] if kind == "Conv2D" else kernel[:2])
        return 2.0 * math.prod(_shape(operation, operation.outputs[0])) * products
    if kind == "Einsum" and len(operation.inputs) == 2:
        labels = operation.get_attr("equation").decode().split("->")[0].split(",")
        if "." in "".join(labels):
            raise ValueError(
                f"Cannot count the operations of {operation.name}: its equation has an ellipsis."
            )
        sizes = {}
        for label, value in zip(labels, operation.inputs):
            sizes.update(zip(label, _shape(operation, value)))
        return 2.0 * math.prod(sizes.values())
    if kind in ("If", "StatelessIf"):
        return max(_called(operation, operation.get_attr(name)) for name in ("then_branch", "else_branch"))
    if kind in ("While", "StatelessWhile"):
        if _called(operation, operation.get_attr("body")):
            raise ValueError(
                f"Cannot count the operations of the loop {operation.name}: how often it runs is not in the "
                "graph. Count one round of its body instead."
            )
        return 0.0
    if kind in ("PartitionedCall", "StatefulPartitionedCall"):
        return _called(operation, operation.get_attr("f"))
    return 0.0


def _called(operation: tf.Operation, function) -> float:
    return _graph_flops(operation.graph._get_function(function.name).graph)


def _shape(operation: tf.Operation, value: tf.Tensor) -> list[int]:
    shape = value.shape
    if not shape.is_fully_defined():
        raise ValueError(
            f"Cannot count the operations of {operation.name}: it meets the shape {shape}. "
            "Trace with static shapes."
        )
    return shape.as_list()
