"""Subsets by hash, and batches of features in place of pictures."""

import types

import numpy as np
import pytest

from basic_tf import runs
from basic_tf.data.decoding import decode, framed
from basic_tf.data.examples import serialize_example
from basic_tf.data.features import FeatureBatches
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.memory import InMemorySource
from basic_tf.data.mixture import MixedSource
from basic_tf.data.records import RecordSource, RecordWriter, parse_example
from basic_tf.data.subset import Subset
from basic_tf.randomness import step_key_numpy
from tests.data.pictures import png, smooth
from tools import prepare_features

RNG = np.random.default_rng()
VIEWS, WIDTH = 3, 5
CONCEPTS = ("apple", "pear", "plum")


class Words:
    """A tokenizer that counts letters."""

    length = 4

    def __call__(self, texts):
        import tensorflow as tf

        return tf.constant([[1 + len(text) % 7] * self.length for text in texts], tf.int32)


def source(count, offset=0.0, broken=(), damaged=()):
    """Record i has features i + offset + view / 10, and one of three concepts as its first caption."""
    examples = []
    for index in range(count):
        rows = np.full((VIEWS, WIDTH), index + offset, np.float16) + np.arange(VIEWS)[:, None] / np.float16(4)
        payload = rows.astype(np.float16).tobytes()
        if index in broken:
            payload = payload[:-2]
        examples.append(
            serialize_example(payload, [CONCEPTS[index % 3], f"a {index}"], [index % 3], str(index))
        )
    facts = {"label_names": list(CONCEPTS), "features": {"views": VIEWS, "width": WIDTH}}
    return InMemorySource(examples, facts, damaged)


def batches(records, batch_size, seed=0, **options):
    return FeatureBatches(records, Words(), ImageAugmentation(8), batch_size, seed, **options)


def test_subsets_of_a_seed_are_parts_of_each_other_or_apart():
    count, seed = int(RNG.integers(2000, 4000)), int(RNG.integers(100))
    whole = source(count)
    low, wide, rest = (
        Subset(whole, 0.0, 0.3, seed),
        Subset(whole, 0.0, 0.7, seed),
        Subset(whole, 0.7, 1.0, seed),
    )
    assert set(low.records) < set(wide.records)
    assert sorted([*wide.records, *rest.records]) == list(range(count))
    assert low.count == pytest.approx(0.3 * count, abs=5 * np.sqrt(count * 0.21))
    assert set(Subset(whole, 0.0, 0.3, seed + 1).records) != set(low.records)
    rows = RNG.integers(0, low.count, 9)
    assert low.read(rows) == whole.read(low.records[rows])
    assert low.metadata["label_names"] == list(CONCEPTS) and low.metadata["count"] == low.count
    with pytest.raises(IndexError):
        low.read(np.array([low.count]))
    for start, stop in ((0.5, 0.5), (-0.1, 1.0), (0.9, 1.1)):
        with pytest.raises(ValueError, match="start < stop"):
            Subset(whole, start, stop)
    with pytest.raises(ValueError, match="widen"):
        Subset(source(2), 0.0, 1e-9)
    with pytest.raises(ValueError, match="mixture"):
        Subset(MixedSource([source(3), source(3)], names=["a", "b"]))


def test_a_batch_is_features_of_one_view_and_texts_of_the_same_record():
    count, size = int(RNG.integers(30, 60)), int(RNG.integers(5, 20))
    made = batches(source(count), size)
    step = int(RNG.integers(1000))
    batch = made.at(step)
    assert batch["images"].shape == (size, WIDTH) and batch["images"].dtype == np.float32
    views = (batch["images"][:, 0] - batch["record"]) * 4
    assert np.all(batch["images"] == batch["images"][:, :1]) and set(views) <= set(range(VIEWS))
    lengths = {1 + len(text) % 7 for i in batch["record"][:1] for text in (CONCEPTS[i % 3], f"a {i}")}
    assert batch["token_ids"][0, 0] in lengths
    halves = [made.at(step, host, 2) for host in range(2)] if size % 2 == 0 else [batch]
    for name, whole in batch.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole)
        np.testing.assert_array_equal(batches(source(count), size).at(step)[name], whole)
    from_graph = next(iter(made.dataset(step)))
    np.testing.assert_array_equal(from_graph["images"].numpy(), batch["images"])
    seen = np.concatenate([(made.at(s)["images"][:, 0] - made.at(s)["record"]) * 4 for s in range(20)])
    assert set(seen) == set(range(VIEWS))


def test_what_cannot_be_used_is_replaced_and_counted():
    made = batches(source(12, broken=[3], damaged=[7]), 12)
    assert made.damage == {"features of another size": 1, "damaged record": 1}
    records = np.sort(made.at(0)["record"])
    assert records.tolist() == [0, 1, 2, 4, 4, 5, 6, 8, 8, 9, 10, 11]


def test_false_negatives_are_counted_as_by_hand():
    size = 10
    made = batches(source(31), size)
    step = int(RNG.integers(1, 50))
    concepts = made.at(step - 1)["record"] % 3
    by_hand = np.mean([(concepts == own).sum() - 1 for own in concepts])
    assert made.scalars(step)["false_negatives_per_pair"] == pytest.approx(by_hand)


def test_mixtures_of_features_and_datasets_of_pictures():
    mixed = MixedSource([source(20), Subset(source(40, offset=100), 0.0, 0.5)], [1, 1], ["one", "two"])
    images = batches(mixed, 16).at(0)["images"]
    assert ((images[:, 0] >= 100).sum(), (images[:, 0] < 100).sum()) == (8, 8)
    assert "mixture/one_examples" in batches(mixed, 16).scalars(1)
    with pytest.raises(ValueError, match="prepare_features"):
        batches(InMemorySource([serialize_example(b"x", ["a"])], {"name": "photos"}), 1)


class Pixels:
    """An image tower whose features are the pixels."""

    def forward(self, images):
        import tensorflow as tf

        return tf.reshape(tf.cast(images, tf.float32), [tf.shape(images)[0], -1]), None


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The json of a dataset of three pictures; the stage's augmentation is a strong one."""
    augmentation = ImageAugmentation(8, (0.3, 0.6), rotation=40, flip=True, erase_probability=1.0)
    monkeypatch.setattr(runs, "load_image_tower", lambda _: (Pixels(), augmentation, "a checkpoint"))
    with RecordWriter(str(tmp_path), "train") as writer:
        for n in range(3):
            writer.write(serialize_example(png(smooth(RNG, 16, 16, 0.2)), [f"a {n}"], [], str(n)))
        return types.SimpleNamespace(json=writer.finish(), augmentation=augmentation)


def test_features_do_not_replace_the_pictures_they_are_made_of(drawn, tmp_path):
    with pytest.raises(ValueError, match="would replace its own input"):
        prepare_features.run("stage", drawn.json, str(tmp_path))
    assert (
        RecordSource.open(drawn.json).count == 3 and "features" not in RecordSource.open(drawn.json).metadata
    )


def test_the_first_view_is_the_one_of_evaluation_without_chance(drawn, tmp_path):
    path = prepare_features.run(
        "stage", drawn.json, str(tmp_path / "out"), views=2, seed=int(RNG.integers(99))
    )["path"]
    made, pictures = RecordSource.open(path), RecordSource.open(drawn.json)
    evaluation = drawn.augmentation.evaluation()
    for row in range(3):
        payload = pictures.read(np.array([row]))[0]
        picture = framed(decode(parse_example(payload).image), 16, "stretch")
        choices = evaluation.choices(step_key_numpy(0, 0), np.array([0], np.int32), central=True)
        first, second = np.frombuffer(parse_example(made.read(np.array([row]))[0]).image, np.float16).reshape(
            2, -1
        )
        np.testing.assert_array_equal(
            first, evaluation.warp([picture], choices).reshape(-1).astype(np.float16)
        )
        assert not np.array_equal(first, second)
