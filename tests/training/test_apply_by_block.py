"""The trainer with `Contrastive.apply_by_block` against steps from whole-model gradients."""

import types

import pytest
import tensorflow as tf

from basic_tf import randomness
from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.rules import Rule, RuleTable
from basic_tf.parallel import runtime as runtime_lib
from basic_tf.parallel import strategies
from basic_tf.training.tasks import Contrastive
from basic_tf.training.trainer import Trainer
from tests.contrastive import tiny_dual_encoder
from tests.contrastive.whole_model_update import KEY_BIASES, largest_difference, state_of, whole_model_step

PAIRS, SEED = 8, 3


def task_and_optimizer():
    task = Contrastive(
        None, lambda: tiny_dual_encoder.tiny_model("float64", "frozen"), microbatch=4, apply_by_block=True
    )
    rules = RuleTable([Rule(KEY_BIASES, frozen=True), Rule(".*")])
    optimizer = AdaFactorW(3e-3, momentum_dtype=None, rules=rules)
    optimizer.build(task.parameters())
    return task, optimizer


def rows(host=0, hosts=1):
    images, token_ids = tiny_dual_encoder.random_batch(2 * PAIRS)
    fields = {"images": images, "token_ids": token_ids, "examples": tf.range(2 * PAIRS) % PAIRS}
    return tf.data.Dataset.from_tensor_slices(fields).batch(PAIRS, drop_remainder=True)


def trainer_for(task, optimizer, runtime):
    trained = {path: task.parameters()[path] for path in optimizer.trained_paths()}
    step = tf.Variable(0, dtype=tf.int64)
    return Trainer(task, trained, optimizer, None, rows, runtime, SEED, step)


def test_the_trainer_applies_gradients_by_block():
    task, optimizer = task_and_optimizer()
    trainer = trainer_for(task, optimizer, strategies.create("one_device"))
    metrics = trainer.train(tf.constant(2))
    assert int(trainer.global_step) == 2

    exact, exact_optimizer = task_and_optimizer()
    for step, batch in enumerate(rows()):
        temperature = float(tf.exp(-exact.model.log_inverse_temperature))
        loss = whole_model_step(
            exact.model, exact_optimizer, batch["images"], batch["token_ids"], step,
            noise_key=randomness.step_key(SEED, step),
        )  # fmt: skip
        exact.constrain()
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-13)
    assert float(metrics["temperature"]) == pytest.approx(temperature, rel=1e-12)
    error, where = largest_difference(state_of(task.model, optimizer), state_of(exact.model, exact_optimizer))
    assert error < 1e-12, where


def test_several_replicas_are_refused():
    task, optimizer = task_and_optimizer()
    several = types.SimpleNamespace(
        replicas=2,
        name="mirrored",
        host_loop=True,
        collectives=object(),
        step_function=lambda function: function,
    )
    with pytest.raises(runtime_lib.DeviceError, match="mirrored has 2 replicas"):
        trainer_for(task, optimizer, several)
