"""Arithmetic that this machine can do: the rate of which the progress line shows the share."""

import json
import os
import time

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
