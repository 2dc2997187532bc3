"""Our figures are CLIP_benchmark's on the same embeddings (tests/golden/make_clip_benchmark_metrics.py)."""

from pathlib import Path

import numpy as np
import pytest

from basic_tf.evaluation import retrieval, zero_shot

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "clip_benchmark_metrics.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


class GoldenEncoder:
    """Looks its embeddings up: text "3/5" is prompt 5 of class 3."""

    def __init__(self, prompts):
        self._prompts = prompts

    def encode_text(self, texts):
        return np.stack([self._prompts[tuple(map(int, text.split("/")))] for text in texts])


def test_classification(golden):
    classes, prompts, _ = golden["prompts"].shape
    encoder = GoldenEncoder(golden["prompts"])
    texts = [[f"{label}/{prompt}" for prompt in range(prompts)] for label in range(classes)]
    classifier = zero_shot.ZeroShotClassifier(zero_shot.class_weights(encoder, texts, chunk=31))
    half = len(golden["labels"]) // 2
    for part in (slice(None, half), slice(half, None)):
        classifier.update(golden["pictures"][part], golden["labels"][part])
    result = classifier.result()
    assert result.top1 == pytest.approx(float(golden["acc1"]), abs=1e-6)
    assert result.top5 == pytest.approx(float(golden["acc5"]), abs=1e-6)
    assert result.mean_per_class == pytest.approx(float(golden["mean_per_class_recall"]), abs=1e-6)
    # A golden in which they coincide would prove little.
    assert 0.2 < result.top1 < 0.8 and abs(result.top1 - result.mean_per_class) > 0.01


def test_retrieval(golden):
    found = retrieval.recalls(golden["images"], golden["texts"], golden["image_of_text"], chunk=50)
    for k in (1, 5, 10):
        expected = {
            "text_to_image": golden[f"image_retrieval_recall@{k}"],
            "image_to_text": golden[f"text_retrieval_recall@{k}"],
        }
        for direction, value in expected.items():
            assert found[direction][f"R@{k}"] == pytest.approx(float(value), abs=1e-6)
    assert np.bincount(golden["image_of_text"]).max() > 4
