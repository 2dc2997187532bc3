"""The study of BASIC's claims (docs/results/study.md), in pieces: run it until it says that all runs are finished.

    python tools/run_study.py --folder=runs/study --piece_seconds=540
    make study

Runs what tools/study/plan.py lists, in its order: finished runs are passed over, an interrupted one goes on. Its models are
small, so several runs at a time, on their own cores, get further than one on all of them; processes started by hand beside
it share the work too. `--adopt` takes runs over from the committed record, and ends. Exit codes: 0 all is finished (what
could not be run is said in a line each); 4 the piece's time is up; 75 SIGTERM or SIGINT came, what is running was saved:
after both the same command goes on; 1 a run failed or cannot work, said in a line.
"""

import os
import signal
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags, logging

from basic_tf.machine import cores
from basic_tf.training import preemption

_FOLDER = flags.DEFINE_string("folder", "runs/study", "Where the runs go.")
_PIECE_SECONDS = flags.DEFINE_float("piece_seconds", 540.0, "The piece ends after that many seconds.", 60.0)
_ONLY = flags.DEFINE_string("only", None, "Only runs whose name begins so, e.g. samples/")
_PROCESSES = flags.DEFINE_integer("processes", min(4, cores()), "Runs at a time; each takes about 1 GiB.", 1)
_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU threads of each run (default: the cores of this process, shared out)."
)
_ADOPT = flags.DEFINE_string(
    "adopt",
    None,
    "A record of runs, docs/results/study/runs.json: they count as finished here, with --only those of that name.",
)
_LIST = flags.DEFINE_bool("list", False, "Only say which runs there are, and which are finished.")

EXIT_PIECE = 4


def side_by_side(processes: int, threads: int) -> int:
    """One piece by several processes of this tool; the exit code. A signal, and the failure of one, stop all."""
    command = [sys.executable, *sys.argv, "--processes=1", f"--threads={threads}"]
    # In sessions of their own: Ctrl-C would reach them twice, and a second signal does not let them save.
    running = [subprocess.Popen(command, start_new_session=True) for _ in range(processes)]

    def stop_all(number=signal.SIGTERM, frame=None):
        del frame
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_all)
    while any(process.poll() is None for process in running):
        time.sleep(0.5)
        if any(process.poll() not in (None, 0, EXIT_PIECE) for process in running):
            stop_all()
            break
    codes = {process.wait() for process in running}
    if codes - {0, EXIT_PIECE, preemption.EXIT_STOPPED}:
        return 1
    return preemption.EXIT_STOPPED if preemption.EXIT_STOPPED in codes else max(codes)


def main(argv: list[str]) -> int:
    """Runs one piece."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    logging.set_verbosity(logging.WARNING)
    from tools.study import plan, store

    if _ADOPT.value:
        try:
            names = store.adopt(_FOLDER.value, _ADOPT.value, _ONLY.value or "")
        except (ValueError, OSError) as error:
            print(f"run_study: {error}", file=sys.stderr)
            return 1
        print(f"study: {len(names)} runs of {_ADOPT.value} count as finished in {_FOLDER.value}")
        return 0
    if _LIST.value:
        found = store.finished(_FOLDER.value)
        specs, waiting = plan.runs(store.figures_of(found), _FOLDER.value)
        for spec in specs:
            state = "finished" if spec.name in found else f"{spec.seconds:.0f} s"
            print(f"{spec.name:40} claims {','.join(spec.claims):12} {state}")
        print(f"{waiting} more wait for a learning rate")
        return 0
    threads = _THREADS.value or max(1, cores() // _PROCESSES.value)
    if _PROCESSES.value > 1:
        return side_by_side(_PROCESSES.value, threads)
    # Imports below cost seconds.
    from basic_tf import configurables
    from basic_tf.parallel import strategies
    from basic_tf.training import checkpoints, stages
    from tools.study import runner

    try:
        strategies.use_all_cores(threads)
        runtime = strategies.create("one_device")
        done = runner.run_all(
            _FOLDER.value, runtime, _PIECE_SECONDS.value, _ONLY.value, lambda line: print(line, flush=True)
        )
    except preemption.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return preemption.EXIT_STOPPED
    except (ValueError, OSError, FloatingPointError, checkpoints.CheckpointError) as error:
        if not isinstance(error, (configurables.GinError, stages.ConfigurationError, FloatingPointError)):
            logging.debug("details", exc_info=True)
        print(f"run_study: {error}", file=sys.stderr)
        return 1
    return 0 if done else EXIT_PIECE


if __name__ == "__main__":
    app.run(main)
