"""The training step on orbit: the replica half, then the update half, then the step counter."""

import functools
import time
from collections.abc import Callable

import orbit
import tensorflow as tf

from basic_tf import randomness
from basic_tf.parallel import runtime as runtime_lib
from basic_tf.parallel.ordered_sums import ordered_sums
from basic_tf.training import tasks


class Trainer(orbit.AbstractTrainer):
    """Runs steps of one stage. Everything a step needs follows from (seed, step): batch, augmentation, dropout.

    variables: path -> variable of what is trained, in a fixed order. average: a WeightAverage or None. guard: an
    update_guard.UpdateGuard, or None: every update is made.
    """

    def __init__(
        self,
        task: tasks.Task,
        variables: dict[str, tf.Variable],
        optimizer,
        average,
        host_rows: Callable[[int, int], tf.data.Dataset],
        runtime: runtime_lib.Runtime,
        seed: int,
        global_step: tf.Variable,
        guard=None,
    ):
        self.task = task
        self.trained = variables
        self.optimizer = optimizer
        self.average = average
        self.guard = guard
        self.runtime = runtime
        self.seed = seed
        self.global_step = global_step
        self._data_wait_seconds = 0.0
        self._feeds_steps = runtime.host_loop or bool(task.apply_by_block)
        self._host_rows = host_rows
        self._iterator = None
        self._anchor = next(iter(variables.values()))
        self._step_function = runtime.step_function(self._one_step)
        if task.apply_by_block:
            if runtime.collectives is not None:
                count = f"{runtime.replicas} replicas" if runtime.replicas > 1 else "several devices"
                raise runtime_lib.DeviceError(
                    f"apply_by_block applies gradients where they arise, on one device; {runtime.name} has {count}. "
                    "Use --runtime=one_device, or leave it off"
                )
            self._step_function = self._step_by_block
        self._loop_function = tf.function(self._steps_in_graph)

    def take_data_wait(self) -> float | None:
        """Seconds spent waiting for batches since the last call; None where the loop of steps waits inside its program."""
        if not self._feeds_steps:
            return None
        seconds, self._data_wait_seconds = self._data_wait_seconds, 0.0
        return seconds

    def train(self, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """Runs `num_steps` steps and returns the last one's metrics: the same bits whenever the same steps are run."""
        if self._iterator is None:
            self._iterator = self.runtime.iterator(self._host_rows)
        with ordered_sums():
            return self._train(num_steps)

    def _train(self, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        if not self._feeds_steps:
            metrics = self._loop_function(self._iterator, num_steps, self.global_step.read_value())
            self.global_step.assign_add(tf.cast(num_steps, self.global_step.dtype))
            return metrics
        for _ in range(int(num_steps)):
            start = time.perf_counter()
            batch = next(self._iterator)
            self._data_wait_seconds += time.perf_counter() - start
            metrics = self._step_function(batch, self.runtime.replicated(self.global_step.read_value()))
            self.global_step.assign_add(1)
        return metrics

    def _steps_in_graph(self, iterator, num_steps: tf.Tensor, first_step: tf.Tensor) -> dict[str, tf.Tensor]:
        # The last step stands outside the loop: a loop variable would need the metrics' values before the first step.
        one_step = tf.autograph.experimental.do_not_convert(self._one_step)
        for offset in tf.range(num_steps - 1):
            one_step(next(iterator), first_step + tf.cast(offset, first_step.dtype))
        return one_step(next(iterator), first_step + tf.cast(num_steps - 1, first_step.dtype))

    def _one_step(self, batch, step: tf.Tensor) -> dict[str, tf.Tensor]:
        accumulator, replica_half, update_half = None, self._replica_half, self._update_half
        if self.task.accumulate_in_slots:
            accumulator = self.optimizer.accumulation(
                self._variables(), step, correction=self.task.accumulate_in_slots
            )
            replica_half = functools.partial(replica_half, accumulator=accumulator)
            update_half = functools.partial(update_half, accumulator=accumulator)

        result = self.runtime.run(replica_half, (batch, step))
        self._update(update_half, (result.gradients, result.statistics, step), result.metrics)
        # Further updates: they must see the weights that the first one assigned.
        if self.task.has_bounds:
            self.runtime.update(self._plain(self._anchor), self.task.constrain, ())
        if self.average is not None:
            self._update(self.average.update, (step,), result.metrics)
        if self.guard is not None:
            loss, passed_over = result.metrics["loss"], result.metrics["update_passed_over"]
            self.runtime.update(self._plain(self._anchor), self.guard.update, (loss, passed_over))
        return self.runtime.local(result.metrics)

    # The halves are methods and not closures: a mesh traces each of them once and knows it again by its name.

    def _replica_half(self, batch, step: tf.Tensor, accumulator=None) -> tasks.StepResult:
        collectives = self.runtime.collectives
        options = {} if accumulator is None else {"accumulator": accumulator}
        noise_key = randomness.step_key(self.seed, step)
        result = self.task.step(batch, noise_key, self._variables(), collectives, **options)
        if collectives:
            result = result._replace(gradients=collectives.sum(result.gradients))
        if self.guard is not None:
            passed_over = self.guard.passes_over(result.metrics["loss"], result.gradients)
            result = result._replace(metrics=result.metrics | {"update_passed_over": passed_over})
        return result

    def _update_half(self, gradients, statistics, step: tf.Tensor, accumulator=None) -> None:
        if accumulator is None:
            self.optimizer.apply(gradients, list(self.trained.values()), step=step)
        else:
            accumulator.apply(gradients)
        if statistics:
            self.task.model.update_statistics(statistics)

    def _step_by_block(self, batch, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """The step of a task with `apply_by_block`, eagerly: its order of execution is what saves memory."""

        def apply(gradients):
            self.optimizer.apply(gradients, step=step)

        result = self.task.step_by_block(
            batch, randomness.step_key(self.seed, step), list(self.trained), apply
        )
        if result.statistics:
            self.task.model.update_statistics(result.statistics)
        self.task.constrain()
        if self.average is not None:
            self.average.update(step)
        return result.metrics

    def _update(self, function: Callable, args: tuple, metrics: dict[str, tf.Tensor]) -> None:
        """Runs a part of the update half once per copy; where there is a guard, only if it allows this step."""
        if self.guard is None:
            self.runtime.update(self._plain(self._anchor), function, args)
            return

        def if_allowed(passed_over, *args):
            tf.cond(passed_over > 0, lambda: False, lambda: (function(*args), True)[1])

        self.runtime.update(self._plain(self._anchor), if_allowed, (metrics["update_passed_over"], *args))

    def _variables(self) -> list[tf.Variable]:
        return [self._plain(variable) for variable in self.trained.values()]

    @staticmethod
    def _plain(variable):
        """The tf.Variable inside a Keras variable."""
        return getattr(variable, "value", variable) if not isinstance(variable, tf.Variable) else variable
