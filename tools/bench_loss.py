"""Time and memory of the tiled contrastive loss with its gradient, against the batch size and the dense form.

Each measurement is a process of its own with one inter-op thread: memory is its high-water mark (VmHWM).

    python tools/bench_loss.py                             # the full run: up to 65,536 pairs, some minutes
    python tools/bench_loss.py --batches=2048,4096         # a short one
    python tools/bench_loss.py --batches=65536 --repeats=1 --dense_batches= --bfloat16_batches=    # under 5 minutes

Efficiency counts 4 B^2 D multiply-adds (dense: 3) against the rate of the float32 product [tile, D] x
[D, B], timed in turn with the loss in the same process. The last line is one JSON object.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
flags.DEFINE_list("batches", ["8192", "16384", "32768", "65536"], "Batch sizes of the tiled form.")
flags.DEFINE_list(
    "dense_batches", ["8192"], "Batch sizes at which the dense form runs too (4 B^2 x 4 bytes)."
)
flags.DEFINE_list("bfloat16_batches", ["8192"], "Batch sizes at which products in bfloat16 run too.")
flags.DEFINE_integer("width", 512, "Width D of the embeddings.")
flags.DEFINE_list("tile", ["2048"], "Rows of the logits at a time, or rows,columns.")
flags.DEFINE_float("inverse_temperature", 1 / 0.07, "s = 1 / tau.")
flags.DEFINE_integer("repeats", 3, "Timed runs; the fastest counts.")
flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "Wall time, or CPU time (for a busy machine).")
flags.DEFINE_string("measure", None, "For the processes of this tool: tiled, dense or bfloat16.")

MIB = 1024.0 * 1024.0


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this tool measures memory on Linux only")


def _measure(form: str, batch: int) -> dict:
    import numpy as np
    import tensorflow as tf

    from basic_tf.contrastive.loss import contrastive_loss_value_and_gradients
    from basic_tf.machine import cores
    from tests.contrastive import dense_reference

    threads = cores()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    width, tile = FLAGS.width, min(int(FLAGS.tile[0]), batch)
    tiles = tile if len(FLAGS.tile) == 1 else tuple(int(n) for n in FLAGS.tile)

    def rows(seed):
        x = np.random.default_rng(seed).standard_normal((batch, width), np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return tf.constant(x)

    def dense(images, texts, log_scale):
        with tf.GradientTape() as tape:
            tape.watch([images, texts, log_scale])
            loss = dense_reference.dense_loss(images, texts, log_scale)
        return loss, *tape.gradient(loss, [images, texts, log_scale])

    def tiled(images, texts, log_scale):
        return contrastive_loss_value_and_gradients(
            images,
            texts,
            log_scale,
            tile=tiles,
            precision="bfloat16" if form == "bfloat16" else "float32",
        )[:4]

    run = tf.function(dense if form == "dense" else tiled, reduce_retracing=False)
    images, texts = rows(0), rows(1)
    log_scale = tf.math.log(tf.constant(FLAGS.inverse_temperature, tf.float32))
    run(images[:64], texts[:64], log_scale)  # libraries and thread pools are not the loss's memory
    product = tf.function(lambda: tf.matmul(images[:tile], texts, transpose_b=True))
    run.get_concrete_function(images, texts, log_scale)  # nor is tracing
    before = _status_bytes("VmRSS")
    result = run(images, texts, log_scale)
    peak = _status_bytes("VmHWM") - before
    clock = time.process_time if FLAGS.clock == "cpu" else time.perf_counter
    seconds, product_seconds = [], []
    for _ in range(FLAGS.repeats):
        for times, function in ((seconds, lambda: run(images, texts, log_scale)), (product_seconds, product)):
            for _ in range(3 if function is product else 1):
                start = clock()
                function()
                times.append(clock() - start)
    rate = tile * batch * width / min(product_seconds)  # multiply-adds per second
    report = {
        "form": form,
        "batch": batch,
        "seconds": min(seconds),
        "peak_mib_above_embeddings": peak / MIB,
        "product_gflops": 2 * rate / 1e9,
        "efficiency": (3 if form == "dense" else 4) * batch**2 * width / rate / min(seconds),
        "loss": float(result[0]),
    }
    if form == "bfloat16":
        exact = contrastive_loss_value_and_gradients(images, texts, log_scale, tile=tiles)
        names = ("loss", "image_embeddings", "text_embeddings", "log_inverse_temperature")
        report["relative_error"] = {
            name: float(tf.norm(x - y) / tf.norm(y)) for name, x, y in zip(names, result, exact[:4])
        }
    return report


# TensorFlow's oneDNN pool and malloc's arenas keep what was freed. So set, freed memory goes back at once (which takes
# time), and the high-water mark is what is held at once.
_GIVING_BACK = {
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}


def _in_process(form: str, batch: int, settings: dict | None = None) -> dict:
    options = ("width", "inverse_temperature", "repeats", "clock")
    command = [sys.executable, __file__, f"--measure={form}", f"--batches={batch}"]
    command += [f"--{name}={FLAGS[name].value}" for name in options] + [f"--tile={','.join(FLAGS.tile)}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **(settings or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {form} at {batch} pairs failed:\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    report["freed_memory"] = "given back" if settings else "kept by malloc"
    print(
        f"{form:9s} B {batch:6d}  {report['seconds']:8.3f} s  "
        f"{report['peak_mib_above_embeddings']:8.0f} MiB above ({report['freed_memory']})  "
        f"{100 * report['efficiency']:5.1f}% of {report['product_gflops']:.0f} GFLOP/s",
        flush=True,
    )
    return report


def main(_) -> None:
    """Runs the measurements and prints them."""
    if FLAGS.measure:
        print(json.dumps(_measure(FLAGS.measure, int(FLAGS.batches[0]))))
        return
    tiled = [_in_process("tiled", int(b)) for b in FLAGS.batches]
    dense = [_in_process("dense", int(b)) for b in FLAGS.dense_batches]
    rounded = [_in_process("bfloat16", int(b)) for b in FLAGS.bfloat16_batches]
    held = [
        (_in_process("tiled", int(b), _GIVING_BACK), _in_process("dense", int(b), _GIVING_BACK))
        for b in FLAGS.dense_batches
    ]
    summary = {
        "tile": [int(n) for n in FLAGS.tile],
        "width": FLAGS.width,
        "inverse_temperature": FLAGS.inverse_temperature,
        "tiled": tiled,
        "dense": dense,
        "bfloat16": rounded,
        "held_at_once": [
            {
                "batch": ours["batch"],
                "tiled_mib": ours["peak_mib_above_embeddings"],
                "dense_mib": dense_form["peak_mib_above_embeddings"],
                "tiled_against_dense": ours["peak_mib_above_embeddings"]
                / dense_form["peak_mib_above_embeddings"],
            }
            for ours, dense_form in held
        ],
        "largest": tiled[-1] if tiled else None,
        "memory_growth_per_doubling": [
            (b["peak_mib_above_embeddings"] / a["peak_mib_above_embeddings"])
            for a, b in itertools.pairwise(tiled)
            if b["batch"] == 2 * a["batch"]
        ],
    }
    for row in dense:
        same = [t for t in tiled if t["batch"] == row["batch"]]
        if same:
            summary["time_against_dense"] = same[0]["seconds"] / row["seconds"]
            summary["memory_against_dense"] = (
                same[0]["peak_mib_above_embeddings"] / row["peak_mib_above_embeddings"]
            )
    print(json.dumps(summary))


if __name__ == "__main__":
    app.run(main)
