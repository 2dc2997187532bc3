"""Near-duplicates of evaluation pictures: the similarity against its formula, and what is removed in the end."""

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from basic_tf.data.examples import FeatureKeys, parse_example, serialize_example
from basic_tf.data.records import RecordSource, RecordWriter
from tests.data.pictures import jpeg, png, smooth
from tools.pairs.record_files import RecordFiles
from tools.sources import likeness
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.likeness import EvaluationPictures, distances, perceptual_hash, structural_similarity

RNG = np.random.default_rng()


def ssim_by_formula(x, y):
    """Equation 13 of Wang et al. 2004 window by window, in float64, variances as means of squared differences."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * cov + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return np.mean(values)


@pytest.mark.parametrize("side", [11, 23, 64])
def test_structural_similarity_is_that_of_the_formula(side):
    picture = RNG.integers(0, 256, (side, side), np.uint8)
    noisy = np.clip(picture + RNG.normal(0, 30, picture.shape), 0, 255).astype(np.uint8)
    flat = np.full_like(picture, 255)
    others = np.stack([picture, noisy, 255 - picture, flat, np.zeros_like(flat), picture.T])
    found = structural_similarity(picture, others)
    expected = [ssim_by_formula(picture, other) for other in others]
    assert found == pytest.approx(expected, abs=1e-9) and found[0] == pytest.approx(1.0)
    assert structural_similarity(flat, others[3:4])[0] == pytest.approx(ssim_by_formula(flat, flat), abs=1e-9)
    tensorflow = tf.image.ssim(
        picture[None, ..., None].repeat(len(others), 0), others[..., None], 255
    ).numpy()
    assert found == pytest.approx(tensorflow, abs=1e-4)


def test_distances_count_bits():
    hashes = RNG.integers(0, 1 << 64, 300, np.uint64)
    one = hashes[7]
    assert distances(one, hashes).tolist() == [bin(int(one) ^ int(other)).count("1") for other in hashes]


def drawing(rng):
    """A picture with edges: boxes and lines over a gradient."""
    picture = smooth(rng, 80, 96)
    for _ in range(4):
        a, b = rng.integers(0, 80, 2).tolist(), rng.integers(0, 80, 2).tolist()
        cv2.rectangle(picture, a, b, rng.integers(0, 256, 3).tolist(), -1)
    return picture


CHANGES = {
    "same": png,
    "compressed": lambda p: jpeg(p, 40),
    "larger": lambda p: png(cv2.resize(p, None, fx=1.7, fy=1.7)),
    "stretched": lambda p: png(cv2.resize(p, (60, 90), interpolation=cv2.INTER_AREA)),
    "brighter": lambda p: png(np.clip(p * 0.95 + 12, 0, 255).astype(np.uint8)),
    "grey": lambda p: png(cv2.cvtColor(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)),
}


def test_changed_copies_have_near_hashes():
    for _ in range(10):
        picture = drawing(RNG)
        one = perceptual_hash(likeness.grey_square(picture))
        for name in ("same", "compressed", "larger", "brighter"):
            copy = tf.io.decode_image(CHANGES[name](picture)).numpy()
            assert distances(one, np.array([perceptual_hash(likeness.grey_square(copy))]))[0] <= 8, name


def test_copies_of_evaluation_pictures_are_removed_and_named(tmp_path):
    rng = np.random.default_rng(4)  # what random drawings are alike by chance is fixed
    tested = [drawing(rng) for _ in range(12)]
    others = [drawing(rng) for _ in range(60)]
    for name, pictures in (("test_a", tested[:6]), ("test_b", tested[6:])):
        with RecordWriter(str(tmp_path), name) as writer:
            for n, picture in enumerate(pictures):
                writer.write(serialize_example(png(picture), ["x"], [], f"{name}/{n}"))
            writer.write(serialize_example(b"no picture", ["x"], [], "broken"))
            writer.finish()
    copies = {f"{change}/{n}": CHANGES[change](tested[n]) for change in CHANGES for n in range(12)}
    kept = {f"other/{n}": png(picture) for n, picture in enumerate(others)}
    rows = [*copies.items(), *kept.items()]
    with RecordWriter(str(tmp_path), "train", shards=3) as writer:
        for n in rng.permutation(len(rows)):
            name, image = rows[n]
            writer.write(serialize_example(image, ["a caption"], [1], name))
        writer.finish(label_names=["a", "b"], label_kinds=["x", "y"], licences=["CC0"])

    lines = []
    paths = [str(tmp_path / f"test_{name}.json") for name in "ab"]
    evaluation = EvaluationPictures(paths, similarity=0.8, report=lines.append)
    source = RecordFiles(str(tmp_path / "train.json"), FeatureKeys())
    write_dataset(source, Check(evaluation=evaluation), str(tmp_path / "out"), "train", facts=source.facts)
    assert lines == [f"{path}: 6 evaluation pictures, 1 unreadable" for path in paths]

    clean = RecordSource.open(str(tmp_path / "out/train.json"))
    records = [parse_example(payload) for payload in clean.read(np.arange(clean.count))]
    assert {record.id: record.image for record in records} == kept
    assert all(record.labels.tolist() == [1] and record.captions == ("a caption",) for record in records)
    assert clean.metadata["label_kinds"] == ["x", "y"] and clean.metadata["licences"] == ["CC0"]
    report = clean.metadata["near_duplicates"]
    assert report["removed"] == dict.fromkeys(paths, 36) and report["evaluation_pictures"] == 12

    lines = (tmp_path / "out/train.rejects.jsonl").read_text().splitlines()
    for reject in map(json.loads, lines):
        payload = RecordSource.open(str(tmp_path / "train.json")).read(np.array([reject["row"]]))[0]
        change, number = parse_example(payload).id.split("/")
        number = int(number)
        assert reject["of_id"] == f"test_{'ab'[number // 6]}/{number % 6}"
        assert reject["cause"] == "near-duplicate" and reject["kind"] == "filtered" and reject["ssim"] >= 0.8
        if change == "same":
            assert reject["ssim"] == 1.0 and reject["bits"] == 0
    assert len(lines) == 72
