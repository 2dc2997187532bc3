"""A trace of a few training steps, for TensorBoard's Profile tab (xprof) or another reader of .xplane.pb."""

import contextlib

import tensorflow as tf
from absl import logging


def parse_steps(text: str) -> tuple[int, int]:
    """ "100,110" -> (100, 110): the steps 100, ..., 109. Raises ValueError on anything else."""
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
        first, end = int(parts[0]), int(parts[1])
        if first < end:
            return first, end
    raise ValueError(
        f'--profile_steps names a first step and the step to stop before, as in "100,110"; got "{text}".'
    )


class Profiler:
    """Traces the steps of `profile_steps` into `folder`/plugins/profile/<time>/.

    Orbit runs several steps between two looks at the outside world, so the trace covers the whole loops that
    touch the steps asked for. Ask for a late step: the first ones compile. A trace is large: 10 steps are
    plenty.

    profile_steps: "100,110", or empty or None for no trace. folder: of the run, which TensorBoard watches.
    """

    def __init__(self, profile_steps: str | None, folder: str):
        self._steps = parse_steps(profile_steps) if profile_steps else None
        self._folder = folder
        self._running = False

    def loop(self, step: int, steps: int) -> None:
        """To be called before a loop that runs `steps` steps, when `step` steps are done."""
        if self._steps is None:
            return
        first, end = self._steps
        if self._running and step >= end:
            self.close()
            return
        if not self._running and step < end and step + steps > first:
            tf.profiler.experimental.start(self._folder)
            self._running = True
        elif not self._running and step >= end:
            logging.warning("No trace: steps %d to %d were done before this run began.", first, end - 1)
            self._steps = None

    def trace(self, step: int) -> contextlib.AbstractContextManager:
        """Around a step (or a loop): marks it in the trace, so that times per step can be shown."""
        if not self._running:
            return contextlib.nullcontext()
        return tf.profiler.experimental.Trace("train", step_num=step, _r=1)

    def close(self) -> None:
        """Writes the trace, if one is being taken. Safe to call twice."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
            logging.info("A trace is in %s: see TensorBoard's Profile tab.", self._folder)
        self._steps = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
