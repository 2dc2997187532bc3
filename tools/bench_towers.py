"""Speed of the towers on this machine: forward and backward pass, against the matrix rate.

    python tools/bench_towers.py --image_size=32 --batch=512 --policy=ghost

Prints one JSON object last: milliseconds and examples per second of each setting, the multiply-adds behind
them, the GEMM rate measured in the same run and the share of it that the step reaches.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import numpy as np
import tensorflow as tf
from absl import app, flags

from basic_tf.machine import cores
from basic_tf.randomness import Noise, step_key
from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_table import CoAtNetTable
from basic_tf.towers.text_transformer import TextTransformer

FLAGS = flags.FLAGS
flags.DEFINE_integer("image_size", 32, "Side of the pictures in pixels.")
flags.DEFINE_list("batch", ["512"], "Rows per step; several are measured one after another.")
flags.DEFINE_list("policy", ["frozen", "ghost", "layer"], "BatchNorm policies.")
flags.DEFINE_integer("ghost_size", 32, "Rows per ghost BatchNorm group.")
flags.DEFINE_integer("repeats", 5, "Timed steps; the fastest counts.")
flags.DEFINE_integer("threads", 0, "Intra-op threads; 0 takes the cores of the process.")
flags.DEFINE_enum(
    "clock", "wall", ["wall", "cpu"], "Wall time, or CPU time (use with --threads=1 on a busy machine)."
)
flags.DEFINE_bool("text", True, "Also time the text tower (2 layers, width 128, 24 tokens).")
flags.DEFINE_string("widths", "32,1x48,2x96,3x128,2x256", "Stem width and blocks x width of S1 to S4.")
flags.DEFINE_string("dtype", "float32", "Keras dtype policy.")
flags.DEFINE_string("profile", None, "Writes a TensorFlow profile of some steps to this folder.")


def table() -> CoAtNetTable:
    """The tower of --widths."""
    stem, *stages = FLAGS.widths.split(",")
    pairs = [tuple(int(n) for n in stage.split("x")) for stage in stages]
    kinds = ["mbconv", "mbconv", "attention", "attention"]
    return CoAtNetTable((2, int(stem)), tuple((kind, *pair) for kind, pair in zip(kinds, pairs)), head_dim=32)


def seconds(step, *arguments) -> float:
    """The fastest of `--repeats` calls, on the clock of --clock."""
    step(*arguments)
    clock = time.process_time if FLAGS.clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(FLAGS.repeats):
        start = clock()
        tf.nest.flatten(step(*arguments))[0].numpy()
        best = min(best, clock() - start)
    return best


def training_step(tower, rows: int):
    """Forward and backward pass of a sum of features, with gradients of every trainable weight."""
    variables = [v.value for v in tower.trainable_variables]
    cotangent = tf.constant(np.random.default_rng(0).normal(size=(rows, tower.output_width)), tf.float32)

    @tf.function(autograph=False)
    def step(inputs, index):
        noise = Noise(step_key(0, index), tf.range(rows))
        with tf.GradientTape() as tape:
            features, statistics = tower.forward(inputs, True, noise)
        gradients = tape.gradient(features, variables, tf.cast(cotangent, features.dtype))
        # The result depends on every gradient (else graph pruning would measure less than a step).
        return tf.add_n([tf.cast(tf.reduce_sum(g), tf.float32) for g in gradients]), statistics

    return step


def gemm_rate() -> float:
    """GFLOP/s of a 2,048-cube float32 product."""
    a = tf.random.stateless_normal((2048, 2048), (0, 1))
    product = tf.function(lambda a: tf.matmul(a, a)[0, 0], autograph=False)
    return 2 * 2048**3 / seconds(product, a) / 1e9


def main(_):
    """Measures."""
    threads = FLAGS.threads or cores()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rate = gemm_rate()
    rows = []
    index = tf.constant(1, tf.int64)
    settings = [(p, int(b)) for p in FLAGS.policy for b in FLAGS.batch]
    for policy, batch in settings:
        tower = CoAtNet(
            table(), image_size=FLAGS.image_size, batch_norm=policy, ghost_size=min(batch, FLAGS.ghost_size),
            dtype=FLAGS.dtype,
        )  # fmt: skip
        tower.build()
        pictures = np.random.default_rng(0).integers(0, 256, (batch, FLAGS.image_size, FLAGS.image_size, 3))
        step, pictures = training_step(tower, batch), tf.constant(pictures, tf.uint8)
        elapsed = seconds(step, pictures, index)
        infer = tf.function(lambda x, tower=tower: tower.forward(x)[0], autograph=False)
        macs = sum(tower.multiply_adds().values())
        rows.append(
            {
                "tower": "image",
                "policy": policy,
                "batch": batch,
                "milliseconds": round(elapsed * 1e3, 1),
                "examples_per_second": round(batch / elapsed),
                "inference_examples_per_second": round(batch / seconds(infer, pictures)),
                "multiply_adds": macs,
                "share_of_gemm_rate": round(6 * macs * batch / elapsed / 1e9 / rate, 3),
                "parameters": sum(s.size for s in tower.specs() if s.trainable),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        if FLAGS.profile:
            with tf.profiler.experimental.Profile(FLAGS.profile):
                for _ in range(3):
                    tf.nest.flatten(step(pictures, index))[0].numpy()
    if FLAGS.text:
        for batch in map(int, FLAGS.batch):
            tower = TextTransformer(
                vocabulary_size=4000, length=24, width=128, layers=2, heads=4, dtype=FLAGS.dtype
            )
            tower.build()
            ids = tf.constant(np.random.default_rng(0).integers(1, 4000, (batch, 24)), tf.int32)
            elapsed = seconds(training_step(tower, batch), ids, index)
            macs = sum(tower.multiply_adds().values())
            rows.append(
                {
                    "tower": "text",
                    "batch": batch,
                    "milliseconds": round(elapsed * 1e3, 1),
                    "examples_per_second": round(batch / elapsed),
                    "share_of_gemm_rate": round(6 * macs * batch / elapsed / 1e9 / rate, 3),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"gemm_gflops": round(rate, 1), "threads": threads, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
