"""The metrics of a run as JSON lines: appended and flushed one by one, readable while training goes on."""

import json
import math
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from absl import logging


class MetricsLog:
    """`metrics.jsonl` of one stage: {"step": 120, "kind": "train", "loss": 2.31, ...} a line.

    A run that was killed and resumed leaves the same lines as an uninterrupted one (figures of wall-clock
    apart): opening the file for a run that goes on at `resumed_step` drops the lines beyond it (they will be
    written again), and a last line that the kill cut short; writing a (kind, step) that is already there is
    ignored, since the same state gives the same figures.

    path: local or gs://; the folder is made. resumed_step: steps done when the run goes on; 0 keeps what was
    measured before training and drops the rest. None: a log of evaluations made afterwards, each in its own
    way. Nothing is dropped, and only a line that is there already, figures and all, is ignored.
    """

    def __init__(self, path: str, resumed_step: int | None = 0):
        self._path = path
        kept = (
            [
                record
                for record in read_metrics(path)
                if resumed_step is None or record["step"] <= resumed_step
            ]
            if tf.io.gfile.exists(path)
            else []
        )
        self._written = {(record["kind"], record["step"]) for record in kept}
        self._lines = {_line(record) for record in kept} if resumed_step is None else None
        tf.io.gfile.makedirs(os.path.dirname(path))
        # The whole file is replaced at once: a kill in between leaves the old one.
        with tf.io.gfile.GFile(path + ".new", "w") as file:
            file.write("".join(_line(record) for record in kept))
        tf.io.gfile.rename(path + ".new", path, overwrite=True)
        self._file = tf.io.gfile.GFile(path, "a")

    def write(self, step: int, metrics: Mapping[str, object], kind: str = "train") -> None:
        """Appends one line.

        Metrics are numbers, strings, or lists and dicts of them; a number that is not finite becomes null, as
        JSON has none.
        """
        if self._lines is None and self.has(step, kind):
            return
        clash = {"step", "kind"} & set(metrics)
        if clash:
            raise ValueError(
                f"The metrics of step {step} may not be named {sorted(clash)}: the log uses these names."
            )
        line = _line({"step": int(step), "kind": kind, **metrics})
        if self._lines is not None:
            if line in self._lines:
                return
            self._lines.add(line)
        self._file.write(line)
        self._file.flush()
        self._written.add((kind, step))

    def has(self, step: int, kind: str) -> bool:
        """Whether there is a line of that kind and step."""
        return (kind, step) in self._written

    def close(self) -> None:
        """Closes the file; what was written is there already."""
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_metrics(path: str) -> list[dict]:
    """The lines of a metrics file, in order; a damaged one (the run was killed) is skipped with a warning."""
    records = []
    with tf.io.gfile.GFile(path, "rb") as file:
        for number, line in enumerate(file.read().split(b"\n"), start=1):
            if not line:
                continue
            try:
                record = json.loads(line)
                if not isinstance(record["step"], int) or not isinstance(record["kind"], str):
                    raise ValueError("no step or kind")
                records.append(record)
            except (ValueError, KeyError, TypeError) as error:
                logging.warning("Skipped line %d of %s, which is damaged: %s", number, path, error)
    return records


class NoLog:
    """The log of a process that is not the first: it writes nothing."""

    def write(self, step: int, metrics: Mapping[str, object], kind: str = "train") -> None:
        """Nothing."""

    def has(self, step: int, kind: str) -> bool:
        """What is missing is for the first process to say."""
        return True

    def close(self) -> None:
        """Nothing."""


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
