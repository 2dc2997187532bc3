"""Estimates of the generalisation gap against embeddings whose population loss is known, and our bound by simulation."""

import math

import numpy as np
import pytest
import scipy.special

from basic_tf.contrastive import generalization, generalization_bound
from basic_tf.contrastive.loss import contrastive_loss
from tools.report import sphere


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")  # shown where a test fails
    return np.random.default_rng(seed)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense_losses(images, texts, s, own_pair):
    """The definition, pair by pair, in float64."""
    logits = s * images @ texts.T
    losses = []
    for i in range(len(images)):
        others = [k for k in range(len(images)) if own_pair or k != i]
        row = scipy.special.logsumexp(logits[i, others]) - math.log(len(others))
        column = scipy.special.logsumexp(logits[others, i]) - math.log(len(others))
        losses.append((row + column) / 2 - logits[i, i])
    return np.array(losses)


@pytest.mark.parametrize("own_pair", [True, False])
@pytest.mark.parametrize("s", [0.7, 14.3, 100.0])
def test_one_pool_is_the_definition(rng, own_pair, s):
    pairs = int(rng.integers(3, 40))
    images, texts = unit(rng.standard_normal((2, pairs, 7)).reshape(-1, 7)).reshape(2, pairs, 7)
    found = generalization.normalised_loss(images, texts, s, pairs, own_pair)
    assert found.value == pytest.approx(dense_losses(images, texts, s, own_pair).mean(), abs=1e-10)


def test_tiles_change_nothing(rng, monkeypatch):
    images, texts = (unit(rng.standard_normal((53, 5))) for _ in range(2))
    whole = generalization.normalised_loss(images, texts, 9.0, 53, False)
    terms = generalization.bias_terms(images, texts, 9.0)
    monkeypatch.setattr(generalization, "_TILE", 7)
    tiled = generalization.normalised_loss(images, texts, 9.0, 53, False)
    assert (tiled.value, tiled.standard_error) == pytest.approx(
        (whole.value, whole.standard_error), rel=1e-10
    )
    again = generalization.bias_terms(images, texts, 9.0)
    assert (again.variance, again.positive) == pytest.approx((terms.variance, terms.positive), rel=1e-10)


def test_a_batch_is_the_training_loss_less_log_b(rng):
    images, texts = (unit(rng.standard_normal((60, 6))) for _ in range(2))
    found = generalization.normalised_loss(images, texts, 5.0, 20, True, seed=3)
    order = np.random.default_rng((3, 0)).permutation(60)
    losses = [
        float(contrastive_loss(images[rows], texts[rows], np.float64(math.log(5.0))))
        for rows in order.reshape(3, 20)
    ]
    assert found.value == pytest.approx(np.mean(losses) - math.log(20), abs=1e-6)


def test_the_partition_function_against_bessel(rng):
    for _ in range(10):
        d, s = int(rng.integers(2, 200)), float(rng.uniform(0.05, 60))
        order = d / 2 - 1
        expected = (
            scipy.special.gammaln(d / 2) + order * math.log(2 / s) + math.log(scipy.special.ive(order, s)) + s
        )
        assert sphere.log_partition(d, s) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def draws(rng, repeats, pairs, d, s, cosine, pool, own_pair):
    """value and standard error of `repeats` independent estimates."""
    found = [
        generalization.normalised_loss(*sphere.sample(pairs, d, cosine, rng), s, pool, own_pair)
        for _ in range(repeats)
    ]
    return np.array([(estimate.value, estimate.standard_error) for estimate in found])


def test_the_bias_is_the_predicted_one(rng):
    """Mild temperature, so that the first order is all there is: both signs of the bias, within four deviations."""
    d, s, cosine, pool = 16, float(rng.uniform(1.5, 2.5)), float(rng.uniform(0.75, 0.95)), 32
    truth = sphere.population_loss(d, s, cosine)
    terms = generalization.BiasTerms(sphere.relative_variance(d, s), sphere.positive_weight(d, s, cosine))
    assert terms.in_batch(pool) > 0 > terms.left_out(pool - 1)
    for own_pair, predicted in ((False, terms.left_out(pool - 1)), (True, terms.in_batch(pool))):
        values = draws(rng, 150, 1024, d, s, cosine, pool, own_pair)[:, 0] - truth
        error = values.std(ddof=1) / math.sqrt(len(values))
        # The next order is at most about the square of the first over the pool.
        assert abs(values.mean() - predicted) < 4.5 * error + 0.15 * abs(predicted)
        assert abs(values.mean()) > 4 * error  # the bias is really seen


def test_bias_terms_are_found_from_data(rng):
    d, s, cosine = 24, 2.0, float(rng.uniform(0.2, 0.9))
    terms = generalization.bias_terms(*sphere.sample(3000, d, cosine, rng), s)
    assert terms.variance == pytest.approx(sphere.relative_variance(d, s), rel=0.03)
    assert terms.positive == pytest.approx(sphere.positive_weight(d, s, cosine), rel=0.01)


def world(rng, d=8, concepts=40):
    """Random features of a finite world: unit embeddings of K pairs with probabilities; its population loss is a sum."""
    images, texts = (unit(rng.standard_normal((concepts, d))) for _ in range(2))
    probabilities = rng.dirichlet(np.full(concepts, 3.0))
    return images, texts, probabilities


def world_loss(images, texts, probabilities, s):
    weights = np.exp(s * images @ texts.T)
    own = s * np.einsum("nd,nd->n", images, texts)
    row, column = np.log(weights @ probabilities), np.log(probabilities @ weights)
    return float(probabilities @ ((row + column) / 2 - own))


def test_standard_errors_tell_the_truth(rng):
    """In a world where queries and negatives both vary, (estimate - truth) / error has deviation 1."""
    images, texts, probabilities = world(rng)
    s, pairs = 2.0, 400
    truth = world_loss(images, texts, probabilities, s)
    for own_pair, partitions in ((False, 1), (True, 1), (True, 3)):
        scores = []
        for _ in range(150):
            chosen = rng.choice(len(images), pairs, p=probabilities)
            found = generalization.normalised_loss(
                images[chosen], texts[chosen], s, pairs // 2, own_pair, partitions
            )
            scores.append((found.value - truth) / found.standard_error)
        assert 0.75 < np.std(scores) < 1.3, (own_pair, partitions)
        assert abs(np.mean(scores)) < 0.6


def test_the_gaps_of_an_encoder_that_has_memorised(rng):
    """Train partners nearer than test partners by a known amount: the reference-pool gap is s (c_train - c_test)."""
    d, s, near, far = 16, 3.0, 0.9, 0.5
    train, test = sphere.sample(2000, d, near, rng), sphere.sample(1200, d, far, rng)
    found = generalization.gaps(train, test, s, batch=32, pool=600, partitions=2)
    truth = s * (near - far)
    assert found.pool == 600
    assert abs(found.reference_pool.value - truth) < 5 * found.reference_pool.standard_error + 0.01
    variance = sphere.relative_variance(d, s)
    biases = [
        generalization.BiasTerms(variance, sphere.positive_weight(d, s, c)).in_batch(32) for c in (near, far)
    ]
    assert biases[0] > 4 * biases[1] > 0
    expected = truth + biases[1] - biases[0]  # the bias does not cancel: the gap looks smaller than it is
    assert abs(found.same_estimator.value - expected) < 5 * found.same_estimator.standard_error + 0.04
    assert (
        abs(found.train_objective.value - (truth - biases[0]))
        < 5 * found.train_objective.standard_error + 0.04
    )


def test_a_small_batch_makes_the_theorems_gap_negative(rng):
    """The own pair in the denominator keeps the training loss above -log B; the population loss goes far below."""
    d, s, cosine = 64, 1 / 0.07, 0.5
    train, test = sphere.sample(2048, d, cosine, rng), sphere.sample(2048, d, cosine, rng)
    found = generalization.gaps(train, test, s, batch=16, pool=2048)
    assert found.train_objective.value < -1.5
    assert abs(found.same_estimator.value) < 5 * found.same_estimator.standard_error


@pytest.mark.slow
def test_rates(rng):
    """Root mean square errors over replications: -1/2 in the number of pairs, bias -1 in the pool."""
    # In a finite world: on the sphere every direction is like every other, the first-order noise is zero and the rate -1.
    images, texts, probabilities = world(rng)
    truth, sizes, errors = world_loss(images, texts, probabilities, 2.0), np.array([125, 250, 500, 1000]), []
    for size in sizes:
        found = []
        for _ in range(150):
            chosen = rng.choice(len(images), size, p=probabilities)
            found.append(
                generalization.normalised_loss(images[chosen], texts[chosen], 2.0, size, False).value
            )
        errors.append(math.sqrt(np.mean((np.array(found) - truth) ** 2)))
    assert -0.62 < np.polyfit(np.log(sizes), np.log(errors), 1)[0] < -0.38
    d, s, cosine = 16, 2.0, 0.8
    truth = sphere.population_loss(d, s, cosine)
    pools = np.array([16, 32, 64, 128])
    for own_pair in (False, True):
        biases = [
            abs(np.mean(draws(rng, 300, 1024, d, s, cosine, pool + (not own_pair), own_pair)[:, 0]) - truth)
            for pool in pools
        ]
        assert -1.2 < np.polyfit(np.log(pools), np.log(biases), 1)[0] < -0.8
    # The gaps: each of the three at its own rate towards the gap of an encoder that has memorised.
    near, far = 0.9, 0.6
    gap = s * (near - far)
    values = {"same_estimator": [], "reference_pool": [], "train_objective": []}
    for batch in pools:
        found = [
            generalization.gaps(
                sphere.sample(1024, d, near, rng), sphere.sample(1024, d, far, rng), s, int(batch), 256
            )
            for _ in range(150)
        ]
        for name, of_name in values.items():
            of_name.append(abs(np.mean([getattr(one, name).value for one in found]) - gap))
    for name in ("same_estimator", "train_objective"):
        assert -1.25 < np.polyfit(np.log(pools), np.log(values[name]), 1)[0] < -0.75, name
    assert max(values["reference_pool"]) < 0.1 * min(
        values["same_estimator"][0], values["train_objective"][0]
    )


def test_wrong_input_is_said(rng):
    rows = unit(rng.standard_normal((5, 3)))
    with pytest.raises(ValueError, match="a pool needs 2 to 5 pairs"):
        generalization.normalised_loss(rows, rows, 1.0, 6, False)
    with pytest.raises(ValueError, match="must be unit rows"):
        generalization.normalised_loss(rows, 2 * rows, 1.0, 5, False)
    with pytest.raises(ValueError, match="one shape"):
        generalization.normalised_loss(rows, rows[:4], 1.0, 4, False)
    with pytest.raises(ValueError, match="must be unit rows"):
        generalization.normalised_loss(rows * np.nan, rows, 1.0, 5, False)
    with pytest.raises(ValueError, match="inverse temperature"):
        generalization.normalised_loss(rows, rows, 0.0, 5, False)


def test_the_bound_by_simulation(rng):
    """Finite classes of random encoders of a finite world, everything but the sample exact: each term of the proof."""
    concepts, d, encoders, s, batch, batches, delta = 30, 4, 12, 0.4, 8, 6, 0.1
    pairs = batch * batches
    images = np.stack([unit(rng.standard_normal((concepts, d))) for _ in range(encoders)])
    texts = np.stack([unit(rng.standard_normal((concepts, d))) for _ in range(encoders)])
    probabilities = rng.dirichlet(np.full(concepts, 1.0))
    losses = np.array([[world_loss(f, g, probabilities, s) for g in texts] for f in images])
    logarithm = math.log(encoders)
    terms = generalization_bound.bound_terms(s, pairs, batch, logarithm, logarithm, delta)
    gaps, denominators, complexities = [], [], []
    for _ in range(30):
        chosen = rng.choice(concepts, pairs, p=probabilities)
        found = np.zeros((encoders, encoders))
        for rows in chosen.reshape(batches, batch):
            for a, f in enumerate(images):
                for b, g in enumerate(texts):
                    found[a, b] += dense_losses_fast(f[rows], g[rows], s) / batches
        gaps.append((losses - found).max())
        one = chosen[:batch]
        # sup over unit queries: many random ones, and the encoders' own; a lower bound of the supremum.
        queries = np.concatenate([unit(rng.standard_normal((300, d))), images.reshape(-1, d)])
        weights = np.exp(s * np.einsum("qd,gkd->gqk", queries, texts))
        difference = np.log(weights @ probabilities) - np.log(weights[..., one].mean(-1))
        denominators.append(max(0.0, difference.max()))
        signs = rng.choice([-1.0, 1.0], batch)
        complexities.append(
            np.linalg.norm(np.einsum("k,gkd->gd", signs, texts[:, one]) / batch, axis=1).max()
        )
    bound = math.exp(terms.total)
    assert 0 < np.max(gaps) <= bound
    # Term by term: symmetrisation and contraction, with the simulated complexity, then the complexity itself.
    assert np.mean(denominators) <= 2 * s * math.exp(2 * s) * np.mean(complexities)
    assert np.mean(complexities) <= generalization_bound.vector_complexity(logarithm, batch)
    expected = 2 * s * math.exp(2 * s) * generalization_bound.vector_complexity(logarithm, batch)
    assert math.exp(terms.denominators) == pytest.approx(expected)


def dense_losses_fast(images, texts, s):
    weights = np.exp(s * images @ texts.T)
    own = s * np.einsum("nd,nd->n", images, texts)
    return float(np.mean(0.5 * (np.log(weights.mean(1)) + np.log(weights.mean(0))) - own))


def test_one_text_moves_a_denominator_by_at_most_the_constant(rng):
    """The constant of McDiarmid's inequality is reached by the worst batch and never passed by random ones."""
    s, batch = float(rng.uniform(0.2, 4)), int(rng.integers(2, 50))
    constant = math.log1p((math.exp(2 * s) - 1) / batch)
    worst = np.full(batch, -1.0)
    moved = worst.copy()
    moved[0] = 1.0

    def log_mean(cosines):
        return math.log(np.mean(np.exp(s * cosines)))

    assert log_mean(moved) - log_mean(worst) == pytest.approx(constant)
    for _ in range(200):
        cosines = rng.uniform(-1, 1, batch)
        other = cosines.copy()
        other[0] = rng.uniform(-1, 1)
        assert abs(log_mean(cosines) - log_mean(other)) <= constant


def test_the_bound_shrinks_at_its_rates():
    def at(pairs, batch):
        return generalization_bound.bound_terms(14.3, pairs, batch, 1e6, 2e6)

    assert at(4 * 4096, 512).queries == pytest.approx(at(4096, 512).queries - math.log(2))
    assert at(4096, 512).denominators == pytest.approx(at(4096, 128).denominators - math.log(2))
    assert at(4096, 512).total_log10 > 12  # exp(2 s): no statement about a real model
    assert math.isfinite(at(4096, 512).total) and math.isfinite(
        generalization_bound.bound_terms(340.0, 64, 64, 0.0, 0.0).total
    )
    with pytest.raises(ValueError, match="at least one batch"):
        at(10, 20)
