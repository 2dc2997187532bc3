"""Learning-rate schedules, and durations that survive a change of batch size.

A schedule is a callable: step (updates made before; Python int or integer scalar tensor) -> float32 scalar
tensor. A `Schedule` also takes the dtype of its arithmetic: graphs of other runtimes may round its last bit
otherwise (a division by a constant becomes a product), which a float64 run would see.
"""

import dataclasses
import math

import tensorflow as tf

SHAPES = ("constant", "linear", "cosine", "rsqrt")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training, in exactly one unit.

    Attributes:
      steps: optimizer updates. examples: examples (pairs) seen. epochs: passes over the data set (fractions
        allowed).
    """

    steps: float | None = None
    examples: float | None = None
    epochs: float | None = None

    def __post_init__(self):
        given = self._given()
        if len(given) != 1:
            raise ValueError(
                f"a duration takes exactly one of steps, examples and epochs, but "
                f"{self._words() or 'none'} came"
            )
        ((unit, amount),) = given.items()
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(
                f"a duration of {amount} {unit} makes no sense; it must be finite and not negative"
            )

    def _given(self) -> dict[str, float]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def _words(self) -> str:
        return " and ".join(f"{name}={value}" for name, value in self._given().items())

    def to_steps(self, batch_size: int | None = None, examples_per_epoch: int | None = None) -> int:
        """The number of updates, rounded up: at least this many examples are seen.

        batch_size: examples of one update, needed for examples and epochs. examples_per_epoch: needed for
          epochs.
        """
        if self.steps is not None:
            return _ceil(self.steps)
        if not batch_size or batch_size < 1:
            raise ValueError(
                f"a duration of {self._words()} needs the batch size, a positive number; got {batch_size}"
            )
        if self.examples is not None:
            return _ceil(self.examples / batch_size)
        if not examples_per_epoch or examples_per_epoch < 1:
            raise ValueError(
                f"a duration of {self._words()} needs the number of examples in the data set; "
                f"got {examples_per_epoch}"
            )
        return _ceil(self.epochs * examples_per_epoch / batch_size)


def _ceil(steps: float) -> int:
    # 0.1 * 30 is a little more than 3: a rounding error must not cost a step.
    return math.ceil(steps - 1e-9 * max(1.0, steps))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then a decay that reaches `end_value` at `total_steps` and stays there.

    Warm-up: peak * (step + 1) / warmup_steps, so the first update already moves. Afterwards, with
    p = (step - warmup_steps) / (total_steps - warmup_steps) in [0, 1]:
      constant: peak;
      linear: peak + (end_value - peak) p;
      cosine: end_value + (peak - end_value) (1 + cos(pi p)) / 2;
      rsqrt: peak sqrt(s / (s + step - warmup_steps)), s = `timescale` steps, never below end_value. With
        `cooldown_steps` it ends in a straight line to end_value over that many last steps.

    Attributes:
      peak: highest rate. total_steps: of the whole stage, warm-up included.
      warmup_steps: or `warmup_fraction` of total_steps (rounded); one of the two.
      shape: "constant", "linear", "cosine" or "rsqrt". end_value: not used by "constant" without cooldown.
      timescale: of rsqrt, in steps; None: warmup_steps, at least 1. cooldown_steps: for constant and rsqrt.
    """

    peak: float
    total_steps: int
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    shape: str = "linear"
    end_value: float = 0.0
    timescale: int | None = None
    cooldown_steps: int = 0

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"schedule shape {self.shape!r} is not one of {', '.join(SHAPES)}")
        if self.total_steps < 1:
            raise ValueError(f"total_steps is {self.total_steps}; a schedule needs at least one step")
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_fraction={self.warmup_fraction} came; "
                "give one of them"
            )
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; it must lie between 0 and 1")
        if not 0 <= self.warmup <= self.total_steps:
            raise ValueError(f"a warm-up of {self.warmup} steps does not fit into {self.total_steps} steps")
        if self.cooldown_steps and self.shape in ("linear", "cosine"):
            raise ValueError(
                f"a {self.shape} schedule decays by itself; cooldown_steps is for constant and rsqrt"
            )
        if not 0 <= self.cooldown_steps <= self.total_steps - self.warmup:
            raise ValueError(
                f"a cool-down of {self.cooldown_steps} steps does not fit after {self.warmup} of "
                f"{self.total_steps} steps"
            )
        if self.timescale is not None and self.timescale <= 0:
            raise ValueError(f"timescale is {self.timescale}; it must be a positive number of steps")
        if self.peak < 0 or self.end_value < 0:
            raise ValueError(f"peak {self.peak} and end_value {self.end_value} must not be negative")
        if self.end_value > self.peak:
            raise ValueError(
                f"end_value {self.end_value} is above the peak, {self.peak}: the rate would rise after its warm-up"
            )

    @property
    def warmup(self) -> int:
        """Warm-up steps, whichever way they were given."""
        if self.warmup_fraction is not None:
            return round(self.warmup_fraction * self.total_steps)
        return self.warmup_steps or 0

    def __call__(self, step, dtype=tf.float32) -> tf.Tensor:
        """The rate of the update that follows `step` updates; scalar of `dtype`."""
        step = tf.cast(step, tf.int64)
        # Differences in integers first: float32 counts exactly to 16.7 million only.
        after = tf.cast(tf.maximum(step - self.warmup, 0), dtype)
        span = max(self.total_steps - self.warmup, 1)
        left = tf.cast(tf.clip_by_value(self.total_steps - step, 0, span), dtype) / span
        rate = self._decayed(after, left)
        if self.cooldown_steps:
            start = float(self.total_steps - self.warmup - self.cooldown_steps)
            share = tf.minimum(left * (span / self.cooldown_steps), 1.0)
            rate = self.end_value + (self._decayed(tf.minimum(after, start), left) - self.end_value) * share
        if self.warmup:
            rising = self.peak * tf.cast(step + 1, dtype) / self.warmup
            rate = tf.where(step < self.warmup, rising, rate)
        return rate

    def _decayed(self, after: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
        """The rate without warm-up and cool-down. after: steps behind the warm-up; left: 1 - p."""
        if self.shape == "constant":
            return tf.fill(tf.shape(after), tf.constant(self.peak, after.dtype))
        if self.shape == "rsqrt":
            scale = float(self.timescale or max(self.warmup, 1))
            return tf.maximum(self.peak * tf.math.rsqrt(1.0 + after / scale), self.end_value)
        if self.shape == "cosine":
            left = tf.square(
                tf.sin(0.5 * math.pi * left)
            )  # (1 + cos(pi p)) / 2, without cancellation near p = 1
        return self.end_value + (self.peak - self.end_value) * left


def schedule(
    peak: float,
    duration: Duration,
    warmup: Duration | None = None,
    warmup_fraction: float | None = None,
    batch_size: int | None = None,
    examples_per_epoch: int | None = None,
    **shape,
) -> Schedule:
    """A schedule from durations. shape: `shape`, `end_value`, `timescale`, `cooldown_steps` of `Schedule`."""
    return Schedule(
        peak,
        duration.to_steps(batch_size, examples_per_epoch),
        warmup_steps=None if warmup is None else warmup.to_steps(batch_size, examples_per_epoch),
        warmup_fraction=warmup_fraction,
        **shape,
    )
