"""Template effects and confusions against counts made by hand."""

import numpy as np
import pytest

from basic_tf.evaluation import analysis, zero_shot
from basic_tf.evaluation.prompts import class_prompts


class NoisyEncoder:
    """A class's direction plus noise of a strength that the template decides."""

    def __init__(self, classes, width, strengths):
        rng = np.random.default_rng(4)
        self.classes = classes
        self.directions = rng.normal(size=(len(classes), width))
        self.strengths = strengths

    def encode_text(self, texts):
        rows = []
        for text in texts:
            label = next(i for i, name in enumerate(self.classes) if name in text)
            strength = next(value for key, value in self.strengths.items() if text.startswith(key))
            noise = np.random.default_rng([len(text), label, int(10 * strength)]).normal(
                size=self.directions.shape[1]
            )
            rows.append(self.directions[label] + strength * noise)
        return np.asarray(rows, np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(9)
    classes = [f"class{i:02d}" for i in range(20)]
    templates = ("good {}", "poor {}", "bad {}")
    encoder = NoisyEncoder(classes, 12, {"good": 0.3, "poor": 1.5, "bad": 6.0})
    labels = rng.integers(0, 20, 300)
    embeddings = unit(encoder.directions[labels] + 0.9 * rng.normal(size=(300, 12))).astype(np.float32)
    return encoder, classes, templates, embeddings, labels


def test_template_effects(case):
    encoder, classes, templates, embeddings, labels = case
    report = analysis.template_effects(encoder, classes, templates, embeddings, labels)

    def top1(in_templates):
        classifier = zero_shot.ZeroShotClassifier(
            zero_shot.class_weights(encoder, class_prompts(classes, in_templates))
        )
        classifier.update(embeddings, labels)
        return classifier.result().top1

    assert report.ensemble.value == pytest.approx(top1(templates))
    for effect, template in zip(report.templates, templates):
        assert effect.top1.value == pytest.approx(top1((template,)))
        assert effect.ensemble_gain.value == pytest.approx(report.ensemble.value - effect.top1.value)
        assert effect.top1.low <= effect.top1.value <= effect.top1.high
    good, _, bad = report.templates
    assert bad.ensemble_gain.low > 0  # the ensemble is better than the bad one beyond doubt
    assert good.top1.value > bad.top1.value
    again = analysis.template_effects(encoder, classes, templates, embeddings, labels)
    assert again == report
    loud = [name.upper() + "!" for name in classes]
    plain = analysis.template_effects(encoder, loud, templates, embeddings, labels, canonicalisation="plain")
    assert plain == report


def test_intervals_resample_whole_classes():
    """All pictures of a class alike: the interval is that of the classes, not of their many pictures."""
    rng = np.random.default_rng()
    right = rng.random(30) < 0.5
    classes = [f"class{i:02d}" for i in range(30)]
    encoder = NoisyEncoder(classes, 64, {"a": 0.0})
    labels = np.repeat(np.arange(30), 50)
    shown = np.where(
        right, np.arange(30), (np.arange(30) + 1) % 30
    )  # a wrong class shows another one's direction
    embeddings = unit(encoder.directions[shown[labels]]).astype(np.float32)
    report = analysis.template_effects(encoder, classes, ("a {}",), embeddings, labels)
    assert report.ensemble.value == pytest.approx(right.mean())
    expected = np.sqrt(right.mean() * (1 - right.mean()) / 30)
    width = (report.ensemble.high - report.ensemble.low) / (2 * 1.96)
    assert width == pytest.approx(expected, rel=0.2)


def test_confused_pairs():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    predictions = np.array([1, 1, 0, 2, 1, 0, 2, 0, 1])
    pairs = analysis.confused_pairs(labels, predictions, np.arange(10, 19))
    assert [(pair.label, pair.predicted, pair.count, pair.examples) for pair in pairs] == [
        (0, 1, 2, 3),
        (2, 0, 2, 4),
        (1, 2, 1, 2),
        (2, 1, 1, 4),
    ]
    assert pairs[1].records == (15, 17)
    assert analysis.confused_pairs(labels, labels, labels) == []
    assert len(analysis.confused_pairs(labels, predictions, np.arange(9), most=1)) == 1


def test_per_class():
    classifier = zero_shot.ZeroShotClassifier(np.eye(6, dtype=np.float32))
    classifier.update(np.eye(6, dtype=np.float32)[[0, 1, 1, 3]], np.array([0, 1, 0, 3]))
    rows = analysis.per_class(classifier.result(), list("abcdef"))
    assert rows == [("a", 2, 0.5, 1.0), ("b", 1, 1.0, 1.0), ("d", 1, 1.0, 1.0)]


def test_wrong_input(case):
    encoder, classes, templates, embeddings, labels = case
    with pytest.raises(ValueError, match="need as many labels"):
        analysis.template_effects(encoder, classes, templates, embeddings, labels[1:])
