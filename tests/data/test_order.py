import threading

import numpy as np
import pytest

from basic_tf.data.block_cache import BlockCache
from basic_tf.data.memory import InMemorySource
from basic_tf.data.order import BlockOrder, DistinctOrder, ExampleOrder, Permutation
from basic_tf.randomness import step_key_numpy

GOLDEN_EXAMPLE = [930, 798, 255, 214, 795]
GOLDEN_BLOCK = [31, 11, 52, 49, 53]
GOLDEN_DISTINCT = [8, 19, 6, 90, 41]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1001, 65537])
def test_permutation_is_a_bijection(count):
    images = Permutation(count, step_key_numpy(5, count), "t")(np.arange(count))
    assert np.array_equal(np.sort(images), np.arange(count))


def test_permutation_of_billions_is_evaluated_where_asked():
    count = 6_600_000_007
    permutation = Permutation(count, step_key_numpy(1, 0), "t")
    ranks = np.concatenate([np.arange(1000), np.arange(count - 1000, count)])
    images = permutation(ranks)
    assert images.min() >= 0 and images.max() < count and len(np.unique(images)) == 2000
    # Spread over the whole range: the mean of 2000 uniform draws is within 5 standard errors of the middle.
    assert abs(images.mean() / count - 0.5) < 5 * 0.2887 / np.sqrt(2000)


@pytest.mark.parametrize("count", [3, 6, 10])
def test_permutations_of_small_sets_are_uniform(count):
    """Every (rank, record) pair equally often, and every ordered pair of neighbours: chi-square over many
    keys.
    """
    trials = 1500
    hits = np.zeros((count, count))
    follows = np.zeros((count, count))
    for trial in range(trials):
        images = Permutation(count, step_key_numpy(11, trial), "t")(np.arange(count))
        hits[np.arange(count), images] += 1
        follows[images[:-1], images[1:]] += 1
    expected = trials / count
    assert ((hits - expected) ** 2 / expected).sum() < count**2 + 6 * np.sqrt(2.0 * count**2)
    off = ~np.eye(count, dtype=bool)
    expected = trials * (count - 1) / off.sum()
    assert ((follows[off] - expected) ** 2 / expected).sum() < off.sum() + 8 * np.sqrt(2.0 * off.sum())


def test_order_is_frozen():
    """The order of records is part of the meaning of a checkpoint: these numbers must never change."""
    assert ExampleOrder(1000, seed=7).indices(998, 5)[1].tolist() == GOLDEN_EXAMPLE
    assert BlockOrder(103, 8, 3, seed=7).indices(101, 5)[1].tolist() == GOLDEN_BLOCK
    assert DistinctOrder(np.arange(100) // 3, 10, seed=7).indices(98, 5)[1].tolist() == GOLDEN_DISTINCT


def orders(count, seed):
    groups = np.random.default_rng(count).integers(0, count // 3, count)
    return [
        ExampleOrder(count, seed),
        BlockOrder(count, block=7, window=3, seed=seed),
        BlockOrder(count, block=7, window=2, seed=seed, lanes=4, batch_size=12),
        DistinctOrder(groups, 12, seed),
    ]


@pytest.mark.parametrize("number", range(4))
def test_any_position_agrees_with_the_whole_stream(number):
    order, again = orders(131, 3)[number], orders(131, 3)[number]
    epochs, records = order.indices(0, 500)
    for start, n in [(0, 1), (499, 1), (5, 200), (130, 3), (120, 380), (263, 0)]:
        part = again.indices(start, n)
        assert np.array_equal(part[0], epochs[start : start + n])
        assert np.array_equal(part[1], records[start : start + n])
    assert not np.array_equal(orders(131, 4)[number].indices(0, 500)[1], records)


@pytest.mark.parametrize("count", [1, 6, 7, 20, 21, 131])
def test_each_epoch_holds_each_record_once(count):
    for order in [ExampleOrder(count, 9), BlockOrder(count, 7, 3, 9), BlockOrder(count, 7, 100, 9)]:
        epochs, records = order.indices(0, 3 * count)
        assert np.array_equal(epochs, np.repeat(np.arange(3), count))
        for epoch in range(3):
            assert np.array_equal(np.sort(records[epochs == epoch]), np.arange(count))
        if count > 20:
            assert not np.array_equal(records[:count], records[count : 2 * count])


def test_unshuffled_order_is_that_of_the_files():
    assert ExampleOrder(5, 1, shuffle=False).indices(3, 4)[1].tolist() == [3, 4, 0, 1]


def test_lanes_keep_to_their_part_and_hosts_agree():
    order = BlockOrder(131, block=7, window=2, seed=2, lanes=4, batch_size=12)
    records = order.indices(0, 12 * 40)[1].reshape(40, 4, 3)
    for lane in range(4):
        seen = np.unique(records[:, lane])
        own = order.indices(3 * lane, 3)[1]
        assert seen.max() - seen.min() < 131 // 4 + 14 and np.isin(own, seen).all()
    parts = [set(np.unique(records[:, lane])) for lane in range(4)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 131
    # Hosts read consecutive rows: 1, 2 and 4 hosts see the same batch.
    for hosts in (2, 4):
        rows = 12 // hosts
        joined = [order.indices(12 * 5 + host * rows, rows)[1] for host in range(hosts)]
        assert np.array_equal(np.concatenate(joined), records[5].reshape(-1))


def test_a_window_is_all_that_has_to_be_read():
    order = BlockOrder(1000, block=10, window=4, seed=1)
    for position in (0, 333, 999, 5_000_123):
        name, ranges = order.window_at(position)
        held = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        assert len(held) == 40 and order.indices(position, 1)[1][0] in held
        assert name == (0, position // 1000, position % 1000 // 40)


def test_block_cache_reads_each_block_once_and_a_resumed_run_one_window():
    payloads = [str(i).encode() for i in range(203)]
    order = BlockOrder(203, block=10, window=3, seed=1)
    source = InMemorySource(payloads, damaged=[17])
    cache = BlockCache(source, block=10, blocks=6)
    wanted = order.indices(0, 203)[1]
    read = [payload for start in range(0, 203, 8) for payload in cache.read(wanted[start : start + 8])]
    assert read == [None if i == 17 else payloads[i] for i in wanted]
    assert sorted(source.reads) == list(range(203))

    source.reads.clear()
    cache = BlockCache(source, block=10, blocks=6)
    cache.read(order.indices(203 * 1000 + 65, 5)[1])
    assert len(source.reads) <= 30
    assert all(b - a == 1 for a, b in zip(source.reads, source.reads[1:], strict=False) if a % 10 != 9)


def test_block_cache_gives_up_what_was_handed_out():
    source = InMemorySource([bytes([i]) for i in range(47)])
    cache = BlockCache(source, block=10, blocks=4)
    for start in (0, 5, 40):
        cache.read(np.arange(start, start + 7))
    assert list(cache._kept) == [1] and cache._left == {1: 8}
    for number in (0, 2, 3, 4):  # half of each: more blocks than may be kept
        cache.read(np.arange(10 * number, 10 * number + 5))
    assert list(cache._kept) == [0, 2, 3, 4] and set(cache._left) == set(cache._kept)


def test_block_cache_reads_several_blocks_at_a_time():
    class Slow(InMemorySource):
        together = threading.Barrier(5, timeout=60)

        def read(self, indices):
            self.together.wait()
            return super().read(indices)

    payloads = [bytes([i]) for i in range(50)]
    assert BlockCache(Slow(payloads), block=10, blocks=8).read(np.arange(50)) == payloads


def test_block_cache_retries_after_a_failed_read():
    class Flaky(InMemorySource):
        failures = 1

        def read(self, indices):
            if self.failures:
                self.failures -= 1
                raise OSError("connection lost")
            return super().read(indices)

    cache = BlockCache(Flaky([b"a", b"b", b"c"]), block=2, blocks=1)
    with pytest.raises(OSError, match="connection lost"):
        cache.read([0])
    assert cache.read([2, 1, 0]) == [b"c", b"b", b"a"]


@pytest.mark.parametrize(
    ("count", "batch", "groups"), [(120, 12, 40), (131, 12, 30), (1000, 50, 100), (64, 64, 64)]
)
def test_no_batch_holds_a_group_twice(count, batch, groups):
    rng = np.random.default_rng(count)
    group = rng.integers(0, groups, count) if groups < count else np.arange(count)
    order = DistinctOrder(group, batch, seed=3)
    batches = count // batch
    assert order.epoch_length == batches * batch
    # Possible where every group fits into the batches once, or its surplus is left out.
    possible = np.maximum(np.bincount(group) - batches, 0).sum() <= count % batch
    assert possible
    for epoch in range(3):
        records = order.indices(epoch * order.epoch_length, order.epoch_length)[1]
        assert len(np.unique(records)) == order.epoch_length
        for row in records.reshape(batches, batch):
            assert len(np.unique(group[row])) == batch


def test_a_group_too_large_is_spread_evenly():
    group = np.where(np.arange(100) < 40, 0, np.arange(100))
    order = DistinctOrder(group, 10, seed=1)
    shares = [(group[row] == 0).sum() for row in order.indices(0, 100)[1].reshape(10, 10)]
    assert shares == [4] * 10


def test_distinct_order_mixes_groups_and_leaves_out_different_records():
    group = np.arange(131) // 3
    order = DistinctOrder(group, 12, seed=1)
    epochs = [set(order.indices(e * 120, 120)[1].tolist()) for e in range(30)]
    assert set.union(*epochs) == set(range(131)) and len({frozenset(e) for e in epochs}) == 30
    # Two given groups meet in a batch about as often as chance has it: 3 records each over 10 batches.
    met = 0
    for e in range(200):
        rows = group[order.indices(e * 120, 120)[1]].reshape(10, 12)
        met += sum((row == 5).any() and (row == 31).any() for row in rows)
    assert 0.6 < met / 200 / 0.78 < 1.4  # (3 x 120/131)^2 / 10 meetings per epoch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExampleOrder(0, 1), "at least one record"),
        (lambda: BlockOrder(10, 0, 1, 1), "at least 1"),
        (lambda: BlockOrder(100, 5, 1, 1, lanes=3, batch_size=10), "must divide the batch size"),
        (lambda: DistinctOrder(np.zeros(5), 6, 1), "between 1 and the record count 5"),
        (lambda: ExampleOrder(5, 1).indices(-1, 2), "must not be negative"),
    ],
)
def test_impossible_orders_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
