"""Gradients of the second pass that go to an accumulator: what it gets, and the optimizer's slots as one."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import randomness
from basic_tf.contrastive.gradients import contrastive_gradients
from basic_tf.optimization.adafactorw import AdaFactorW
from tests.contrastive import small_dual_encoder
from tests.contrastive.dense_reference import exactness, full_batch_gradients
from tests.contrastive.small_dual_encoder import SmallModel

PAIRS, KEY = 24, (3, 5)


class Recorder:
    """Keeps every contribution; eager only."""

    def __init__(self, pieces=1):
        self.pieces, self.contributions = pieces, []

    def start(self, counts):
        self.counts = counts
        self.contributions = [[] for _ in counts]
        return [tf.zeros([]) for _ in counts]

    def add(self, state, found):
        for k, gradients in found.items():
            self.contributions[k].append([tf.convert_to_tensor(g) for g in gradients])
        return state

    def sums(self):
        return [tf.add_n([g for pieces in own for g in pieces]) for own in self.contributions]


def problem(frozen=()):
    model = SmallModel()
    variables = [
        v for p, v in model.parameters().items() if v.trainable and not p.startswith(tuple(frozen) or "-")
    ]
    return model, variables, *small_dual_encoder.random_batch(PAIRS), randomness.step_key(*KEY)


@pytest.mark.parametrize(
    ("microbatch", "frozen", "pieces", "options", "counts"),
    [
        (6, (), 1, {}, {4, 1}),
        (8, (), 2, {}, {3, 1}),
        (6, (), 1, {"reuse_last": True}, {4, 1}),
        (24, (), 3, {}, {1}),
        (6, ("image_tower/",), 3, {}, {4, 1}),
        (6, ("text_", "log_"), 1, {}, {4}),
    ],
)
def test_the_contributions_add_up_to_the_gradient(microbatch, frozen, pieces, options, counts):
    model, variables, images, token_ids, key = problem(frozen)
    recorder = Recorder(pieces)
    contrastive_gradients(
        model,
        images,
        token_ids,
        microbatch,
        noise_key=key,
        variables=variables,
        accumulator=recorder,
        **options,
    )
    expected = full_batch_gradients(model, images, token_ids, key, variables)[1]
    assert exactness(recorder.sums(), expected) <= 1e-12
    assert set(recorder.counts) == counts
    for count, own in zip(recorder.counts, recorder.contributions):
        assert len(own) == count
        assert all(len(found) == (1 if count == 1 else pieces) for found in own)


def trained(correction):
    """(first loss, loss of the fourth step, slots after the first, weights after the first)."""
    model, variables, images, token_ids, key = problem()
    optimizer = AdaFactorW(0.05, momentum_dtype=None, factor_min_dim=6)
    optimizer.build({p: v for p, v in model.parameters().items() if v.trainable})

    def one_step(step):
        sink = None
        if correction:
            sink = optimizer.accumulation(variables, step, correction=correction, sketch_width=1, pieces=2)
        found = contrastive_gradients(
            model, images, token_ids, 8, noise_key=key, variables=variables, accumulator=sink
        )
        if sink is None:
            optimizer.apply(found.gradients, variables, step=step)
        else:
            sink.apply(found.gradients)
        return found.loss

    # As the trainer traces it: no autograph.
    function = tf.function(one_step, autograph=False)
    first = float(function(tf.constant(0)))
    slots = {path: slot.numpy() for path, slot in optimizer.slots().items()}
    weights = {path: v.numpy() for path, v in model.parameters().items()}
    return first, [float(function(tf.constant(step))) for step in range(1, 4)][-1], slots, weights


@pytest.fixture(scope="module")
def exact():
    return trained(None)


@pytest.mark.parametrize("correction", ["sketch", "pieces"])
def test_the_slots_take_the_gradient(correction, exact):
    """Momenta equal those of the whole gradient; the following steps read what the last one assigned."""
    got = trained(correction)
    assert got[0] == pytest.approx(exact[0], rel=1e-13)
    assert got[1] < 0.8 * got[0]
    second = [path for path in exact[2] if "second_moment" in path]
    assert any("rows" in path for path in second)
    for path, slot in exact[2].items():
        if path.endswith("momentum"):
            assert np.linalg.norm(got[2][path] - slot) <= 1e-12 * np.linalg.norm(slot), path
    assert any(not np.allclose(got[2][path], exact[2][path], rtol=1e-3) for path in second)
    # The temperature comes whole, and so do small parameters with the sketch.
    exactly = ["log_inverse_temperature"] + (["image_tower/scale"] if correction == "sketch" else [])
    for path in exactly:
        np.testing.assert_allclose(got[3][path], exact[3][path], rtol=1e-13)


def test_what_an_accumulator_cannot_have():
    model, variables, images, token_ids, _ = problem()
    for arguments, message in (
        ({"accumulator": Recorder(4)}, "6 pairs cannot be cut into 4 pieces"),
        ({"accumulator": Recorder(2), "reuse_last": True}, "reuse_last"),
        (
            {"accumulator": Recorder(), "variables": [*variables, tf.Variable(0.0, name="odd")]},
            "odd.*parameters",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            contrastive_gradients(model, images, token_ids, 6, **arguments)
