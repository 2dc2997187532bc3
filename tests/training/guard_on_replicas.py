"""Run by test_update_guard: the guard under MirroredStrategy on two logical CPU devices. Prints one JSON object."""

import json

import numpy as np
import tensorflow as tf

from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.weight_average import WeightAverage
from basic_tf.parallel import strategies
from basic_tf.training import tasks
from basic_tf.training.trainer import Trainer
from basic_tf.training.update_guard import UpdateGuard

ROWS, WIDTH, BROKEN = 6, 4, (2, 3)


class Line(tasks.Task):
    """loss = mean over the global batch of (x . w - y)^2."""

    def __init__(self):
        self.model = self
        self.weight = tf.Variable(tf.zeros([WIDTH]), name="w")

    def parameters(self):
        """One weight."""
        return {"w/kernel": self.weight}

    def step(self, batch, noise_key, variables, collectives):
        """This replica's share of the gradient; the loss of all."""
        x, y = batch["rows"][:, :-1], batch["rows"][:, -1]
        error = tf.linalg.matvec(x, tf.convert_to_tensor(variables[0])) - y
        loss = tf.reduce_sum(error**2) / ROWS
        gradient = 2 * tf.reduce_sum(error[:, None] * x, 0) / ROWS
        return tasks.StepResult([gradient], [], {"loss": collectives.sum(loss)})

    def multiply_adds_per_example(self, trained):
        """Not counted."""
        return 0.0


def main():
    """Six steps, two of them broken on one replica alone."""
    data = np.random.default_rng(5).normal(size=(6, ROWS, WIDTH + 1)).astype(np.float32)
    for step in BROKEN:
        data[step, -1, 0] = np.nan  # a row of the second replica
    runtime = strategies.create("mirrored", logical_devices=2)
    with runtime.scope():
        task, optimizer, average, guard = (
            Line(),
            AdaFactorW(0.05),
            WeightAverage(0.9),
            UpdateGuard(consecutive=2),
        )
        optimizer.build(task.parameters())
        average.build(task.parameters())
        guard.build()
    step = tf.Variable(0, dtype=tf.int64)
    rows = tf.data.Dataset.from_tensor_slices({"rows": data})
    trainer = Trainer(
        task, task.parameters(), optimizer, average, lambda host, hosts: rows, runtime, 0, step, guard
    )
    weights, passed_over = [], []
    for number in range(len(data)):
        metrics = trainer.train(tf.constant(1))
        guard.check(number + 1, float(metrics["loss"]), "line")
        passed_over.append(float(metrics["update_passed_over"]))
        weights.append(
            [copy.numpy().tolist() for copy in runtime.strategy.experimental_local_results(task.weight)]
        )
    state = {**guard.slots(), **optimizer.slots(), **average.slots()}
    spread = runtime.replica_spread(state)
    print(json.dumps({"weights": weights, "passed_over": passed_over, "spread": spread}))


if __name__ == "__main__":
    main()
