"""Kills a training run at random moments, restarts it each time, and compares its end with an uninterrupted run's.

    python tools/chaos.py --gin_file=gin/runs/demo.gin --kills=10 --folder=runs/chaos
    python tools/chaos.py --gin_file=gin/runs/demo.gin --reference=runs/demo --kills=10 --folder=runs/chaos
    python tools/chaos.py --gin_file=... --runtime=multi_worker_2 --wait_steps=1,30 --signal=TERM

Two runs with the same seed: `reference` without interruption (taken as it is if it is finished), `killed` with --kills
signals at moments drawn from --seed, each to one of its workers. Every array of every stage's last checkpoint must be
equal bit for bit, and so must every loss in metrics.jsonl. Prints one JSON object last, and leaves it in `chaos.json` for
tools/make_report.py; exit code 1 if anything differs.
"""

import json
import os
import random
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from absl import app, flags  # noqa: E402 (after the project's root is on the path)

from tools import train_processes  # noqa: E402

_GIN_FILE = flags.DEFINE_multi_string("gin_file", ["gin/runs/demo.gin"], "As for basic_tf.train.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "As for basic_tf.train.")
_RUNTIME = flags.DEFINE_string("runtime", "one_device", "A name as in tools/train_processes.py.")
_FOLDER = flags.DEFINE_string(
    "folder", "runs/chaos", "The killed run goes here (and the reference, unless given)."
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "An uninterrupted run with the same configuration and seed."
)
_KILLS = flags.DEFINE_integer("kills", 10, "How many signals.", 1)
_SIGNAL = flags.DEFINE_enum(
    "signal", "KILL", ["KILL", "TERM", "INT", "ANY"], "Which signal; ANY draws KILL or TERM."
)
_WAIT = flags.DEFINE_list(
    "wait_seconds", ["5", "60"], "Shortest and longest time from a start to its signal."
)
_WAIT_STEPS = flags.DEFINE_list(
    "wait_steps",
    None,
    "In place of seconds: fewest and most steps that a start has logged before its signal.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_TIMEOUT = flags.DEFINE_float("timeout", 120.0, "Seconds from a signal until all workers must have ended.")
_RUN_TIMEOUT = flags.DEFINE_float("run_timeout", 86400.0, "Seconds for a run that nothing stops.")

_EXIT_STOPPED = 75


def arguments(model_dir: str) -> list[str]:
    """Of train.py."""
    files = [f"--gin_file={path}" for path in _GIN_FILE.value]
    bindings = [f"--gin_param={binding}" for binding in _GIN_PARAM.value]
    return [f"--model_dir={model_dir}", "--mode=train", *files, *bindings]


def logged_steps(model_dir: str) -> int:
    """Lines in the stages' metrics: they grow as the run goes on."""
    count = 0
    for stage in os.listdir(model_dir) if os.path.isdir(model_dir) else []:
        path = os.path.join(model_dir, stage, "metrics.jsonl")
        if os.path.exists(path):
            with open(path, "rb") as file:
                count += sum(1 for _ in file)
    return count


def until_its_moment(processes: train_processes.Processes, model_dir: str, moments: random.Random) -> None:
    """Returns when the signal is due, or when the run has ended before."""
    if _WAIT_STEPS.value is None:
        deadline = time.monotonic() + moments.uniform(*map(float, _WAIT.value))
        due = lambda: time.monotonic() >= deadline  # noqa: E731
    else:
        seen, wanted = None, moments.randint(*map(int, _WAIT_STEPS.value))

        def due():
            nonlocal seen
            now = logged_steps(model_dir)
            # A resumed run first cuts the lines behind its checkpoint off.
            seen = now if seen is None or now < seen else seen
            return now - seen >= wanted

    while processes.running and not due():
        time.sleep(0.02)


def kill_until_done(model_dir: str) -> list[dict]:
    """Runs to the end through --kills signals; returns for each what it was and what came of it."""
    moments = random.Random(_SEED.value)
    came = []
    while True:
        processes = train_processes.Processes(arguments(model_dir), _RUNTIME.value, show=True)
        if len(came) == _KILLS.value:
            ended = processes.wait(_RUN_TIMEOUT.value)
        else:
            until_its_moment(processes, model_dir, moments)
            name = moments.choice(["KILL", "TERM"]) if _SIGNAL.value == "ANY" else _SIGNAL.value
            worker = moments.randrange(train_processes.workers_of(_RUNTIME.value))
            at = processes.signal(getattr(signal, f"SIG{name}"), worker)
            ended = processes.wait(_TIMEOUT.value)
        codes = [process.code for process in ended]
        if not any(codes):
            return came
        if any(code > 0 and code != _EXIT_STOPPED for code in codes) or len(came) == _KILLS.value:
            raise app.UsageError(f"training failed with exit codes {codes}; its own message is above")
        within = max(process.seconds for process in ended) - at
        came.append({"signal": name, "after": round(at, 1), "within": round(within, 2), "exit_codes": codes})
        print(
            f"signal {len(came)} of {_KILLS.value}: {name} to worker {worker} after {at:.1f} s,"
            f" {logged_steps(model_dir)} lines logged; all ended {within:.2f} s later, exit codes {codes}",
            flush=True,
        )


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
    reference = _REFERENCE.value or os.path.join(_FOLDER.value, "reference")
    killed = os.path.join(_FOLDER.value, "killed")
    start = time.monotonic()
    # It returns at once if it is finished.
    processes = train_processes.Processes(arguments(reference), _RUNTIME.value, show=True)
    ended = processes.wait(_RUN_TIMEOUT.value)
    if any(process.code for process in ended):
        raise app.UsageError(
            f"the reference failed: {' | '.join(process.errors[-1000:] for process in ended)}"
        )
    came = kill_until_done(killed)
    found, compared = differences(reference, killed)
    for line in found[:20]:
        print(f"differs: {line}")
    result = json.dumps(
        {
            "runtime": _RUNTIME.value,
            "signals": len(came),
            "signal": _SIGNAL.value.replace("ANY", "KILL or TERM"),
            "compared": compared,
            "different": len(found),
            "longest_stop_seconds": max((one["within"] for one in came), default=None),
            "seconds": round(time.monotonic() - start, 1),
        }
    )
    with open(os.path.join(_FOLDER.value, "chaos.json"), "w") as file:
        file.write(result + "\n")
    print(result)
    return 1 if found or len(came) < _KILLS.value else 0


if __name__ == "__main__":
    app.run(main)
