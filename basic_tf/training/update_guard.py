"""What happens to an update that would do harm: it is passed over, a few times in a row at most."""

import tensorflow as tf
from absl import logging


class UpdateGuard:
    """Passes over updates whose loss or gradient is not finite, or whose loss jumps, and stops after too many in a row.

    A step that is passed over changes no weight, slot, moving statistic or average; its batch is lost, the step and the
    schedule go on. (PaLM, arXiv 2204.02311 section 5.1, met loss spikes in spite of gradient clipping, and got past them by
    going back about 100 steps and leaving out some hundred batches; this acts before the harm is done.) Without a guard a
    loss that is not finite stops the run.

    Args:
      consecutive: how many updates in a row may be passed over; one more stops the run.
      spike_factor: also passes over an update whose loss exceeds this multiple of the mean loss; None does not.
      decay: of the exponential mean of the losses of accepted updates.
      warm_up: accepted updates before the mean counts.
    """

    def __init__(
        self, consecutive: int = 5, spike_factor: float | None = None, decay: float = 0.98, warm_up: int = 100
    ):
        if not isinstance(consecutive, int) or consecutive < 1:
            raise ValueError(f"UpdateGuard.consecutive is {consecutive!r}; it must be a whole number >= 1")
        if spike_factor is not None and spike_factor <= 1:
            raise ValueError(f"UpdateGuard.spike_factor is {spike_factor}; it must be above 1, or None")
        if not 0 < decay < 1:
            raise ValueError(f"UpdateGuard.decay is {decay}; it must lie between 0 and 1")
        self.consecutive, self.spike_factor, self.decay, self.warm_up = (
            consecutive,
            spike_factor,
            decay,
            warm_up,
        )
        self._seen = 0

    def build(self) -> None:
        """Creates the state, under the active strategy scope."""

        def counter(name):
            return tf.Variable(0, dtype=tf.int64, trainable=False, name=name)

        self.mean = tf.Variable(0.0, dtype=tf.float32, trainable=False, name="loss_mean")
        self.accepted, self.passed_over = counter("accepted"), counter("passed_over")
        self.in_a_row = counter("in_a_row")

    def slots(self) -> dict[str, tf.Variable]:
        """The state that a checkpoint keeps, by name."""
        return {
            "loss_mean": self.mean,
            "accepted": self.accepted,
            "passed_over": self.passed_over,
            "in_a_row": self.in_a_row,
        }

    def restored(self) -> None:
        """The state was read from a checkpoint: what was passed over before it has been warned of."""
        self._seen = int(tf.convert_to_tensor(self.passed_over))

    def passes_over(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        """float32 scalar, 1 or 0. loss, gradients (one per trained variable): of the global batch."""
        # A sum is finite only if every term is; squares could overflow where the gradient itself has not.
        sums = [tf.reduce_sum(tf.abs(tf.cast(g, tf.float64))) for g in gradients]
        allowed = tf.math.is_finite(loss) & tf.math.is_finite(tf.add_n(sums))
        if self.spike_factor is not None:
            bound = self.spike_factor * tf.convert_to_tensor(self.mean)
            warm = tf.convert_to_tensor(self.accepted) >= self.warm_up
            allowed &= ~warm | (tf.cast(loss, tf.float32) <= bound)
        return 1.0 - tf.cast(allowed, tf.float32)

    def update(self, loss: tf.Tensor, passed_over: tf.Tensor) -> None:
        """Counts one update, in the update half of a step. passed_over: what `passes_over` gave."""
        accepted, mean = tf.convert_to_tensor(self.accepted), tf.convert_to_tensor(self.mean)
        total, in_a_row = tf.convert_to_tensor(self.passed_over), tf.convert_to_tensor(self.in_a_row)
        bad, loss = tf.cast(passed_over, tf.int64), tf.cast(loss, tf.float32)
        share = tf.where(accepted == 0, 1.0, 1.0 - self.decay)  # the first loss is the first mean
        self.mean.assign(tf.where(bad == 0, mean + share * (loss - mean), mean))
        self.accepted.assign(accepted + 1 - bad)
        self.passed_over.assign(total + bad)
        self.in_a_row.assign((in_a_row + 1) * bad)

    def check(self, step: int, loss: float, stage: str) -> None:
        """On the host after some steps: warns of new ones; FloatingPointError if there were too many in a row."""
        # Through a tensor: a mirrored variable is no number by itself.
        passed_over, in_a_row, accepted, average = (
            tf.convert_to_tensor(v).numpy()
            for v in (self.passed_over, self.in_a_row, self.accepted, self.mean)
        )
        if passed_over > self._seen:
            logging.warning(
                "stage %s: the update of step %d or just before was passed over (%d so far); the loss is %g",
                stage, step, passed_over, loss,
            )  # fmt: skip
        self._seen = passed_over
        if in_a_row > self.consecutive:
            mean = f", {average:.4g} on average before" if accepted else ""
            raise FloatingPointError(
                f"stage {stage}: the updates of steps {step - in_a_row + 1} to {step} were passed over, "
                f"{in_a_row} in a row (UpdateGuard.consecutive is {self.consecutive}); the loss is {loss:.4g}{mean}. "
                "Lower the learning rate, raise the warm-up or take another --seed, with another --model_dir"
            )
