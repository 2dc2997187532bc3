"""Mixtures: shares by weight, whole epochs of each part, any position at once, labels under joined names."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.data.batches import ContrastiveBatches, LabelledBatches
from basic_tf.data.captions import CaptionChoice
from basic_tf.data.examples import serialize_example
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.memory import InMemorySource
from basic_tf.data.mixture import MixedSource, MixtureOrder
from basic_tf.data.order import BlockOrder, DistinctOrder, ExampleOrder
from tests.data.pictures import png

RNG = np.random.default_rng()


class Numbers:
    """A source of which only the size matters."""

    def __init__(self, count, name="numbers"):
        self.count, self.metadata = count, {"name": name, "count": count}

    def read(self, indices):
        return [f"{self.metadata['name']} {i}".encode() for i in indices]


def mixed(counts, weights):
    return MixedSource([Numbers(count, f"n{i}") for i, count in enumerate(counts)], weights)


@pytest.mark.parametrize("batch_size", [200, 1000, 4096])
def test_shares_over_100_000_draws_are_within_one_per_cent(batch_size):
    source = mixed(RNG.integers(1000, 60_000, 3), [50, 30, 20])
    start = int(RNG.integers(0, 10**9))
    _, records = MixtureOrder(source, batch_size, 5).indices(start, 100_000)
    counts = np.bincount(source.part_of(records), minlength=3)
    assert counts == pytest.approx([50_000, 30_000, 20_000], rel=0.01)


@pytest.mark.parametrize("weights", [[50, 30, 20], [1, 1], [0.01, 1, 3], [5]])
def test_every_batch_and_every_epoch_is_whole(weights):
    counts = RNG.integers(20, 200, len(weights)).tolist()
    source = mixed(counts, weights)
    batch_size = int(RNG.integers(8, 90))
    order = MixtureOrder(source, batch_size, int(RNG.integers(1 << 40)))
    blocks, block = 24, order._block
    assert block % batch_size == 0
    epochs, records = order.indices(0, blocks * block)
    owners = source.part_of(records).reshape(blocks, block)
    shares = np.array(weights) / sum(weights)
    of_block = np.stack([(owners == part).sum(1) for part in range(len(weights))], 1)
    assert np.abs(of_block - shares * block).max() < 2
    so_far = of_block.cumsum(0)
    assert np.abs(so_far - shares * block * np.arange(1, blocks + 1)[:, None]).max() < 1 + 1e-4
    for part, count in enumerate(counts):
        own = source.part_of(records) == part
        drawn = np.bincount(records[own] - source._first[part], minlength=count)
        assert len(drawn) == count and drawn.max() - drawn.min() <= 1  # without replacement
        whole = records[own][epochs[own] == 0]
        assert len(set(whole.tolist())) == len(whole)


def test_any_position_at_once():
    source = mixed([301, 40, 77], [5, 3, 2])
    order = MixtureOrder(source, 32, 9)
    epochs, records = order.indices(0, 1500)
    for _ in range(8):
        start = int(RNG.integers(0, 1400))
        n = int(RNG.integers(0, 1500 - start))
        again = MixtureOrder(source, 32, 9).indices(start, n)
        assert np.array_equal(again[0], epochs[start : start + n])
        assert np.array_equal(again[1], records[start : start + n])
        counts = np.bincount(source.part_of(records[:start]), minlength=3)
        assert list(order.drawn(start).values()) == counts.tolist()
    assert not np.array_equal(MixtureOrder(source, 32, 10).indices(0, 1500)[1], records)


def test_rows_of_a_batch_are_mixed_and_parts_are_shuffled_apart():
    source = mixed([500, 500], [1, 1])
    _, records = MixtureOrder(source, 100, 3).indices(0, 1000)
    owners = source.part_of(records)
    assert 380 < (owners[1:] != owners[:-1]).sum() < 620  # 500 +- 16 for fair coins
    first, second = records[owners == 0], records[owners == 1] - 500
    assert (first == second).sum() < 20


def test_parts_may_have_other_orders():
    source = mixed([100, 90], [1, 1])
    order = MixtureOrder(source, 10, 3, orders=lambda part, seed: BlockOrder(part.count, 10, 2, seed))
    _, records = order.indices(0, 190)
    assert sorted(records[source.part_of(records) == 1][:90].tolist()) == list(range(100, 190))


class _WholeBlocks:
    """An order that gives runs of positions alone."""

    def __init__(self, order):
        self.indices = order.indices


@pytest.mark.parametrize("distinct", [False, True])
def test_a_small_weight_costs_no_more_than_its_batch_and_draws_what_it_drew(distinct, monkeypatch):
    source = mixed([900, 130], [1, 0.003])

    def own_order(part, seed):
        return (
            DistinctOrder(np.arange(part.count) // 2, 13, seed)
            if distinct
            else ExampleOrder(part.count, seed)
        )

    order = MixtureOrder(source, 32, 6, own_order)
    whole = MixtureOrder(source, 32, 6, lambda part, seed: _WholeBlocks(own_order(part, seed)))
    assert order._block > 600
    for start, n in ((0, 3000), (555, 32), (123_456, 700)):
        for one, other in zip(order.indices(start, n), whole.indices(start, n)):
            assert np.array_equal(one, other)
    asked = []
    for kind in (ExampleOrder, DistinctOrder):
        real = kind.at
        monkeypatch.setattr(kind, "at", lambda self, at, real=real: asked.append(len(at)) or real(self, at))
    order.indices(96, 32)
    assert sum(asked) == 32


@pytest.mark.parametrize("make", [ContrastiveBatches, LabelledBatches])
def test_a_batch_may_not_take_more_of_a_part_than_it_has(make):
    def batches(batch_size):
        labels = [examples(["x"], lambda n: [0], "a", count) for count in (24, 4)]
        tokenizer = [_Length()] if make is ContrastiveBatches else []
        source = MixedSource(labels, [3, 1], ["large", "small"])
        return make(source, *tokenizer, ImageAugmentation(6), batch_size, 1)

    assert len(set(batches(16).at(0)["record"].tolist())) == 16
    message = r"a batch of 20 takes 5 examples of small, which has 4 records.*now 0.25 of all.* to 0.2 .*batch_size to 16"
    with pytest.raises(ValueError, match=message):
        batches(20)


def test_records_come_from_their_part():
    source = mixed([5, 3], [1, 1])
    assert source.read(np.array([7, 0, 4, 5])) == [b"n1 2", b"n0 0", b"n0 4", b"n1 0"]
    with pytest.raises(IndexError):
        source.read(np.array([8]))


def examples(label_names, labels, word, count=9):
    made = [
        serialize_example(
            png(np.full((6, 6, 3), 9 * n, np.uint8)), [f"{word} {n}"] if word else [], labels(n)
        )
        for n in range(count)
    ]
    return InMemorySource(made, {"label_names": label_names} if label_names else {})


class _Length:
    length = 1

    def __call__(self, texts):
        return tf.constant([[len(text)] for text in texts], tf.int32)


def test_labels_of_parts_meet_under_one_list_of_names():
    animals = examples(["cat", "dog"], lambda n: [n % 2], "")
    things = examples(["cup", "dog", "key"], lambda n: [n % 3, (n + 1) % 3], "")
    web = examples(None, lambda n: [n], "web")  # numbers without names
    source = MixedSource([animals, things, web], [1, 1, 1], ["animals", "things", "web"])
    assert source.metadata["label_names"] == ["cat", "dog", "cup", "key"]
    batches = ContrastiveBatches(
        source,
        _Length(),
        ImageAugmentation(6),
        12,
        4,
        captions=CaptionChoice(templates=("a {}",), joiner=" and "),
    )
    seen = set()
    for step in range(6):
        batch, texts = batches.at(step), batches.texts(step)
        for record, text in zip(batch["record"].tolist(), texts, strict=True):
            part, own = divmod(record, 9)
            seen.add(part)
            if part == 0:
                assert text == f"a {['cat', 'dog'][own % 2]}"
            elif part == 1:
                names = ["cup", "dog", "key"]
                assert set(text.removeprefix("a ").split(" and ")) == {names[own % 3], names[(own + 1) % 3]}
            else:
                assert text == f"web {own}"
    assert seen == {0, 1, 2} and not batches.damage

    labelled = LabelledBatches(
        MixedSource([animals, things], [1, 3]), ImageAugmentation(6), 8, 4, cache_decoded=True
    )
    batch = labelled.at(3)
    for record, hot in zip(batch["record"].tolist(), batch["labels"]):
        names = {source.metadata["label_names"][i] for i in np.flatnonzero(hot)}
        own = record % 9
        expected = (
            {["cat", "dog"][own % 2]}
            if record < 9
            else {["cup", "dog", "key"][(own + i) % 3] for i in (0, 1)}
        )
        assert names == expected


def test_a_batch_follows_from_the_step_whoever_reads_it():
    source = MixedSource(
        [examples(None, lambda n: [], "a", 20), examples(None, lambda n: [], "b", 9)], [3, 1]
    )

    def batches():
        return ContrastiveBatches(source, _Length(), ImageAugmentation(6), 8, 11)

    one, other = batches(), batches()
    resumed = iter(other.dataset(first_step=5))
    for step in range(5, 9):
        whole, element = one.at(step), next(resumed)
        assert all(np.array_equal(whole[name], element[name]) for name in whole)
        halves = [other.at(step, host, 2) for host in (0, 1)]
        assert np.array_equal(np.concatenate([half["record"] for half in halves]), whole["record"])
    counts = np.bincount(source.part_of(np.concatenate([one.at(step)["record"] for step in range(7)])))
    scalars = one.scalars(7)
    assert [scalars["mixture/part_0_examples"], scalars["mixture/part_1_examples"]] == counts.tolist()
    assert scalars["mixture/part_1_epochs"] == pytest.approx(counts[1] / 9)


def test_a_single_source_keeps_its_order_and_has_no_scalars():
    source = examples(None, lambda n: [], "a", 20)
    batches = ContrastiveBatches(source, _Length(), ImageAugmentation(6), 8, 11)
    assert type(batches.order) is ExampleOrder and batches.scalars(3) == {}


def test_what_cannot_be_mixed_is_said_at_once():
    with pytest.raises(
        ValueError, match=r"a mixture of 2 sources needs as many weights, all above 0; got \[1, 0\]"
    ):
        mixed([3, 3], [1, 0])
    with pytest.raises(ValueError, match="as many different names"):
        MixedSource([Numbers(3), Numbers(3)], [1, 1], ["a", "a"])
    with pytest.raises(ValueError, match="ExampleOrder knows nothing of the weights"):
        source = mixed([9, 9], [1, 1])
        ContrastiveBatches(source, _Length(), ImageAugmentation(6), 4, 1, order=ExampleOrder(18, 1))
    with pytest.raises(ValueError, match="got a Numbers"):
        MixtureOrder(Numbers(3), 2, 1)
    assert mixed([30, 10], None).weights == [0.75, 0.25]
    assert MixedSource([Numbers(3), Numbers(4)], [1, 1]).names == ["part_0_numbers", "part_1_numbers"]


def test_a_gin_file_mixes_datasets(tmp_path):
    import gin
    from basic_tf import configurables
    from basic_tf.data.records import RecordWriter

    for name, count in (("icons", 30), ("web", 12)):
        with RecordWriter(str(tmp_path), name) as writer:
            for n in range(count):
                writer.write(serialize_example(png(np.zeros((6, 6, 3), np.uint8)), [f"{name} {n}"]))
            writer.finish()
    (tmp_path / "templates.json").write_text('{"templates": ["look, a {}"]}')
    configurables.parse_text(
        f"""
        icons/Records.path = '{tmp_path}/icons.json'
        web/Records.path = '{tmp_path}/web.json'
        Mixture.sources = [@icons/Records(), @web/Records()]
        Mixture.weights = [3, 1]
        ContrastiveBatches.source = @Mixture()
        CaptionChoice.templates = @Templates()
        Templates.name_or_path = '{tmp_path}/templates.json'
        ContrastiveBatches.captions = @CaptionChoice()
        """
    )
    batches = gin.get_configurable("ContrastiveBatches")(
        tokenizer=_Length(), augmentation=ImageAugmentation(6), batch_size=8, seed=1
    )
    assert batches.captions.templates == ("look, a {}",)
    assert batches.scalars(4)["mixture/icons_examples"] == 24
    gin.clear_config()
