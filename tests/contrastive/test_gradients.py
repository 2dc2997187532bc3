import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import randomness
from basic_tf.contrastive import gradients as gradients_module
from basic_tf.contrastive.gradients import contrastive_gradients, microbatched_gradients
from tests.contrastive import exactness_grid, small_dual_encoder
from tests.contrastive.dense_reference import exactness, full_batch_gradients
from tests.contrastive.small_dual_encoder import SmallModel

PAIRS, KEY = 24, (3, 5)
DOUBLE, SINGLE = 1e-12, 2e-5


def batch_and_key(pairs=PAIRS, seed=0):
    return *small_dual_encoder.random_batch(pairs, seed), randomness.step_key(*KEY)


def of_paths(model, frozen=()):
    return [v for path, v in model.parameters().items() if v.trainable and not path.startswith(tuple(frozen))]


# Pairwise over: microbatches, normalization, what is frozen, tile, mode, reuse_last.
@pytest.mark.parametrize(
    ("count", "normalization", "frozen", "tile", "mode", "reuse_last"),
    [
        (1, "ghost", (), (5, 7), "graph", False),
        (2, "ghost", (), 24, "eager", True),
        (3, "ghost", (), (5, 7), "graph", True),
        (12, "ghost", (), 4, "graph", False),
        (8, "frozen", (), (5, 24), "eager", False),
        (8, "none", (), (5, 7), "graph", True),
        (1, "frozen", ("image_",), 4, "eager", False),
        (3, "ghost", ("image_",), (5, 7), "graph", False),
        (8, "none", ("image_",), 24, "eager", True),
        (2, "ghost", ("image_tower/",), (7, 5), "graph", False),
        (3, "frozen", ("image_tower/",), 24, "eager", True),
        (2, "frozen", ("text_",), (5, 7), "graph", True),
        (3, "ghost", ("image_", "text_"), 4, "graph", False),
        (3, "ghost", ("image_tower/first", "log_"), (5, 7), "graph", False),
        (3, "ghost", (), (5, 7), "xla", False),
    ],
)
def test_float64_equals_the_full_batch(count, normalization, frozen, tile, mode, reuse_last):
    model = SmallModel(normalization=normalization)
    images, token_ids, key = batch_and_key(seed=count)
    variables = of_paths(model, frozen)

    def run():
        return contrastive_gradients(
            model, images, token_ids, PAIRS // count, noise_key=key, variables=variables, tile=tile,
            reuse_last=reuse_last,
        )  # fmt: skip

    found = (run if mode == "eager" else tf.function(run, jit_compile=mode == "xla"))()
    loss, expected, statistics = full_batch_gradients(model, images, token_ids, key, variables)
    assert exactness(found.gradients, expected) <= DOUBLE
    assert float(found.loss) == pytest.approx(float(loss), rel=1e-13)
    assert len(found.statistics) == len(statistics)
    for x, y in zip(found.statistics, statistics):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
    assert all(g.shape == v.shape for g, v in zip(found.gradients, variables))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_float32_equals_the_float64_full_batch(count):
    images, token_ids, key = batch_and_key()
    wide = SmallModel(tf.float64, "none")
    single = SmallModel(tf.float32, "none")
    expected = full_batch_gradients(wide, images, token_ids, key)[1]
    found = contrastive_gradients(single, images, token_ids, PAIRS // count, noise_key=key, tile=(5, 7))
    assert exactness(found.gradients, expected) <= SINGLE


def test_the_trainer_traces_microbatches_without_autograph():
    model = SmallModel(tf.float32)
    images, token_ids, key = batch_and_key()

    def run(microbatch):
        return microbatched_gradients(model, images, token_ids, microbatch, noise_key=key)

    loss, gradients = tf.function(lambda: run(PAIRS // 3), autograph=False)()
    expected_loss, expected = run(None)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert exactness(gradients, expected) < SINGLE


def test_two_value_form_smoothing_and_float_images():
    model = SmallModel()
    images, token_ids, key = batch_and_key()
    images = tf.cast(images, tf.float64) / 127.5 - 1
    loss, found = microbatched_gradients(model, images, token_ids, 6, noise_key=key, label_smoothing=0.1)
    expected = full_batch_gradients(model, images, token_ids, key, label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-13)
    assert exactness(found, expected[1]) <= DOUBLE


def test_functions_of_the_microbatch_index_and_explicit_examples():
    model = SmallModel()
    images, token_ids, key = batch_and_key()

    @tf.function
    def run():
        return contrastive_gradients(
            model, lambda i: images[i * 6 : i * 6 + 6], lambda i: token_ids[i * 6 : i * 6 + 6], 6,
            noise_key=key, batch=PAIRS, examples=np.arange(PAIRS, dtype=np.int32),
        )  # fmt: skip

    expected = full_batch_gradients(model, images, token_ids, key)[1]
    assert exactness(run().gradients, expected) <= DOUBLE


def test_a_users_own_function_is_converted_without_complaint(capfd):
    """AutoGraph must read it: a warning that asks to be reported would be all that a user sees."""
    model = SmallModel()
    images, token_ids, key = batch_and_key()
    code = tf.function(lambda: microbatched_gradients(model, images, token_ids, 6, noise_key=key))
    assert exactness(code()[1], full_batch_gradients(model, images, token_ids, key)[1]) <= DOUBLE
    assert "AutoGraph" not in capfd.readouterr().err


def test_a_variable_that_the_loss_does_not_depend_on_is_named():
    model = SmallModel()
    images, token_ids, _ = batch_and_key()
    stranger = tf.Variable(tf.ones([3], tf.float64), name="stranger")
    for microbatch in (None, 6):
        with pytest.raises(ValueError, match=r"does not depend on stranger.*\(1 in all\)"):
            variables = [*model.trainable_variables, stranger]
            contrastive_gradients(model, images, token_ids, microbatch, variables=variables)


def test_no_noise_and_no_training():
    model = SmallModel()
    images, token_ids, _ = batch_and_key()
    off = contrastive_gradients(model, images, token_ids, 6)
    assert exactness(off.gradients, full_batch_gradients(model, images, token_ids)[1]) <= DOUBLE
    inference = contrastive_gradients(model, images, token_ids, 6, training=False)
    assert inference.statistics == []
    assert exactness(inference.gradients, off.gradients) > 1e-3  # moving statistics instead of the batch's


def test_bfloat16_weights_accumulate_in_float32():
    model = SmallModel(tf.float32, "none")
    images, token_ids, key = batch_and_key()
    gradients = contrastive_gradients(model, images, token_ids, 6, noise_key=key).gradients
    model._parameters["image_projection/kernel"] = tf.Variable(
        tf.cast(model._parameters["image_projection/kernel"], tf.bfloat16)
    )
    original = model._unit
    model.project_image = lambda x: original(
        x @ tf.cast(model._parameters["image_projection/kernel"], x.dtype)
    )
    found = contrastive_gradients(model, images, token_ids, 6, noise_key=key).gradients
    assert all(g.dtype == tf.float32 for g in found)
    assert exactness(found, gradients) < 0.05


def counting_nodes(run):
    graph = tf.function(run).get_concrete_function().graph
    definition = graph.as_graph_def()
    return len(definition.node) + sum(len(f.node_def) for f in definition.library.function)


@pytest.mark.parametrize("reuse_last", [False, True])
def test_graph_does_not_grow_with_microbatches(reuse_last):
    model = SmallModel()
    images, token_ids, key = batch_and_key(64)
    nodes = {
        counting_nodes(
            lambda m=m: (
                contrastive_gradients(
                    model, images, token_ids, m, noise_key=key, tile=32, reuse_last=reuse_last
                ).gradients
            )
        )
        for m in (2, 8, 32)
    }
    assert len(nodes) == 1


@pytest.mark.parametrize("frozen", [("image_",), ("image_tower/",)])
def test_a_frozen_tower_runs_once(frozen):
    model = SmallModel()
    images, token_ids, key = batch_and_key()
    contrastive_gradients(model, images, token_ids, 6, noise_key=key, variables=of_paths(model, frozen))
    assert model.calls == {"image": 4, "text": 8}
    model.calls = {"image": 0, "text": 0}
    contrastive_gradients(model, images, token_ids, noise_key=key)
    assert model.calls == {"image": 1, "text": 1}  # one microbatch: no second forward


# What must not pass: each of these slipped into a public implementation once. The check must see them all.


def error_of(model, **options):
    images, token_ids, key = batch_and_key()
    expected = full_batch_gradients(SmallModel(), images, token_ids, key)
    found = contrastive_gradients(model, images, token_ids, 6, noise_key=key, **options)
    statistics = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(found.statistics, expected[2])]
    return exactness(found.gradients, expected[1]), max(statistics)


def test_the_check_passes_unbroken():
    error, statistics = error_of(SmallModel())
    assert error <= DOUBLE
    assert statistics <= 1e-12


def test_break_loss_per_microbatch(monkeypatch):
    original = gradients_module.loss_value_and_gradients

    def per_microbatch(images, texts, log_scale, **options):
        parts = [
            original(f, g, log_scale, **options) for f, g in zip(tf.split(images, 4), tf.split(texts, 4))
        ]
        mean = [sum(p[k] for p in parts) / 4 for k in (0, 3)]
        rows = [tf.concat([p[k] for p in parts], 0) / 4 for k in (1, 2)]
        return parts[0]._replace(
            loss=mean[0], image_embeddings=rows[0], text_embeddings=rows[1], log_inverse_temperature=mean[1]
        )

    monkeypatch.setattr(gradients_module, "loss_value_and_gradients", per_microbatch)
    assert error_of(SmallModel())[0] > 1e-3


def test_break_dropout_redrawn():
    model = SmallModel()
    original, calls = model.text_embeddings, []

    def redrawn(token_ids, training, noise):
        calls.append(0)
        key = noise.key + tf.cast(len(calls) > 4, tf.uint32)  # the second pass draws anew
        return original(token_ids, training, noise._replace(key=key))

    model.text_embeddings = redrawn
    assert error_of(model)[0] > 1e-3


def test_break_statistics_moved_between_the_passes():
    model = SmallModel(normalization="frozen")
    images, token_ids, key = batch_and_key()
    expected = full_batch_gradients(model, images, token_ids, key)[1]
    original, calls = model.image_embeddings, []

    def moving(images, training, noise):
        calls.append(0)
        if len(calls) > 1:
            model.update_statistics([tf.fill([small_dual_encoder.WIDTH], tf.constant(0.1, tf.float64))] * 2)
        return original(images, training, noise)

    model.image_embeddings = moving
    found = contrastive_gradients(model, images, token_ids, 6, noise_key=key)
    assert exactness(found.gradients, expected) > 1e-3


def test_break_statistics_counted_twice(monkeypatch):
    original = gradients_module.Statistics.mean
    monkeypatch.setattr(gradients_module.Statistics, "mean", lambda *a: [2 * x for x in original(*a)])
    error, statistics = error_of(SmallModel())
    assert error <= DOUBLE
    assert statistics > 1e-3


def averages_after_one_step(model):
    """The moving averages after Algorithm 1 and one update, and what the full batch moves them to."""
    images, token_ids, key = batch_and_key()
    statistics = full_batch_gradients(SmallModel(), images, token_ids, key)[2]
    expected = [0.9 * v.numpy() + 0.1 * s.numpy() for v, s in zip(model.statistic_variables, statistics)]
    found = contrastive_gradients(model, images, token_ids, 6, noise_key=key)
    model.update_statistics(found.statistics)
    return np.concatenate([v.numpy() for v in model.statistic_variables]), np.concatenate(expected)


def test_moving_averages_move_once():
    np.testing.assert_allclose(*averages_after_one_step(SmallModel()), rtol=1e-12, atol=1e-14)


def test_break_moving_averages_moved_in_every_pass():
    """What BatchNorm inside a recomputed or repeated forward pass does."""
    model = SmallModel()
    original = model.image_embeddings

    def moving(images, training, noise):
        rows, statistics = original(images, training, noise)
        model.update_statistics(statistics)
        return rows, statistics

    model.image_embeddings = moving
    found, expected = averages_after_one_step(model)
    assert np.abs(found - expected).max() > 1e-2


@pytest.mark.parametrize("what", ["image_embeddings", "text_embeddings", "log_inverse_temperature"])
@pytest.mark.parametrize("factor", [1 / 4, 4])  # averaged over the microbatches, or counted once for each
def test_break_stray_factor_of_n(monkeypatch, what, factor):
    original = gradients_module.loss_value_and_gradients

    def scaled(*arguments, **options):
        value = original(*arguments, **options)
        return value._replace(**{what: getattr(value, what) * factor})

    monkeypatch.setattr(gradients_module, "loss_value_and_gradients", scaled)
    assert error_of(SmallModel())[0] > 1e-3


def test_break_noise_by_the_place_in_the_microbatch():
    assert error_of(SmallModel(), examples=tf.tile(tf.range(6), [4]))[0] > 1e-3


def test_errors_say_what_was_received():
    model = SmallModel()
    images, token_ids, _ = batch_and_key()
    with pytest.raises(ValueError, match=r"24 pairs .* microbatches of 5.*: 4, 6"):
        contrastive_gradients(model, images, token_ids, 5)
    with pytest.raises(ValueError, match=r"microbatches of 30.*: 24\."):
        contrastive_gradients(model, images, token_ids, 30)
    with pytest.raises(ValueError, match="as many rows"):
        contrastive_gradients(model, images, token_ids[:-1], 6)
    with pytest.raises(ValueError, match="batch"):
        contrastive_gradients(model, lambda i: images[:6], lambda i: token_ids[:6], 6)
    with pytest.raises(ValueError, match=r"examples are \(9,\).*each of the 24"):
        contrastive_gradients(model, images, token_ids, 6, examples=np.arange(9))
    with pytest.raises(ValueError, match="at least one"):
        contrastive_gradients(model, images[:0], token_ids[:0], 6)
    with pytest.raises(ValueError, match="returned 6 rows; expected 8"):
        contrastive_gradients(model, lambda i: images[:6], token_ids, 8)


def replica_report(replicas, dtype):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.contrastive.replicas_process", str(replicas), dtype]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("replicas", "dtype"),
    [
        (2, "float64"),
        pytest.param(1, "float64", marks=pytest.mark.slow),
        pytest.param(4, "float64", marks=pytest.mark.slow),
        pytest.param(2, "float32", marks=pytest.mark.slow),
    ],
)
def test_replicas_share_one_batch(replicas, dtype):
    report = replica_report(replicas, dtype)
    bound = DOUBLE if dtype == "float64" else SINGLE
    assert max(report.pop("embeddings").values()) <= bound
    for case, found in report.items():
        assert found["error"] <= bound, case
        assert found["loss"] <= bound * 10, case
        assert found["statistics"] <= bound, case


def test_real_towers_in_a_graph():
    # A batch of unknown size, a frozen tower whose features come out of a loop.
    case = exactness_grid.Case(1, "float64", "ghost", "blocks", "image_tower", 3, "graph")
    assert exactness_grid.faults([exactness_grid.Runner(1).row(case)]) == []


def test_the_pairwise_selection_holds_every_pair():
    everything = [exactness_grid.Case(*values) for values in itertools.product(*exactness_grid.AXES.values())]
    pairs = set().union(*(exactness_grid.pairs_of(case) for case in everything))
    for chosen in (exactness_grid.PAIRWISE, exactness_grid.cases()):
        assert set().union(*(exactness_grid.pairs_of(case) for case in chosen)) == pairs


def assert_exact(chosen):
    rows = exactness_grid.run(chosen)
    assert len(rows) == len(chosen)
    assert exactness_grid.faults(rows) == []


# With four replicas the cheapest case alone; the others take half a minute.
FOUR = [case for case in exactness_grid.PAIRWISE if case.replicas == 4]


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param([case for case in exactness_grid.PAIRWISE if case.replicas == 1], id="1"),
        pytest.param([case for case in exactness_grid.PAIRWISE if case.replicas == 2], id="2"),
        pytest.param(FOUR[:1], id="4"),
        pytest.param(FOUR[1:], id="4-slow", marks=pytest.mark.slow),
    ],
)
def test_real_towers_pairwise(chosen):
    assert_exact(chosen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", exactness_grid.pieces(exactness_grid.cases()), ids=lambda p: "-".join(map(str, p[0][:3]))
)
def test_the_whole_grid(piece):
    assert_exact(piece)
