"""One line that says how training goes: loss, speed, waiting for data, share of the machine, time left.

On a terminal it is a live line (rich); in a log file or a continuous-integration job it is a plain line now
and then.
"""

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, TextIO

_WINDOW_SECONDS = 20.0


def duration(seconds: float) -> str:
    """Seconds as `7:03`, `2:07:03` or `3d 2:07:03`; `?` when unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{days}d {clock}" if days else clock


class Chronometer:
    """Training time alone: what start-up, compilation, evaluation and checkpoints take is not in it.

    The interval that ends at the first `lap` holds tracing and compilation and is not timed; nor is anything
    inside `pause()`. `state()` is a small dict of plain numbers; kept in the checkpoint and given back, the
    totals go on where the checkpoint was made, so a restarted run reports the time of the steps that its
    weights have seen.
    """

    def __init__(self, state: dict | None = None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        state = state or {}
        self.seconds = float(state.get("seconds", 0.0))
        self.steps = int(state.get("steps", 0))
        self.wait_seconds = float(state.get("wait_seconds", 0.0))
        self._last_step: int | None = None
        self._last_time = 0.0
        self._paused = 0.0
        self._pause_depth = 0
        self._laps: deque[tuple[int, float, float]] = deque()  # steps, seconds, seconds that waited for data

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps: timed seconds, timed steps, and the seconds that waited for data."""
        return {"seconds": self.seconds, "steps": self.steps, "wait_seconds": self.wait_seconds}

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside is not training time. May be nested."""
        begin = self._clock()
        self._pause_depth += 1
        try:
            yield
        finally:
            self._pause_depth -= 1
            if not self._pause_depth:
                self._paused += self._clock() - begin

    def lap(self, step: int, wait_seconds: float = 0.0) -> None:
        """`step` steps are done; `wait_seconds` of the time since the last lap went into waiting for data."""
        now = self._clock()
        if self._last_step is not None:
            if step < self._last_step:
                raise ValueError(f"Steps must not go back: got step {step} after step {self._last_step}.")
            steps = step - self._last_step
            seconds = max(0.0, now - self._last_time - self._paused)
            wait = min(wait_seconds, seconds)
            self.seconds += seconds
            self.steps += steps
            self.wait_seconds += wait
            self._laps.append((steps, seconds, wait))
            while len(self._laps) > 1 and sum(lap[1] for lap in self._laps) > _WINDOW_SECONDS:
                self._laps.popleft()
        self._last_step, self._last_time, self._paused = step, now, 0.0

    def steps_per_second(self) -> float:
        """Over the last laps (about 20 s); NaN before the second lap."""
        seconds = sum(lap[1] for lap in self._laps)
        return sum(lap[0] for lap in self._laps) / seconds if seconds > 0 else math.nan

    def wait_share(self) -> float:
        """The share of the last laps' time that waited for data; NaN before the second lap."""
        seconds = sum(lap[1] for lap in self._laps)
        return sum(lap[2] for lap in self._laps) / seconds if seconds > 0 else math.nan


class ProgressLine:
    """Shows one stage of training.

    total_steps: steps of the whole stage. batch_size: examples per step, over all replicas.
    flops_per_example: floating-point operations of one training step per example. With what the model needs
    (3
        forward passes' worth) the share shown is model-FLOPs utilisation; with recomputed passes counted too,
        it is what the hardware does. None: not shown.
    gemm_rate: FLOP/s of a large matrix product on this machine, all devices together (`flops.gemm_rate`).
        None: not shown.
    name: of the stage. unit: what an example is ("pairs", "pictures").
    shown: the metrics on the line, where given.
    state: from `state()` of the run that is resumed.
    stream: where to write; None for silence (a process that is not the first). "stderr": as it is now.
    live: repaint one line in place. None: when the stream is a terminal.
    plain_seconds: between two lines where they are not repainted.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        flops_per_example: float | None = None,
        gemm_rate: float | None = None,
        *,
        name: str = "train",
        unit: str = "pairs",
        shown: tuple[str, ...] = ("loss", "temperature", "accuracy"),
        state: dict | None = None,
        stream: TextIO | Literal["stderr"] | None = "stderr",
        live: bool | None = None,
        plain_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if total_steps < 1 or batch_size < 1:
            raise ValueError(f"Need at least one step and one example, got {total_steps=}, {batch_size=}.")
        stream = sys.stderr if stream == "stderr" else stream
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._flops_per_example = flops_per_example
        self._gemm_rate = gemm_rate
        self._name, self._unit, self._shown = name, unit, shown
        self._stream, self._plain_seconds, self._clock = stream, plain_seconds, clock
        self._chronometer = Chronometer(state, clock)
        self._text = ""
        self._printed_text, self._printed_time = "", -math.inf
        self._live = None
        if stream is not None and (stream.isatty() if live is None else live):
            from rich.console import Console
            from rich.live import Live

            # Paint only when told: a refreshing thread would compete with the training step for the cores.
            self._live = Live(console=Console(file=stream, force_terminal=True), auto_refresh=False)

    def state(self) -> dict[str, float]:
        """Plain numbers for the checkpoint, so that timings survive a restart."""
        return self._chronometer.state()

    def update(
        self, step: int, metrics: dict[str, float], data_wait_seconds: float | None = 0.0
    ) -> dict[str, float]:
        """Reports that `step` steps of the stage are done, and shows them.

        metrics: of the last step or their mean since the last update. data_wait_seconds: spent waiting for
        batches since the last update; None: not measured, and not shown. Returns the speeds, for the metrics'
        log and TensorBoard: `<unit>_per_second`, `data_wait_share`, `matrix_rate_share` (0..1) and
        `training_seconds`; empty while nothing is timed yet.
        """
        self._chronometer.lap(step, data_wait_seconds or 0.0)
        speeds = self._speeds()
        if data_wait_seconds is None:
            speeds.pop("data_wait_share", None)
        self._text = self._line(step, metrics, speeds)
        self._show(force=step >= self._total_steps)
        return speeds

    @contextlib.contextmanager
    def pause(self, what: str = "") -> Iterator[None]:
        """Around evaluation and checkpoints: their time does not count. `what` is shown meanwhile."""
        if self._live is not None:
            if what and self._text:
                self._paint(f"{self._text}  [{what}]")
            self._live.stop()
        try:
            with self._chronometer.pause():
                yield
        finally:
            if self._live is not None and self._text:
                self._paint(self._text)

    def close(self) -> None:
        """Leaves the last line standing. Safe to call twice."""
        if self._live is not None:
            if self._live.is_started:
                self._live.stop()
            self._live = None
        elif self._stream is not None and self._text and self._text != self._printed_text:
            self._print()
        self._text = ""

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _speeds(self) -> dict[str, float]:
        rate = self._chronometer.steps_per_second() * self._batch_size
        if math.isnan(rate):
            return {}
        speeds = {f"{self._unit}_per_second": rate, "data_wait_share": self._chronometer.wait_share()}
        if self._flops_per_example and self._gemm_rate:
            speeds["matrix_rate_share"] = rate * self._flops_per_example / self._gemm_rate
        speeds["training_seconds"] = self._chronometer.seconds
        return speeds

    def _line(self, step: int, metrics: dict[str, float], speeds: dict[str, float]) -> str:
        parts = [f"{self._name} {step:,}/{self._total_steps:,} {step / self._total_steps:4.0%}"]
        parts += [f"{name} {float(metrics[name]):.4g}" for name in self._shown if name in metrics]
        if speeds:
            rate = speeds[f"{self._unit}_per_second"]
            parts.append(f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2f} {self._unit}/s")
            if "data_wait_share" in speeds:
                parts.append(f"data wait {speeds['data_wait_share']:.0%}")
            if "matrix_rate_share" in speeds:
                parts.append(f"matrix rate {speeds['matrix_rate_share']:.0%}")
            left = (self._total_steps - step) * self._batch_size / rate if rate > 0 else math.inf
            parts.append(f"{duration(speeds['training_seconds'])} trained")
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _show(self, force: bool) -> None:
        if self._live is not None:
            self._paint(self._text)
        elif self._stream is not None and (
            force or self._clock() - self._printed_time >= self._plain_seconds
        ):
            self._print()

    def _paint(self, text: str) -> None:
        from rich.text import Text

        if not self._live.is_started:
            self._live.start()
        # On a narrow terminal the line wraps: better than losing its end.
        self._live.update(Text(text), refresh=True)

    def _print(self) -> None:
        print(self._text, file=self._stream, flush=True)
        self._printed_text, self._printed_time = self._text, self._clock()
