"""Zero-shot classification against float64 NumPy written out in full."""

import numpy as np
import pytest

from basic_tf.evaluation import zero_shot
from basic_tf.evaluation.prompts import class_prompts


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class WordEncoder:
    """Texts to fixed random unit vectors; counts what it is asked."""

    embedding_dim = 19

    def __init__(self, scale=1.0):
        self.asked = []
        self.scale = scale

    def embed(self, text):
        seed = np.frombuffer(text.encode().ljust(4, b"."), np.uint8)
        return unit(np.random.default_rng(seed).normal(size=self.embedding_dim)) * self.scale

    def encode_text(self, texts):
        self.asked += list(texts)
        return np.stack([self.embed(text) for text in texts]).astype(np.float32)


def random_case(seed, pictures=257, classes=23, width=19):
    rng = np.random.default_rng(seed)
    weights = unit(rng.normal(size=(classes, width))).astype(np.float32)
    labels = rng.integers(0, classes - 2, pictures)  # the last two classes have no picture
    embeddings = unit(weights[labels] + 0.35 * rng.normal(size=(pictures, width))).astype(np.float32)
    return weights, embeddings, labels


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_class_weights(chunk):
    names = ["cat", "red apple", "house of 7 gables", ["dog", "hound"], "cat"]
    templates = ("{}", "a picture of a {}", "{}!")
    encoder = WordEncoder(scale=3.0)  # rows that are not unit are normalised before the mean
    received = zero_shot.class_weights(encoder, class_prompts(names, templates), chunk=chunk)
    plain = WordEncoder()
    expected = []
    for texts in names:
        texts = [texts] if isinstance(texts, str) else texts
        rows = [plain.embed(template.replace("{}", text)) for text in texts for template in templates]
        expected.append(unit(np.mean(rows, axis=0)))
    np.testing.assert_allclose(received, expected, atol=1e-6)
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received[0], received[4])
    assert len(encoder.asked) == 3 * 5  # the repeated class is embedded once


def test_class_weights_are_a_plain_sum_to_the_bit():
    """Chunks, and classes that lie across them, change no bit: prompts are added one by one, in their order."""
    rng = np.random.default_rng()
    class_texts = [
        tuple(f"{index} {row} {rng.integers(1 << 30)}" for row in range(size))
        for index, size in enumerate(rng.integers(1, 40, 12))
    ]
    encoder = WordEncoder()
    encoder.embed = lambda text: unit(np.random.default_rng([*text.encode()]).normal(size=19))
    sums = np.zeros((12, 19))
    for index, texts in enumerate(class_texts):
        for row in encoder.encode_text(texts).astype(np.float64):
            sums[index] += row / np.linalg.norm(row[None], axis=1)
    for chunk in (1, 7, 64, None):
        received = zero_shot.class_weights(encoder, class_texts, chunk=chunk)
        np.testing.assert_array_equal(
            received, (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
        )


def test_unusable_text_embeddings():
    class Broken(WordEncoder):
        def embed(self, text):
            return super().embed(text) * (np.nan if "dog" in text else 1)

    with pytest.raises(ValueError, match="embedding of 'a dog' is zero or not finite"):
        zero_shot.class_weights(Broken(), [("a cat",), ("a dog",)])
    with pytest.raises(ValueError, match="at least one class"):
        zero_shot.class_weights(WordEncoder(), [("a cat",), ()])


@pytest.mark.parametrize("seed", range(3))
def test_counts(seed):
    weights, embeddings, labels = random_case(seed)
    classifier = zero_shot.ZeroShotClassifier(weights, keep=40)
    for start in range(0, len(labels), 60):  # in pieces
        classifier.update(embeddings[start : start + 60], labels[start : start + 60])
    result = classifier.result()
    scores = embeddings.astype(np.float64) @ weights.T.astype(np.float64)
    best = scores.argmax(1)
    assert 0.2 < result.top1 < 0.95  # neither trivial
    assert result.top1 == pytest.approx(np.mean(best == labels), abs=1e-12)
    five = np.argsort(-scores, axis=1)[:, :5]
    assert result.top5 == pytest.approx(
        np.mean([label in row for label, row in zip(labels, five)]), abs=1e-12
    )
    recall = [np.mean(best[labels == label] == label) for label in np.unique(labels)]  # classes with pictures
    assert result.mean_per_class == pytest.approx(np.mean(recall), abs=1e-12)
    assert result.standard_error == pytest.approx(np.sqrt(result.top1 * (1 - result.top1) / 257), abs=1e-12)
    summary = result.summary()
    assert (summary["examples"], summary["classes"]) == (257, 23)
    assert len(result.kept_labels) == 40
    np.testing.assert_array_equal(result.kept_predictions[:, 0], best[:40])
    np.testing.assert_array_equal(result.kept_predictions, np.argsort(-scores[:40], axis=1)[:, :5])
    np.testing.assert_allclose(result.kept_scores, np.sort(scores[:40], axis=1)[:, :-6:-1], atol=1e-6)
    np.testing.assert_array_equal(result.kept_records, np.arange(40))


def test_ties_go_to_the_lowest_class():
    """Classes 2, 5 and 6 are the same; a picture of 5 or 6 is always predicted as 2, one of 2 always
    right.
    """
    rng = np.random.default_rng(9)
    weights = unit(rng.normal(size=(301, 64))).astype(np.float32)
    weights[[5, 6, 300]] = weights[2]
    labels = np.array([2, 5, 6, 300])
    classifier = zero_shot.ZeroShotClassifier(weights)
    noisy = unit(weights[labels] + 0.01 * rng.normal(size=(4, 64))).astype(np.float32)
    classifier.update(noisy, labels)
    result = classifier.result()
    assert result.top1_of[[2, 5, 6, 300]].tolist() == [1, 0, 0, 0]
    assert result.top5_of[[2, 5, 6, 300]].tolist() == [1, 1, 1, 1]
    assert (result.kept_predictions[:, :4] == [2, 5, 6, 300]).all()


@pytest.mark.parametrize("as_mask", [True, False])
def test_subset(as_mask):
    weights, embeddings, labels = random_case(4)
    subset = np.array([0, 3, 4, 9, 11, 20])
    chosen = np.isin(labels, subset)
    given = np.isin(np.arange(23), subset) if as_mask else subset[::-1]
    classifier = zero_shot.ZeroShotClassifier(weights, subset=given)
    classifier.update(embeddings[chosen], labels[chosen])
    result = classifier.result()
    scores = embeddings[chosen].astype(np.float64) @ weights[subset].T
    assert result.top1 == pytest.approx(np.mean(subset[scores.argmax(1)] == labels[chosen]))
    assert result.candidates == 6 and set(result.kept_predictions.ravel()) <= set(subset)
    with pytest.raises(ValueError, match="which is not among the 6 classes"):
        classifier.update(embeddings[~chosen], labels[~chosen])


def test_subset_of_fewer_than_five_classes():
    weights, embeddings, labels = random_case(5)
    chosen = labels < 3
    classifier = zero_shot.ZeroShotClassifier(weights, subset=[0, 1, 2])
    classifier.update(embeddings[chosen], labels[chosen])
    assert classifier.result().top5 == 1.0


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ([], "distinct indices"),
        ([1, 1], "distinct indices"),
        ([23], "distinct"),
        (np.ones(5, bool), "one entry for"),
    ],
)
def test_wrong_subsets(subset, message):
    with pytest.raises(ValueError, match=message):
        zero_shot.subset_indices(np.asarray(subset), 23)


def test_wrong_input():
    weights, embeddings, labels = random_case(6)
    classifier = zero_shot.ZeroShotClassifier(weights)
    with pytest.raises(ValueError, match="test set is empty"):
        classifier.result()
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.22"):
        classifier.update(embeddings[:1], [23])
    with pytest.raises(ValueError, match="2 embeddings and 1 labels"):
        classifier.update(embeddings[:2], [1])
    broken = embeddings[:3].copy()
    broken[1] = np.nan
    with pytest.raises(ValueError, match="record 71 is not finite"):
        classifier.update(broken, labels[:3], records=[70, 71, 72])


def test_mean_over_styles_and_its_error():
    """The formula against a bootstrap over concepts, with a concept effect that makes a naive error too
    small.
    """
    rng = np.random.default_rng(12)
    classes, styles = 400, 3
    easy = rng.uniform(0, 1, classes)
    right = rng.uniform(size=(styles, classes)) < np.clip(easy + rng.normal(0, 0.1, (styles, classes)), 0, 1)
    shown = rng.uniform(size=(styles, classes)) < np.array([[1.0], [0.8], [0.3]])

    def result(style):
        counts = shown[style].astype(np.int64)
        nothing = np.zeros(0)
        return zero_shot.ZeroShotResult(
            classes, counts, counts * right[style], counts, nothing, nothing, nothing, nothing
        )

    mean, error = zero_shot.mean_over_sets([result(style) for style in range(styles)])
    accuracy = [(right[s] & shown[s]).sum() / shown[s].sum() for s in range(styles)]
    assert mean == pytest.approx(np.mean(accuracy))
    means = []
    for _ in range(2000):
        take = rng.integers(0, classes, classes)
        means.append(
            np.mean([(right[s] & shown[s])[take].sum() / shown[s][take].sum() for s in range(styles)])
        )
    assert error == pytest.approx(np.std(means), rel=0.08)
    independent = np.sqrt(sum(a * (1 - a) / shown[s].sum() for s, a in enumerate(accuracy))) / styles
    assert error > 1.1 * independent
