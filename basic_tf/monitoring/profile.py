"""A trace of a few training steps, for TensorBoard's Profile tab (xprof) or another reader of .xplane.pb."""

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

    Where several steps run between two looks at the outside world, the trace covers every such loop that
    touches a step asked for. Ask for late steps: the first ones compile. A trace is large: 10 steps are
    plenty.

    profile_steps: "100,110", or empty or None for no trace. folder: of the run, which TensorBoard watches.
    steps_per_loop: the most steps between two calls of `after_step`.
    """

    def __init__(self, profile_steps: str | None, folder: str, steps_per_loop: int = 1):
        self._steps = parse_steps(profile_steps) if profile_steps else None
        self._folder, self._loop = folder, steps_per_loop
        self._mark = None

    def after_step(self, step: int) -> None:
        """`step` steps are done: begins or ends the trace. To be called after every loop of steps.

        The time between two calls is marked in the trace as the step `step`, so that times per step can be
        shown.
        """
        if self._steps is None:
            return
        first, end = self._steps
        if step >= end:
            if self._mark is None:
                logging.warning(
                    "No trace of steps %d to %d: they were done, or in the first loop.", first, end - 1
                )
            self.close()
            return
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
        elif step + self._loop > first:
            tf.profiler.experimental.start(self._folder)
        else:
            return
        self._mark = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
        self._mark.__enter__()

    def close(self) -> None:
        """Writes the trace, if one is being taken. Safe to call twice."""
        self._steps = None
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
            tf.profiler.experimental.stop()
            logging.info("A trace is in %s: see TensorBoard's Profile tab.", self._folder)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
