"""Runs the study's runs one after the other in one process, through the stages of basic_tf: what is finished is passed over,
what was cut short goes on. Any number of processes may work in one folder: each takes a run that no other has.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from basic_tf import configurables, runs
from basic_tf.monitoring.metrics_log import read_metrics
from basic_tf.monitoring.progress import duration
from basic_tf.training import loop, preemption, stage_run
from tools import prepare_features
from tools.study import gaps, plan
from tools.study.store import figures_of, finished, read, write

_TIME_IS_UP = "the piece's time is up"
_LOOK_AGAIN_SECONDS = 1.0  # while other processes have all the runs that could be made now


class Piece(threading.Thread):
    """Counts the seconds in which this process may run: while it is suspended (SIGSTOP, a closed lid) none pass.

    When `limit` seconds are over, the stop request that `stop` holds is made.
    """

    def __init__(self, limit: float, tick: float = 0.5):
        super().__init__(daemon=True)
        self.seconds, self.stop = 0.0, None
        self._limit, self._tick = limit, tick

    def run(self) -> None:
        """Counts until the process ends."""
        last = time.monotonic()
        while True:
            time.sleep(self._tick)
            now = time.monotonic()
            self.seconds += min(now - last, 4 * self._tick)
            last, stop = now, self.stop
            if self.seconds > self._limit and stop is not None and stop.requested is None:
                stop.requested = _TIME_IS_UP


def run_all(folder: str, runtime, piece_seconds: float, only: str | None, say: Callable[[str], None]) -> bool:
    """Runs what is not finished until all is done (True) or the piece's time is up (False).

    A run starts only if it is expected to end within the piece, but the first one always; one that takes longer than
    expected is stopped, saved, at the end of the piece. Raises preemption.Stopped when a signal came.
    """
    piece = Piece(piece_seconds)
    piece.start()
    started = False
    while True:
        found = finished(folder)
        specs, waiting = plan.runs(figures_of(found), folder)
        todo = [
            spec for spec in specs if spec.name not in found and (only is None or spec.name.startswith(only))
        ]
        left_out = [spec for spec in todo if _missing(spec, folder, found)]
        ready = [spec for spec in todo if spec not in left_out]
        if not ready:
            for spec in left_out:
                say(f"left out: {spec.name} ({_missing(spec, folder, found)})")
            say(
                f"study: {len(found)} runs finished, {len(left_out)} left out, {waiting} wait for a learning rate"
            )
            return True
        with _claimed(ready, folder) as spec:
            if spec is None:
                if piece.seconds > piece_seconds:
                    return False
                _wait()
                continue
            if started and piece.seconds + spec.seconds > piece_seconds:
                return False
            rest = sum(other.seconds for other in ready)
            say(
                f"study: {len(found)} finished, {len(ready)} ready ({duration(rest)} expected), {waiting} waiting; now "
                f"{spec.name}"
            )
            started = True
            if spec.features_of is not None:
                _make_features(spec, folder)
            elif not _train(spec, folder, runtime, piece):
                return False


@contextlib.contextmanager
def _claimed(ready: list[plan.RunSpec], folder: str) -> Iterator[plan.RunSpec | None]:
    """The first of `ready` that no other process has or has finished meanwhile; None if there is none.

    Its claim is a lock on a file in the run's folder, which the system takes back when a process ends, however it ends.
    """
    for spec in ready:
        os.makedirs(os.path.join(folder, spec.name), exist_ok=True)
        with open(os.path.join(folder, spec.name, ".claimed"), "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if read(folder, spec.name) is None:
                yield spec
                return
    yield None


def _wait() -> None:
    """A moment; raises preemption.Stopped if a signal comes."""
    with preemption.StopRequest() as stop:
        time.sleep(_LOOK_AGAIN_SECONDS)
    if stop.requested:
        raise preemption.Stopped(f"study: {stop.requested} while waiting for runs of other processes")


def _missing(spec: plan.RunSpec, folder: str, found: Mapping[str, dict]) -> str | None:
    """Why a run cannot be made; None if it can."""
    if spec.features_of is not None and not os.path.exists(spec.features_of):
        return f"there is no {spec.features_of}"
    if spec.needs is not None and spec.needs not in found:
        return f"it needs {spec.needs}"
    return None


def _write(folder: str, spec: plan.RunSpec, content: dict) -> None:
    write(folder, spec.name, {"claims": list(spec.claims), **content})


def _make_features(spec: plan.RunSpec, folder: str) -> None:
    result = prepare_features.run(
        os.path.join(folder, "tower", "pretrain"),
        spec.features_of,
        os.path.join(folder, spec.name),
        share=spec.share,
    )
    _write(folder, spec, {"features": result, "figures": {}})


def _train(spec: plan.RunSpec, folder: str, runtime, piece: Piece) -> bool:
    """Trains a run to its end (True), or to the end of the piece."""
    configurables.parse([spec.gin_file], list(spec.bindings))
    recipe = configurables.recipe()
    options = stage_run.Options(seed=spec.seed)
    run_folder = os.path.join(folder, spec.name)
    runs.describe(run_folder, configurables.config_text(), options)
    piece.stop = stop = preemption.StopRequest()
    try:
        for stage in recipe.stages:
            evaluator = gaps.StudyEvaluator if configurables.is_contrastive(stage) else None
            loop.run_stage(stage, run_folder, runtime, options, stop, evaluator)
    except preemption.Stopped as stopped:
        if stop.requested != _TIME_IS_UP:
            raise
        print(stopped, flush=True)
        return False
    finally:
        piece.stop = None
    _write(folder, spec, summary(spec, run_folder, [stage.name for stage in recipe.stages]))
    return True


def summary(spec: plan.RunSpec, run_folder: str, stages: list[str]) -> dict:
    """What study.json says of a training, all of it read from the run's own files.

    figures: the last evaluation, the last loss, the mean of false_negatives_per_pair. stages: steps, seconds, losses at
    every logged step and evaluations of each stage.
    """
    found, figures = {}, {}
    for name in stages:
        lines = read_metrics(os.path.join(run_folder, name, "metrics.jsonl"))
        train = [line for line in lines if line["kind"] == "train"]
        evaluations = [line for line in lines if line["kind"] == "evaluation"]
        found[name] = {
            "steps": train[-1]["step"],
            "training_seconds": train[-1].get("training_seconds"),
            "losses": {str(line["step"]): line["loss"] for line in train},
            "evaluations": evaluations,
        }
        figures["loss"] = train[-1]["loss"]
        counts = [line["false_negatives_per_pair"] for line in train if "false_negatives_per_pair" in line]
        if counts:
            figures["false_negatives_per_pair"] = sum(counts) / len(counts)
        if evaluations:
            figures |= {k: v for k, v in evaluations[-1].items() if k not in ("step", "kind")}
    with open(os.path.join(run_folder, runs.VERSIONS), encoding="utf-8") as file:
        versions = json.load(file)
    return {
        "gin_file": spec.gin_file,
        "bindings": list(spec.bindings),
        "seed": spec.seed,
        "revision": versions.get("revision"),
        "figures": figures,
        "stages": found,
    }
