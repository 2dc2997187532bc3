"""Kills a training run at random moments, restarts it each time, and compares its end with an uninterrupted run's.

    python tools/chaos.py --gin_file=gin/runs/demo.gin --kills=10 --folder=runs/chaos
    python tools/chaos.py --gin_file=gin/runs/demo.gin --reference=runs/demo --kills=10 --folder=runs/chaos

Two runs with the same seed: `reference` without interruption (taken as it is if it is finished), `killed` with --kills
signals at moments drawn from --seed. Every array of every stage's last checkpoint must be equal bit for bit, and so must
every loss in metrics.jsonl. Prints one JSON object last, and leaves it in `chaos.json` for tools/make_report.py; exit code
1 if anything differs.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from absl import app, flags  # noqa: E402 (after the project's root is on the path)

_GIN_FILE = flags.DEFINE_multi_string("gin_file", ["gin/runs/demo.gin"], "As for basic_tf.train.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "As for basic_tf.train.")
_FOLDER = flags.DEFINE_string(
    "folder", "runs/chaos", "The killed run goes here (and the reference, unless given)."
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "An uninterrupted run with the same configuration and seed."
)
_KILLS = flags.DEFINE_integer("kills", 10, "How many signals.", 1)
_SIGNAL = flags.DEFINE_enum("signal", "KILL", ["KILL", "TERM", "INT"], "Which signal.")
_WAIT = flags.DEFINE_list(
    "wait_seconds", ["5", "60"], "Shortest and longest time from a start to its signal."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")


def command(model_dir: str) -> list[str]:
    """The training command line."""
    files = [f"--gin_file={path}" for path in _GIN_FILE.value]
    bindings = [f"--gin_param={binding}" for binding in _GIN_PARAM.value]
    return [
        sys.executable,
        "-m",
        "basic_tf.train",
        f"--model_dir={model_dir}",
        "--mode=train",
        *files,
        *bindings,
    ]


def kill_until_done(model_dir: str, kills: int, shortest: float, longest: float) -> list[float]:
    """Runs to the end through `kills` signals; returns the seconds after which each came."""
    moments = random.Random(_SEED.value)
    came = []
    while True:
        process = subprocess.Popen(command(model_dir), cwd=ROOT)
        wait = moments.uniform(shortest, longest) if len(came) < kills else None
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(getattr(signal, f"SIG{_SIGNAL.value}"))
            process.wait()
            came.append(wait)
            print(
                f"signal {len(came)} of {kills} after {wait:.1f} s: exit code {process.returncode}",
                flush=True,
            )
            continue
        if code != 0:
            raise app.UsageError(f"training failed with exit code {code}; its own message is above")
        return came


def differences(left: str, right: str) -> tuple[list[str], int]:
    """What differs between two finished runs, and how many arrays and losses were compared."""

    from basic_tf.monitoring.metrics_log import read_metrics
    from basic_tf.training import checkpoints, stage_run

    found, compared = [], 0
    stages = sorted(name for name in os.listdir(left) if stage_run.is_finished(os.path.join(left, name)))
    if not stages:
        raise app.UsageError(f"{left} has no finished stage: nothing to compare")
    for stage in stages:
        mine, other = (
            checkpoints.load_latest(stage_run.checkpoint_folder(os.path.join(run, stage)))
            for run in (left, right)
        )
        if other is None or set(mine.arrays) != set(other.arrays) or mine.step != other.step:
            found.append(f"{stage}: the last checkpoints hold other arrays or are of another step")
            continue
        for path, array in mine.arrays.items():
            compared += 1
            if array.tobytes() != other.arrays[path].tobytes():  # bit for bit, NaN included
                found.append(f"{stage}/{path}")
        losses = [
            {
                line["step"]: line["loss"]
                for line in read_metrics(os.path.join(run, stage, "metrics.jsonl"))
                if "loss" in line
            }
            for run in (left, right)
        ]
        compared += len(losses[0])
        found += [
            f"{stage}: loss of step {step}" for step in losses[0] if losses[0][step] != losses[1].get(step)
        ]
    return found, compared


def main(argv: list[str]) -> int:
    """Reference, killed run, comparison."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    shortest, longest = (float(value) for value in _WAIT.value)
    reference = _REFERENCE.value or os.path.join(_FOLDER.value, "reference")
    killed = os.path.join(_FOLDER.value, "killed")
    start = time.monotonic()
    subprocess.run(command(reference), cwd=ROOT, check=True)  # returns at once if it is finished
    came = kill_until_done(killed, _KILLS.value, shortest, longest)
    found, compared = differences(reference, killed)
    for line in found[:20]:
        print(f"differs: {line}")
    result = json.dumps(
        {
            "signals": len(came),
            "signal": _SIGNAL.value,
            "compared": compared,
            "different": len(found),
            "seconds": round(time.monotonic() - start, 1),
        }
    )
    with open(os.path.join(_FOLDER.value, "chaos.json"), "w") as file:
        file.write(result + "\n")
    print(result)
    return 1 if found or len(came) < _KILLS.value else 0


if __name__ == "__main__":
    app.run(main)
