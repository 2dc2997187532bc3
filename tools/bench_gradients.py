"""Exactness of Algorithm 1: the largest error of any gradient against the dense full-batch gradient.

Error of a variable: |difference| / max(|gradient|, 1e-3 x global gradient norm), in 2-norms. Towers of
every block type with dropout 0.1 and stochastic depth 0.1, uneven tiles; the reference is one tape over
the whole batch. A bias that BatchNorm cancels has a gradient of exactly zero, so in float32 its row shows
rounding alone; `worst` names the variable.

    python tools/bench_gradients.py            # the full grid, on two cores well over half an hour
    python tools/bench_gradients.py --short    # a pairwise selection, a few minutes

The last line is one JSON object: fp64_max_relative_error, fp32_max_relative_error and the rows behind them.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
flags.DEFINE_bool("short", False, "A pairwise selection in place of the full grid.")

PAIRS, TILE = 48, (11, 17)
POLICIES, REMATS, COUNTS = (
    ("ghost", "frozen", "layer"),
    ("none", "blocks", "norms_and_activations"),
    (1, 2, 3, 8),
)
FROZEN = {"nothing": (), "image_tower": ("image_tower/",)}
SHORT = [
    ("float64", "ghost", "none", 8, "nothing"),
    ("float64", "frozen", "blocks", 3, "image_tower"),
    ("float64", "layer", "norms_and_activations", 2, "nothing"),
    ("float32", "ghost", "blocks", 2, "nothing"),
]


def _rows(dtype: str, policy: str, remat: str, counts, frozen: str):
    """One row for each number of microbatches; they share a reference."""
    import tensorflow as tf

    from basic_tf import randomness
    from basic_tf.contrastive.gradients import contrastive_gradients
    from tests.contrastive import dense_reference, tiny_dual_encoder

    def variables_of(model):
        trainable = {id(v) for v in model.trainable_variables}
        return [
            v
            for path, v in model.parameters().items()
            if id(v) in trainable and not path.startswith(FROZEN[frozen] or "-")
        ]

    images, token_ids = tiny_dual_encoder.random_batch(PAIRS)
    key = randomness.step_key(1, 2)
    exact = tiny_dual_encoder.tiny_model(dtype, policy, "none")
    expected = tf.function(
        lambda: dense_reference.full_batch_gradients(exact, images, token_ids, key, variables_of(exact))[1]
    )()
    model = tiny_dual_encoder.tiny_model(dtype, policy, remat)
    variables = variables_of(model)
    for count in counts:
        found = tf.function(
            lambda count=count: (
                contrastive_gradients(
                    model, images, token_ids, PAIRS // count, noise_key=key, variables=variables, tile=TILE
                ).gradients
            )
        )()
        errors = dense_reference.errors(found, expected)
        worst = variables[errors.index(max(errors))]
        yield {
            "dtype": dtype,
            "batch_norm": policy,
            "remat": remat,
            "microbatches": count,
            "frozen": frozen,
            "replicas": 1,
            "error": max(errors),
            "worst": next(path for path, known in model.parameters().items() if known is worst),
        }


def _replica_rows(replicas: int, dtype: str):
    """Replicas over logical CPUs: a process each, for one process can hold one strategy."""
    command = [sys.executable, "-m", "tests.contrastive.replicas_process", str(replicas), dtype, "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{replicas} replicas in {dtype} failed:\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    report.pop("embeddings")
    for case, found in report.items():
        yield {"dtype": dtype, "case": case, "replicas": replicas, "error": found["error"]}


def main(_) -> None:
    """Runs the grid and prints it."""
    rows = []

    def record(found):
        for row in found:
            rows.append(row)
            print(json.dumps(row), flush=True)

    if FLAGS.short:
        for dtype, policy, remat, count, frozen in SHORT:
            record(_rows(dtype, policy, remat, [count], frozen))
        record(_replica_rows(2, "float64"))
    else:
        for case in itertools.product(("float64", "float32"), POLICIES, REMATS, FROZEN):
            record(_rows(*case[:3], COUNTS, case[3]))
        for replicas, dtype in itertools.product((1, 2, 4), ("float64", "float32")):
            record(_replica_rows(replicas, dtype))
    largest = {
        dtype: max(row["error"] for row in rows if row["dtype"] == dtype) for dtype in ("float64", "float32")
    }
    summary = {"fp64_max_relative_error": largest["float64"], "fp32_max_relative_error": largest["float32"]}
    print(json.dumps({**summary, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
