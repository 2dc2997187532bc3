"""Settings that every test shares: TensorFlow's threads from the cores, quiet logs, no accelerator."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import tensorflow as tf

_CORES = len(os.sched_getaffinity(0))
tf.config.threading.set_intra_op_parallelism_threads(_CORES)
tf.config.threading.set_inter_op_parallelism_threads(_CORES)
