"""Stage 1's step: microbatches change nothing but memory."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.randomness import step_key
from basic_tf.towers.coatnet import CoAtNet
from basic_tf.training.tasks import Classification
from tests.contrastive.tiny_dual_encoder import TABLE

RNG = np.random.default_rng()


def step_of(tower, batch, loss, microbatch):
    """One step of a new model on the batch, as a tf.function without arguments."""
    task = Classification({"label_names": list("abcde")}, tower, loss=loss, microbatch=microbatch)
    variables = [v.value for v in task.parameters().values() if v.trainable]
    return tf.function(lambda: task.step(batch, step_key(3, 1), variables, None))


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_microbatches_give_the_step_of_the_whole_batch(loss):
    tower = functools.partial(
        CoAtNet, TABLE, image_size=32, stochastic_depth=0.2, batch_norm="ghost", ghost_size=2, dtype="float64",
        seed=int(RNG.integers(100)), initializer="fan_in",
    )  # fmt: skip
    batch = {
        "images": tf.constant(RNG.integers(0, 256, (8, 32, 32, 3), np.uint8)),
        "labels": tf.constant(RNG.integers(0, 2, (8, 5)).astype(np.float32)),
        "examples": tf.range(8),
    }
    results = []
    for microbatch in (None, 2):
        results.append(tf.nest.flatten(step_of(tower, batch, loss, microbatch)()))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_microbatches_take_the_fused_batch_norm():
    """It needs to know how many rows there are."""
    batch = {
        "images": tf.zeros((8, 32, 32, 3), tf.uint8), "labels": tf.zeros((8, 5)), "examples": tf.range(8)
    }  # fmt: skip
    tower = functools.partial(CoAtNet, TABLE, image_size=32, batch_norm="ghost", ghost_size=2)
    fused = []
    for microbatch in (None, 4):
        graph = step_of(tower, batch, "sigmoid", microbatch).get_concrete_function().graph
        inside = graph.as_graph_def().library.function
        nodes = [*graph.as_graph_def().node, *(node for function in inside for node in function.node_def)]
        fused.append({node.op for node in nodes if node.op.startswith("FusedBatchNorm")})
    assert fused[0] == fused[1] and fused[0]


def test_bfloat16_weights_have_gradients_summed_in_float32():
    """In bfloat16 a sum of 128 parts would be wrong from its third digit on."""
    batch = {
        "images": tf.constant(RNG.integers(0, 256, (256, 32, 32, 3), np.uint8)),
        "labels": tf.one_hot(RNG.integers(0, 5, 256), 5),
        "examples": tf.range(256),
    }
    tower = functools.partial(
        CoAtNet,
        TABLE,
        image_size=32,
        batch_norm="ghost",
        ghost_size=2,
        dtype="bfloat16",
        initializer="fan_in",
    )
    biases = []  # of the classifier: the sum over the rows of what float32 logits say
    for microbatch in (2, None):
        result = step_of(tower, batch, "softmax", microbatch)()
        assert {gradient.dtype for gradient in result.gradients} == {tf.float32}
        biases.append(result.gradients[-1].numpy())
    assert np.abs(biases[0] - biases[1]).max() < 0.01 * np.abs(biases[1]).max()
