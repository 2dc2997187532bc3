import numpy as np
import pytest

from basic_tf.evaluation.average_precision import MultiLabelClassifier, eleven_point


def oracle(scores, right):
    """The definition, threshold by threshold, over every cut of the ranking."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    cuts = []
    for k in range(1, len(order) + 1):
        hits = sum(bool(right[i]) for i in order[:k])
        cuts.append((hits / k, hits * 10, 10 * right.sum()))
    best = [max(p for p, tenfold, whole in cuts if tenfold * 10 >= point * whole) for point in range(11)]
    return sum(best) / 11


def test_against_the_definition():
    rng = np.random.default_rng()
    for _ in range(30):
        count = int(rng.integers(1, 60))
        right = rng.random(count) < 0.4
        right[rng.integers(count)] = True
        scores = rng.integers(0, 8, count) / 8.0  # with ties
        assert eleven_point(scores, right) == pytest.approx(oracle(scores, right))


def test_known_values():
    assert eleven_point(np.array([3.0, 2.0, 1.0]), np.array([True, True, False])) == 1.0
    # Precision 1/2 at every recall.
    assert eleven_point(np.array([3.0, 2.0]), np.array([False, True])) == 0.5


def test_classes_and_batches():
    rng = np.random.default_rng()
    weights = np.eye(4, dtype=np.float32)
    embeddings, labels = rng.random((23, 4)).astype(np.float32), rng.random((23, 4)) < 0.4
    labels[0] = True
    labels[:, 2] = False  # a class without pictures is left out of the mean
    classifier = MultiLabelClassifier(weights)
    classifier.update(embeddings[:9], labels[:9])
    classifier.update(embeddings[9:], labels[9:])
    result = classifier.result()
    expected = [oracle(embeddings[:, c], labels[:, c]) for c in (0, 1, 3)]
    assert result.mean_average_precision == pytest.approx(np.mean(expected))
    assert result.summary()["examples"] == 23 and np.isnan(result.average_precision_of[2])
    with pytest.raises(ValueError, match=r"expected labels \[2, 4\]"):
        classifier.update(embeddings[:2], labels[:2, :3])
    with pytest.raises(ValueError, match="is empty"):
        MultiLabelClassifier(weights).result()


def test_a_picture_that_is_left_out_for_a_class():
    """The devkit of VOC: neither right nor wrong, as if it were not there; for other classes it counts."""
    classifier = MultiLabelClassifier(np.eye(2, dtype=np.float32))
    embeddings = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], np.float32)
    classifier.update(embeddings, np.array([[-1, 0], [1, 0], [0, 0], [1, 1]], np.int8))
    precisions = classifier.result().average_precision_of
    np.testing.assert_allclose(precisions, [oracle(np.array([3, 2, 1]), np.array([1, 0, 1])), 1.0])
