import numpy as np
import pytest

from basic_tf.evaluation.retrieval import recalls


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_case(seed, images=83, width=11):
    rng = np.random.default_rng(seed)
    owner = np.concatenate(
        [np.arange(images), rng.integers(0, images, 2 * images)]
    )  # 1 to several captions each
    rng.shuffle(owner)
    image_rows = unit(rng.normal(size=(images, width))).astype(np.float32)
    text_rows = unit(image_rows[owner] + 0.5 * rng.normal(size=(len(owner), width))).astype(np.float32)
    return image_rows, text_rows, owner


def oracle(image_rows, text_rows, owner, k):
    """The definition, one query at a time, by sorting."""
    similarity = image_rows.astype(np.float64) @ text_rows.T.astype(np.float64)  # [N, M]
    to_text = [np.any(owner[np.argsort(-row, kind="stable")[:k]] == i) for i, row in enumerate(similarity)]
    to_image = [owner[j] in np.argsort(-column, kind="stable")[:k] for j, column in enumerate(similarity.T)]
    return np.mean(to_text), np.mean(to_image)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [7, 1000])
def test_against_the_definition(seed, chunk):
    case = random_case(seed)
    received = recalls(*case, ks=(1, 5, 10, 50), chunk=chunk)
    for k in (1, 5, 10, 50):
        to_text, to_image = oracle(*case, k)
        assert received["image_to_text"][f"R@{k}"] == pytest.approx(to_text, abs=1e-12)
        assert received["text_to_image"][f"R@{k}"] == pytest.approx(to_image, abs=1e-12)
    assert 0.05 < received["text_to_image"]["R@1"] < 0.9
    assert received["image_to_text"]["queries"] == received["text_to_image"]["candidates"] == 83
    assert received["image_to_text"]["candidates"] == received["text_to_image"]["queries"] == 249


def test_ties_go_to_the_lower_index():
    image_rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]  # pictures 0 and 1 are the same
    received = recalls(image_rows, image_rows, np.arange(4), ks=(1, 2))
    assert received["text_to_image"]["R@1"] == 0.75  # the caption of picture 1 finds picture 0 first
    assert received["image_to_text"]["R@1"] == 0.75
    assert received["image_to_text"]["R@2"] == 1.0


def test_wrong_input():
    image_rows, text_rows, owner = random_case(0)
    with pytest.raises(ValueError, match="picture 5 has no caption"):
        recalls(image_rows, text_rows, np.where(owner == 5, 6, owner))
    with pytest.raises(ValueError, match=r"lie in 0\.\.82"):
        recalls(image_rows, text_rows, owner + 1)
    with pytest.raises(ValueError, match="249 captions need 249"):
        recalls(image_rows, text_rows, owner[:-1])
    with pytest.raises(ValueError, match="needs pictures and captions"):
        recalls(image_rows[:0], text_rows[:0], owner[:0])
    with pytest.raises(ValueError, match="text embeddings are not finite"):
        recalls(image_rows, text_rows * np.inf, owner)
