"""Linear probes against float64 solutions found another way."""

import numpy as np
import pytest

from basic_tf.evaluation import probe


@pytest.fixture
def rng():
    return np.random.default_rng()


def problem(rng, count=90, width=7, classes=4, noise=0.8):
    centres = rng.normal(size=(classes, width))
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    return centres[labels] + noise * rng.normal(size=(count, width)) + 3.0, labels


def least_squares(features, labels, classes, penalty):
    """Ridge with an intercept that is not penalised, as one least-squares problem with rows for the penalty."""
    count, width = features.shape
    rows = np.sqrt(count * penalty) * np.eye(width)
    design = np.block([[features, np.ones((count, 1))], [rows, np.zeros((width, 1))]])
    targets = np.concatenate([np.eye(classes)[labels], np.zeros((width, classes))])
    solution = np.linalg.lstsq(design, targets, rcond=None)[0]
    return solution[:-1], solution[-1]


@pytest.mark.parametrize(("count", "width"), [(90, 7), (12, 31)])
def test_ridge_is_the_least_squares_solution(rng, count, width):
    features, labels = problem(rng, count, width)
    penalty = float(10 ** rng.uniform(-3, 0))
    found = probe.ridge(features, labels, 4, [penalty])
    weights, intercept = least_squares(features, labels, 4, penalty)
    np.testing.assert_allclose(found.weights, weights, atol=1e-9)
    np.testing.assert_allclose(found.intercept, intercept, atol=1e-8)


def test_the_penalty_is_that_of_the_leave_one_out_error(rng):
    features, labels = problem(rng, 25, 9)
    penalties = [1e-4, 1e-2, 1.0]
    errors = []
    for penalty in penalties:
        squares = []
        for left_out in range(25):
            kept = np.arange(25) != left_out
            # The penalty counts per example: 25 of them in both fits.
            weights, intercept = least_squares(features[kept], labels[kept], 4, penalty * 25 / 24)
            squares.append((features[left_out] @ weights + intercept - np.eye(4)[labels[left_out]]) ** 2)
        errors.append(np.mean(squares))
    assert probe.ridge(features, labels, 4, penalties).penalty == penalties[int(np.argmin(errors))]


def test_logistic_regression_is_the_minimum(rng):
    """Newton's method on the same objective, in float64."""
    features, labels = problem(rng, 60, 3, 3)
    penalty = 0.05
    found = probe.logistic(features, labels, 3, penalty)
    design = np.concatenate([features, np.ones((60, 1))], 1)
    solution = np.zeros((4, 3))
    decay = penalty * np.diag([1.0, 1.0, 1.0, 0.0])
    for _ in range(30):
        logits = design @ solution
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = design.T @ (p - np.eye(3)[labels]) / 60 + decay @ solution
        blocks = np.einsum("na,nb,nc,cd->acbd", design, design, p, np.eye(3)) / 60
        blocks -= np.einsum("na,nb,nc,nd->acbd", design, design, p, p) / 60
        hessian = blocks.reshape(12, 12) + np.kron(decay, np.eye(3))
        # The intercepts' common shift changes nothing: the least-norm step.
        solution -= (np.linalg.pinv(hessian, rcond=1e-10) @ gradient.ravel()).reshape(4, 3)
    np.testing.assert_allclose(found.weights, solution[:3], atol=2e-5)
    difference = found.intercept - solution[3]
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-4)


def test_curves_rise_and_repeat(rng):
    centres = rng.normal(size=(5, 6))

    def draw(count):
        labels = rng.integers(0, 5, count)
        return centres[labels] + 0.9 * rng.normal(size=(count, 6)), labels

    train, test = draw(400), draw(1000)
    curve = probe.few_shot_curve(train, test, 5, shots=(32, 1, 4, 10_000), draws=4, seed=3)
    assert [point.shots for point in curve] == [1, 4, 32]
    assert curve[0].accuracy < curve[1].accuracy < curve[2].accuracy and curve[0].deviation > 0
    assert probe.few_shot_curve(train, test, 5, shots=(1, 4, 32), draws=4, seed=3) == curve
    everything = probe.ridge(*train, 5).accuracy(*test)
    largest = int(np.bincount(train[1]).max())
    (point,) = probe.few_shot_curve(train, test, 5, shots=(largest,), draws=1)
    assert point.accuracy == pytest.approx(everything)


def test_wrong_input(rng):
    features, labels = problem(rng)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        probe.ridge(features, labels, 3)
    with pytest.raises(ValueError, match="not finite"):
        probe.ridge(np.where(features > 3, np.nan, features), labels, 4)
    with pytest.raises(ValueError, match="features \\[N, D\\]"):
        probe.ridge(features, labels[1:], 4)
    with pytest.raises(ValueError, match="penalty > 0"):
        probe.logistic(features, labels, 4, 0.0)
    with pytest.raises(RuntimeError, match="has not converged after 2"):
        probe.logistic(features, labels, 4, 1e-6, iterations=2)
