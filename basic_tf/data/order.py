"""In which order records are read: every order is a function of (seed, position), so it needs no buffer and
no state.

A *position* counts the examples a run has consumed since step 0, over all epochs and all hosts: row r of step
s of a run with batch size B is position s * B + r. `indices(position, n)` gives epoch and record of n
consecutive positions, for any starting point at once. The data state of a run is therefore one integer, and a
host that reads rows a..b of each batch asks for just these positions.

* `ExampleOrder`: a permutation of all records per epoch. For records that can be read one by one (local
  files, memory).
* `BlockOrder`: a permutation of blocks of consecutive records, mixed within a window of blocks. For remote
  files.
* `DistinctOrder`: no batch holds two records of one group (as far as that is possible). For contrastive
  batches of data with many pictures of one concept, where a second picture of the same concept would be a
  false negative.

All three offer `count` (records), `epoch_length` (positions per epoch) and `indices`.
"""

import math
import threading
from collections import OrderedDict

import numpy as np

from basic_tf.randomness import bits_numpy, step_key_numpy

_ROUNDS = 8
_CACHED_EPOCHS = 2


class Permutation:
    """A seeded bijection of [0, count), evaluated for many ranks at once by arithmetic alone.

    A Feistel network on a grid of rows x columns >= count cells, with modular addition as the round's group
    operation (so the grid need not be a power of two and holds fewer than sqrt(count) + 1 surplus cells), and
    cycle walking: an image in a surplus cell is mapped again until it is a rank. Round functions are the
    project's hash.
    """

    def __init__(self, count: int, key: np.ndarray, name: str):
        """count: size of the domain. key: uint32 [2] (`randomness.step_key_numpy`). name: separates uses of
        one key.
        """
        self.count = int(count)
        self._key = key
        self._name = name
        self._rows = max(1, math.isqrt(self.count - 1) + 1)
        self._columns = -(-self.count // self._rows)

    def __call__(self, ranks: np.ndarray) -> np.ndarray:
        """int64 [n] ranks in [0, count) -> int64 [n], their images."""
        images = self._network(np.asarray(ranks, np.int64))
        outside = np.flatnonzero(images >= self.count)
        while outside.size:
            images[outside] = self._network(images[outside])
            outside = outside[images[outside] >= self.count]
        return images

    def _network(self, cells: np.ndarray) -> np.ndarray:
        row, column = np.divmod(cells, self._columns)
        for number in range(_ROUNDS):
            stream = f"{self._name}/round_{number}"
            if number % 2 == 0:
                row = (row + bits_numpy(self._key, column, stream, 1)[:, 0]) % self._rows
            else:
                column = (column + bits_numpy(self._key, row, stream, 1)[:, 0]) % self._columns
        return row * self._columns + column


def _checked_positions(position: int, n: int) -> np.ndarray:
    if position < 0 or n < 0:
        raise ValueError(f"position and n must not be negative, got position={position}, n={n}")
    return np.arange(position, position + n, dtype=np.int64)


def _check_count(count: int) -> int:
    if count < 1:
        raise ValueError(
            f"an order needs at least one record, got count={count}; check the dataset's path and its json"
        )
    if count >= 1 << 62:
        raise ValueError(f"count must be below 2**62, got {count}")
    return int(count)


class ExampleOrder:
    """Each epoch is a fresh permutation of all records; a batch may straddle two epochs.

    Position p belongs to epoch p // count, where it has rank p % count; the record is the image of the rank
    under the epoch's permutation. Every record appears exactly once in an epoch.
    """

    def __init__(self, count: int, seed: int, shuffle: bool = True):
        """shuffle=False reads every epoch in the order of the files."""
        self.count = self.epoch_length = _check_count(count)
        self.seed = int(seed)
        self._shuffle = shuffle

    def indices(self, position: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs int64 [n] and records int64 [n] of the positions position .. position + n - 1."""
        return self.at(_checked_positions(position, n))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`indices` of any positions int64 [n], in any order."""
        epochs, ranks = np.divmod(positions, self.count)
        if not self._shuffle:
            return epochs, ranks
        records = np.empty_like(ranks)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            permutation = Permutation(self.count, step_key_numpy(self.seed, int(epoch)), "order/record")
            records[chosen] = permutation(ranks[chosen])
        return epochs, records


class BlockOrder:
    """Reads blocks of consecutive records; mixes records only within a window of blocks.

    In each epoch the full blocks are permuted, `window` consecutive blocks of that sequence form a window,
    and the records of a window are permuted among themselves. The last, shorter block (if count is no
    multiple of `block`) always belongs to the last window of the epoch. To read at any position, at most one
    window has to be fetched: `window_at(position)` names it. With window >= all blocks this is a full
    permutation.

    lanes > 1 splits the records into that many contiguous parts, each with an order of its own (and its own
    epochs), and each batch into as many equal runs of rows: run l of each batch is read from part l. A host
    that reads a contiguous share of the rows then touches only its own parts, while the global order stays
    the same for any number of hosts that divides `lanes`. Parts begin at whole blocks, so they are equal to
    within one block, and a part may end its epoch by as much earlier or later than the mean.

    `block_cache.BlockCache` turns the requests of this order into reads of whole blocks.
    """

    def __init__(
        self, count: int, block: int, window: int, seed: int, lanes: int = 1, batch_size: int | None = None
    ):
        """block: records per block. window: blocks per window. lanes > 1 needs the global `batch_size`."""
        self.count = self.epoch_length = _check_count(count)
        if block < 1 or window < 1 or lanes < 1:
            raise ValueError(f"block, window and lanes must be at least 1, got {block}, {window}, {lanes}")
        if lanes > 1 and (batch_size is None or batch_size % lanes or count < lanes * block):
            raise ValueError(
                f"lanes={lanes} must divide the batch size (got {batch_size}) and leave each lane a block of "
                f"{block} records (got {count} in all)"
            )
        self.seed, self.block, self.window, self.lanes = int(seed), int(block), int(window), int(lanes)
        self._lane_rows = batch_size // lanes if lanes > 1 else None
        # Whole blocks to each lane; the shorter last block goes to the last lane.
        self._starts = [self.count // block * lane // lanes * block for lane in range(lanes)] + [self.count]

    def _lane_position(self, position: int) -> tuple[int, int]:
        """(lane, position within the lane) of a global position."""
        if self._lane_rows is None:
            return 0, position
        step, row = divmod(position, self._lane_rows * self.lanes)
        return row // self._lane_rows, step * self._lane_rows + row % self._lane_rows

    def _place(self, position: int) -> tuple[int, int, int, int]:
        """(lane, epoch, window number, rank within the window) of a global position."""
        lane, position = self._lane_position(position)
        count = self._starts[lane + 1] - self._starts[lane]
        epoch, rank = divmod(position, count)
        number = min(rank // (self.block * self.window), self._windows(lane) - 1)
        return lane, epoch, number, rank - number * self.block * self.window

    def _windows(self, lane: int) -> int:
        full = (self._starts[lane + 1] - self._starts[lane]) // self.block
        return max(1, -(-full // self.window))

    def _key(self, lane: int, epoch: int) -> np.ndarray:
        # The lane goes into the upper half of the step word's 64 bits: lanes and epochs never share a key.
        return step_key_numpy(self.seed ^ (lane << 32), epoch)

    def _blocks(self, lane: int, epoch: int, number: int) -> list[tuple[int, int]]:
        """(start, stop) record ranges of a window, in the order of its ranks before they are permuted."""
        first, last = self._starts[lane], self._starts[lane + 1]
        full = (last - first) // self.block
        ranks = np.arange(number * self.window, min((number + 1) * self.window, full))
        blocks = Permutation(full, self._key(lane, epoch), "order/block")(ranks) if full else ranks
        ranges = [(first + int(b) * self.block, first + (int(b) + 1) * self.block) for b in blocks]
        if number == self._windows(lane) - 1 and first + full * self.block < last:
            ranges.append((first + full * self.block, last))
        return ranges

    def window_at(self, position: int) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
        """The window that holds a position: its name (lane, epoch, number) and its (start, stop) record
        ranges.
        """
        lane, epoch, number, _ = self._place(position)
        return (lane, epoch, number), self._blocks(lane, epoch, number)

    def indices(self, position: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs int64 [n] and records int64 [n] of the positions position .. position + n - 1."""
        _checked_positions(position, n)
        epochs, records = np.empty(n, np.int64), np.empty(n, np.int64)
        done = 0
        while done < n:
            lane, epoch, number, rank = self._place(position + done)
            ranges = self._blocks(lane, epoch, number)
            sizes = np.array([stop - start for start, stop in ranges])
            take = min(n - done, int(sizes.sum()) - rank)
            if self._lane_rows is not None:
                take = min(take, self._lane_rows - (position + done) % self._lane_rows)
            name = f"order/window_{number}"
            mixed = Permutation(int(sizes.sum()), self._key(lane, epoch), name)(np.arange(rank, rank + take))
            ends = np.cumsum(sizes)
            place = np.searchsorted(ends, mixed, side="right")
            starts = np.array([start for start, _ in ranges])
            records[done : done + take] = starts[place] + mixed - (ends - sizes)[place]
            epochs[done : done + take] = epoch
            done += take
        return epochs, records


class DistinctOrder:
    """Each epoch is arranged so that no batch holds two records of one group, as far as that is possible.

    An epoch is N = count // batch_size whole batches (batches never straddle epochs), so count % batch_size
    records are left out of it. For each epoch, by the hash of (seed, epoch) alone: the records of each group
    are put in random order; those beyond the N-th of their group (which could not be placed apart) are the
    first to be left out, then records chosen at random; the rest, sorted by a random order of the groups, is
    dealt to the N batches in turn like cards. A group of at most N remaining records thus meets no batch
    twice, and a larger one is spread evenly: each batch holds floor or ceil(size / N) of it. Finally the
    batches, and the rows of each, are put in random order.

    Any position can be asked for; the epoch it lies in is then arranged as a whole (about 1 s and 100 MB per
    million records) and kept. Exact for at most a few ten million records; larger data is better off with
    `ExampleOrder`.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int):
        """groups: [count] integers, the group (concept) of each record. batch_size: the global batch size."""
        groups = np.asarray(groups)
        self.count = _check_count(len(groups))
        if not 1 <= batch_size <= self.count:
            raise ValueError(
                f"batch_size must be between 1 and the record count {self.count}, got {batch_size}"
            )
        self.seed, self.batch_size = int(seed), int(batch_size)
        self._groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
        self._batches = self.count // self.batch_size
        self.epoch_length = self._batches * self.batch_size
        self._arranged: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()  # batches are read ahead by several threads

    def indices(self, position: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs int64 [n] and records int64 [n] of the positions position .. position + n - 1."""
        return self.at(_checked_positions(position, n))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`indices` of any positions int64 [n], in any order."""
        epochs, ranks = np.divmod(positions, self.epoch_length)
        records = np.empty_like(ranks)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            records[chosen] = self._epoch(int(epoch))[ranks[chosen]]
        return epochs, records

    def _epoch(self, epoch: int) -> np.ndarray:
        """int64 [epoch_length]: the records of an epoch in order."""
        with self._lock:
            if epoch not in self._arranged:
                self._arranged[epoch] = self._arrange(epoch)
                while len(self._arranged) > _CACHED_EPOCHS:
                    self._arranged.popitem(last=False)
            return self._arranged[epoch]

    def _arrange(self, epoch: int) -> np.ndarray:
        key = step_key_numpy(self.seed, epoch)
        draw = bits_numpy(key, np.arange(self.count), "order/distinct", 3)
        group_draw = bits_numpy(key, np.arange(self._groups.max() + 1), "order/distinct/group", 1)[:, 0]

        # Records sorted by (random order of groups, random order within the group); their place within the
        # group.
        dealt = np.lexsort((draw[:, 0], self._groups, group_draw[self._groups]))
        group = self._groups[dealt]
        starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
        within = np.arange(self.count) - np.repeat(starts, np.diff(np.append(starts, self.count)))

        # Leave out count - N * B records: those that cannot be placed apart first.
        surplus = within >= self._batches
        kept = np.sort(np.lexsort((draw[dealt, 1], surplus))[: self.epoch_length])
        dealt = dealt[kept]

        batch = np.arange(self.epoch_length) % self._batches
        batch_draw = bits_numpy(key, np.arange(self._batches), "order/distinct/batch", 1)[:, 0]
        return dealt[np.lexsort((draw[dealt, 2], batch, batch_draw[batch]))]
