"""Settings that every test shares: TensorFlow's threads from the cores, quiet logs, no accelerator."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import tensorflow as tf

# Test processes that run side by side (pytest-xdist) share the cores.
_CORES = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
tf.config.threading.set_intra_op_parallelism_threads(_CORES)
tf.config.threading.set_inter_op_parallelism_threads(_CORES)
