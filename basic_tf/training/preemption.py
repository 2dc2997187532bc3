"""Stopping safely: SIGTERM and SIGINT let the current step finish, then the run saves and leaves.

A second signal, of either kind, ends the process at once, as people expect of a second Ctrl-C; the last checkpoint then
counts, as after a SIGKILL.
"""

import os
import signal

from absl import logging

# EX_TEMPFAIL of sysexits.h: the run is not finished and not broken; the same command goes on where it was.
EXIT_STOPPED = 75


class Stopped(Exception):
    """The run was asked to stop, has saved, and can be resumed by the same command."""


class StopRequest:
    """Remembers that a signal came. Use as a context manager around training; `requested` is asked between steps."""

    def __init__(self, signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)):
        self._signals = signals
        self._previous = {}
        self.requested: str | None = None

    def __enter__(self):
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number, frame):
        del frame
        name = signal.Signals(number).name
        if self.requested is not None:
            # Not sys.exit: TensorFlow's threads could hold the interpreter's shutdown up.
            os._exit(128 + number)
        self.requested = name
        logging.warning("%s: finishing this step, saving, then leaving (exit code %d).", name, EXIT_STOPPED)
