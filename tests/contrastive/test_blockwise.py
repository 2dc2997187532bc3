"""Gradients applied block by block against the same update from whole-model gradients."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import randomness
from basic_tf.contrastive.blockwise import contrastive_step_by_block
from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.rules import Rule, RuleTable
from tests import tiny_data
from tests.contrastive import tiny_dual_encoder
from tests.contrastive.whole_model_update import (
    BEFORE_BATCH_NORM,
    KEY_BIASES,
    largest_difference,
    state_of,
    whole_model_step,
)

ROOT = Path(__file__).resolve().parents[2]
PAIRS, TILE, STEPS = 12, (5, 7), 2


def built(dtype, policy="ghost", remat="none", frozen=None):
    """(model, optimizer with slots in the arithmetic's type and a clip that bites)."""
    model = tiny_dual_encoder.tiny_model(dtype, policy, remat)
    cancelled = [KEY_BIASES, BEFORE_BATCH_NORM] if policy == "ghost" else [KEY_BIASES]
    rules = RuleTable([Rule("|".join(cancelled + ([frozen] if frozen else [])), frozen=True), Rule(".*")])
    optimizer = AdaFactorW(3e-3, momentum_dtype=None, rules=rules, factor_min_dim=8, update_clip=0.5)
    optimizer.build(model.parameters())
    return model, optimizer


def batches(seed: int):
    for step in range(STEPS):
        images, token_ids = tiny_dual_encoder.random_batch(PAIRS, seed + step)
        yield step, images, token_ids, randomness.step_key(seed, step)


def run_by_block(model, optimizer, count, seed):
    losses = []
    for step, images, token_ids, key in batches(seed):
        seen = []

        def apply(gradients, step=step, seen=seen):
            seen.extend(gradients)
            optimizer.apply(gradients, step=step)

        result = contrastive_step_by_block(
            model,
            images,
            token_ids,
            apply,
            optimizer.trained_paths(),
            PAIRS // count,
            noise_key=key,
            tile=TILE,
        )
        assert sorted(seen) == sorted(optimizer.trained_paths())  # each once
        if result.statistics:
            model.update_statistics(result.statistics)
        losses.append(float(result.loss))
    return losses


def run_whole(model, optimizer, seed):
    return [
        whole_model_step(model, optimizer, images, token_ids, step, noise_key=key, tile=TILE)
        for step, images, token_ids, key in batches(seed)
    ]


# Pairwise over: type, BatchNorm policy, remat, microbatches, what is frozen. Dropout and stochastic depth are on.
@pytest.mark.parametrize(
    ("dtype", "policy", "remat", "count", "frozen"),
    [
        ("float64", "ghost", "none", 3, None),
        ("float64", "frozen", "blocks", 1, "image_tower/(stem|stage1)/.*"),
        ("float64", "layer", "norms_and_activations", 2, "text_tower/.*"),
        ("float64", "ghost", "blocks", 6, "image_tower/.*|text_projection/.*|log_inverse_temperature"),
        ("float32", "ghost", "norms_and_activations", 2, None),
    ],
)
def test_equals_the_update_from_whole_model_gradients(dtype, policy, remat, count, frozen):
    # Slots hold gradients and their squares: in float32 they differ as gradients do, by the order of the sums.
    tolerance, slots_tolerance = (1e-12, 1e-12) if dtype == "float64" else (1e-6, 2e-5)
    model, optimizer = built(dtype, policy, remat, frozen)
    before = state_of(model, optimizer)
    losses = run_by_block(model, optimizer, count, seed=count)
    exact_model, exact_optimizer = built(dtype, policy, "none", frozen)
    np.testing.assert_allclose(losses, run_whole(exact_model, exact_optimizer, seed=count), rtol=tolerance)
    found = state_of(model, optimizer)
    trained = optimizer.trained_paths()
    assert sum(np.any(found[path] != before[path]) for path in trained) > 0.9 * len(trained)
    expected = state_of(exact_model, exact_optimizer)
    for paths, allowed in ((model.parameters(), tolerance), (optimizer.slots(), slots_tolerance)):
        error, where = largest_difference(
            *({path: state[path] for path in paths} for state in (found, expected))
        )
        assert error <= allowed, where


def test_a_projection_alone_is_trained_on_features_in_inference_mode():
    frozen = "image_tower/.*|text_tower/.*|text_projection/.*"
    model, optimizer = built("float64", frozen=frozen)
    losses = run_by_block(model, optimizer, 2, seed=9)
    exact_model, exact_optimizer = built("float64", frozen=frozen)
    assert losses == pytest.approx(run_whole(exact_model, exact_optimizer, seed=9), rel=1e-13)
    assert largest_difference(state_of(model, optimizer), state_of(exact_model, exact_optimizer))[0] < 1e-12


def test_only_one_blocks_gradients_are_alive():
    """Every gradient is dropped before the next block's are made: the references of `apply` are the last ones."""
    model, optimizer = built("float32", "layer")
    alive, most = [], 0
    sizes = {path: variable.shape.num_elements() for path, variable in model.parameters().items()}

    def apply(gradients):
        nonlocal most
        ((path, gradient),) = gradients.items()
        alive.append((path, weakref.ref(gradient)))
        most = max(most, sum(sizes[path] for path, reference in alive if reference() is not None))

    images, token_ids = tiny_dual_encoder.random_batch(PAIRS)
    contrastive_step_by_block(model, images, token_ids, apply, optimizer.trained_paths(), 4)
    assert most <= 2 * max(sizes.values()) < sum(sizes.values()) / 3


def test_errors_name_what_is_wrong():
    model, _ = built("float32", "layer")
    images, token_ids = tiny_dual_encoder.random_batch(PAIRS)
    with pytest.raises(ValueError, match=r"image_tower/head/kernel \(1 in all\): no block"):
        contrastive_step_by_block(model, images, token_ids, print, ["image_tower/head/kernel"])
    with pytest.raises(RuntimeError, match="outside any"):
        tf.function(lambda: contrastive_step_by_block(model, images, token_ids, print, []))()
    with pytest.raises(ValueError, match="nearest that do: 4, 6"):
        contrastive_step_by_block(model, images, token_ids, print, [], microbatch=5)


def tool(tmp_path, *arguments) -> dict:
    """The JSON object of tools/bench_basic_l_step.py over small made-up data."""
    tiny_data.make(str(tmp_path))
    command = [sys.executable, "tools/bench_basic_l_step.py", f"--data_dir={tmp_path}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_basic_s_equals_whole_model_gradients(tmp_path):
    report = tool(tmp_path, "--check", "--gin_file=gin/models/basic_s.gin", "--pairs=4")
    assert report["parameters"] > 130e6
    assert report["losses_by_block"] == pytest.approx(report["losses_whole_model"], rel=1e-5)
    # A bias that began at zero is nothing but its updates, and those of the stem's second convolution follow from a gradient
    # that BatchNorm nearly cancels: in float32 it shows 9e-6 to 2.3e-5, its momentum 2e-5 to 4.7e-5, by machine. Float64 is
    # exact above.
    assert report["max_parameter_error"] <= 5e-5, report["worst_parameter"]
    assert report["max_slot_error"] <= 1e-4, report["worst_slot"]


@pytest.mark.slow
def test_the_tool_measures_a_step(tmp_path):
    report = tool(
        tmp_path, "--gin_file=gin/models/basic_xs.gin", "--gin_binding=TextTransformer.vocabulary_size = 100"
    )
    assert report["loss_after"] < report["loss"]
    assert report["weights_gib"] < report["peak_gib"] < 4
    assert report["swapped_gib"] == 0
