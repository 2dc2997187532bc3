"""The same training run on every runtime: are the losses those of one device, and how long does a step take?

Twenty steps of joint contrastive training of a small BASIC (tests/training/joint.gin: every block type, dropout,
stochastic depth, microbatches, AdaFactorW, rematerialisation) through train.py itself, each runtime in processes of its
own. Accelerators are logical CPU devices, so times say what the machinery costs here, not what it gains elsewhere.

    python tools/bench_runtimes.py                                       # all runtimes, float64
    python tools/bench_runtimes.py --dtype=float32 --runtimes=mirrored_2,dtensor_2x2 --steps=3

The last line is one JSON object: for each runtime its losses, the largest relative difference to one_device over all
steps, at the first and at the last step, seconds per step (median), seconds in all, and peak memory of its largest
process.
"""

import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REFERENCE = "one_device"
RUNTIMES = (
    REFERENCE,
    "mirrored_2",
    "mirrored_4",
    "multi_worker_2",
    "dtensor_4x1",
    "dtensor_2x2",
    "dtensor_1x4",
)

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "runtimes",
    list(RUNTIMES),
    "Beside one_device: mirrored_N, multi_worker_N, dtensor_BxM, dtensor_BxM_batch.",
)
flags.DEFINE_enum("dtype", "float64", ["float64", "float32"], "Computation and weights.")
flags.DEFINE_integer("steps", 20, "Training steps.", 1)
flags.DEFINE_float("tolerance", None, "Fail if a loss differs by more than this, relatively.")
flags.DEFINE_float("timeout", 3600.0, "Seconds for one runtime.")


def flags_of(runtime: str) -> list[str]:
    """The flags of train.py for a runtime by name."""
    if runtime == REFERENCE:
        return ["--runtime=one_device"]
    if runtime.startswith("dtensor_") and runtime.endswith("_batch"):
        return [*flags_of(runtime.removesuffix("_batch")), "--shard_over=batch"]
    kind, size = runtime.rsplit("_", 1)
    if kind == "mirrored":
        return ["--runtime=mirrored", f"--logical_devices={size}"]
    if kind == "multi_worker":
        return ["--runtime=multi_worker"]
    if kind == "dtensor":
        return ["--runtime=dtensor", f"--mesh={size}"]
    raise ValueError(f"runtime {runtime!r} is not one of mirrored_N, multi_worker_N, dtensor_BxM")


def command(data: str, folder: str, dtype: str, steps: int, *more: str) -> list[str]:
    """The command line of a run on the data of tests/tiny_data.py."""
    bindings = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", f"DTYPE='{dtype}'"]
    if dtype == "float64":
        bindings.append("AdaFactorW.momentum_dtype=None")  # bfloat16 momentum would round the differences up
    return [
        sys.executable,
        "-m",
        "basic_tf.train",
        "--gin_file=tests/training/joint.gin",
        f"--model_dir={folder}",
        "--mode=train",
        f"--train_steps={steps}",
        *(f"--gin_param={binding}" for binding in bindings),
        *more,
    ]


def environment(**more: str) -> dict[str, str]:
    """No accelerators, no greetings."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **quiet, **more}


def cluster(workers: int) -> list[dict[str, str]]:
    """The environments of the workers of a run on this machine."""
    sockets = [socket.socket() for _ in range(workers)]
    for own in sockets:
        own.bind(("localhost", 0))
    addresses = [f"localhost:{own.getsockname()[1]}" for own in sockets]
    for own in sockets:
        own.close()
    return [
        environment(
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            )
        )
        for index in range(workers)
    ]


def start(arguments: list[str], runtime: str) -> list[subprocess.Popen]:
    """The processes of one run; each writes its errors into a pipe."""
    workers = int(runtime.rsplit("_", 1)[1]) if runtime.startswith("multi_worker") else 1
    environments = cluster(workers) if workers > 1 else [environment()]
    return [
        subprocess.Popen(
            arguments, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for own in environments
    ]


def wait(processes: list[subprocess.Popen], timeout: float) -> list[str]:
    """Waits for all; their errors. Ends those that are left when one fails or time is up."""
    deadline, errors = time.monotonic() + timeout, []
    try:
        for process in processes:
            errors.append(process.communicate(timeout=max(1.0, deadline - time.monotonic()))[1])
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return errors


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


def measure(runtime: str, data: str, folder: str, dtype: str, steps: int, timeout: float) -> dict:
    """Trains once and reads what the run left."""
    begin = time.monotonic()
    processes = start(command(data, folder, dtype, steps, *flags_of(runtime)), runtime)
    errors = wait(processes, timeout)
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{runtime} failed: {' | '.join(error[-2000:] for error in errors)}")
    return {
        "losses": losses(folder),
        "seconds_per_step": seconds_per_step(folder),
        "seconds": round(time.monotonic() - begin, 1),
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

    names = [REFERENCE, *(name for name in FLAGS.runtimes if name != REFERENCE)]
    found, failed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        data = tiny_data.make(os.path.join(folder, "data"))
        peak = 0
        for name in names:
            try:
                row = measure(name, data, os.path.join(folder, name), FLAGS.dtype, FLAGS.steps, FLAGS.timeout)
                row |= differences(found[REFERENCE]["losses"] if found else row["losses"], row["losses"])
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed.append(name)
                print(f"{name:16} failed: {error}", flush=True)
                if name == REFERENCE:
                    break
                continue
            # The high-water mark over all children so far: a runtime's own where it is a new maximum.
            highest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
            row["peak_rss_mib"], peak = (highest if highest > peak else None), max(peak, highest)
            found[name] = row
            if FLAGS.tolerance is not None and row["worst_relative"] > FLAGS.tolerance:
                failed.append(name)
            print(
                f"{name:16} worst {row['worst_relative']:.1e}  first {row['first_relative']:.1e}  "
                f"last {row['last_relative']:.1e}  {row['seconds_per_step'] or float('nan'):.3f} s/step  "
                f"{row['seconds']} s in all",
                flush=True,
            )
    print(json.dumps({"dtype": FLAGS.dtype, "steps": FLAGS.steps, "reference": REFERENCE, "runtimes": found}))
    if failed:
        sys.exit(f"failed, or losses differ by more than {FLAGS.tolerance}: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
