"""The same training run on every runtime: are the losses those of one device, and how long does a step take?

Twenty steps of joint contrastive training of a small BASIC (tests/training/joint.gin: every block type, dropout,
stochastic depth, microbatches, AdaFactorW, rematerialisation) through train.py itself, each runtime in processes of its
own. Accelerators are logical CPU devices, so times say what the machinery costs here, not what it gains elsewhere.

    python tools/bench_runtimes.py                                       # all runtimes, float64
    python tools/bench_runtimes.py --dtype=float32 --runtimes=mirrored_2,dtensor_2x2 --steps=3

The last line is one JSON object: for each runtime its losses, the largest relative difference to one_device over all
steps, at the first and at the last step, seconds per step (median), seconds in all, peak memory of its largest process
(all logical devices of a process share it), and the bytes of weights and slots that each logical device holds.
"""

import itertools
import json
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from absl import app, flags  # noqa: E402 (after the project's root is on the path)

from tools import bench_sharding, train_processes  # noqa: E402

RUNTIMES = (
    train_processes.REFERENCE,
    "mirrored_2",
    "mirrored_4",
    "multi_worker_2",
    "dtensor_4x1",
    "dtensor_2x2",
    "dtensor_1x4",
    "dtensor_4x1_batch",
)

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "runtimes",
    list(RUNTIMES),
    "Beside one_device; their names: tools/train_processes.py.",
)
flags.DEFINE_enum("dtype", "float64", ["float64", "float32"], "Computation and weights.")
flags.DEFINE_integer("steps", 20, "Training steps.", 1)
flags.DEFINE_float("tolerance", None, "Fail if a loss differs by more than this, relatively.")
flags.DEFINE_float("timeout", 3600.0, "Seconds for one runtime.")


def losses(folder: str) -> list[float]:
    """The loss of every step."""
    from basic_tf.monitoring.metrics_log import read_metrics

    records = read_metrics(os.path.join(folder, "joint", "metrics.jsonl"))
    return [record["loss"] for record in records if record["kind"] == "train"]


def seconds_per_step(folder: str) -> float | None:
    """Median over the steps that were timed one by one; None if too few were."""
    from basic_tf.monitoring.metrics_log import read_metrics

    records = read_metrics(os.path.join(folder, "joint", "metrics.jsonl"))
    times = [record["training_seconds"] for record in records if "training_seconds" in record]
    steps = sorted(after - before for before, after in itertools.pairwise(times))
    return steps[len(steps) // 2] if steps else None


def state_bytes(runtime: str) -> int:
    """Bytes of weights and slots that one device of a runtime holds (float32; see bench_sharding, which checks them)."""
    mesh = re.fullmatch(r"dtensor_(\d+)x(\d+)(_batch)?", runtime)
    shards = int(mesh[1] if mesh[3] else mesh[2]) if mesh else 1
    return bench_sharding.small_model_plan(shards)["total"]


def measure(runtime: str, data: str, folder: str) -> dict:
    """Trains once and reads what the run left."""
    arguments = train_processes.joint_arguments(data, folder, FLAGS.dtype, FLAGS.steps)
    ended = train_processes.Processes(arguments, runtime).wait(FLAGS.timeout)
    if any(process.code for process in ended):
        raise RuntimeError(f"{runtime} failed: {' | '.join(process.errors[-2000:] for process in ended)}")
    return {
        "losses": losses(folder),
        "seconds_per_step": seconds_per_step(folder),
        "seconds": round(max(process.seconds for process in ended), 1),
        "peak_mib": max(process.peak_mib for process in ended),
        "state_bytes_per_device": state_bytes(runtime),
    }


def differences(reference: list[float], found: list[float]) -> dict[str, float]:
    """Relative differences of two loss curves."""
    if len(reference) != len(found):
        raise RuntimeError(f"{len(found)} losses instead of {len(reference)}")
    relative = [abs(a - b) / abs(a) for a, b in zip(reference, found)]
    return {"worst_relative": max(relative), "first_relative": relative[0], "last_relative": relative[-1]}


def main(argv):
    """Runs every runtime, prints a row for each, then the JSON."""
    del argv
    from tests import tiny_data

    reference = train_processes.REFERENCE
    names = [reference, *(name for name in FLAGS.runtimes if name != reference)]
    found, failed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        data = tiny_data.make(os.path.join(folder, "data"))
        for name in names:
            try:
                row = measure(name, data, os.path.join(folder, name))
                row |= differences(found[reference]["losses"] if found else row["losses"], row["losses"])
            except (RuntimeError, TimeoutError) as error:
                failed.append(name)
                print(f"{name:18} failed: {error}", flush=True)
                if name == reference:
                    break
                continue
            found[name] = row
            if FLAGS.tolerance is not None and row["worst_relative"] > FLAGS.tolerance:
                failed.append(name)
            print(
                f"{name:18} worst {row['worst_relative']:.1e}  first {row['first_relative']:.1e}  "
                f"last {row['last_relative']:.1e}  {row['seconds_per_step'] or float('nan'):.3f} s/step  "
                f"{row['seconds']} s in all  {row['peak_mib']} MiB",
                flush=True,
            )
    print(json.dumps({"dtype": FLAGS.dtype, "steps": FLAGS.steps, "reference": reference, "runtimes": found}))
    if failed:
        sys.exit(f"failed, or losses differ by more than {FLAGS.tolerance}: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
