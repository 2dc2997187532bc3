"""Reads whole blocks of consecutive records and keeps the latest: the reader's half of `order.BlockOrder`.

A remote file answers one long read much faster than many short ones. `BlockOrder` asks for records that lie
in a few blocks at a time, so each block is read once, contiguously, and given up when its window is over.

    ContrastiveBatches.order = @BlockOrder      # block_order; batches then read remote files through a BlockCache
"""

import concurrent.futures
import threading
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np

from basic_tf.data.order import BlockOrder

_REQUESTS = 16  # blocks of one call that are read at a time


def block_order(
    source, batch_size: int, seed: int, block: int = 128, window: int = 64, lanes: int = 1
) -> BlockOrder:
    """A `BlockOrder` of a source, for the `order` of batches. About window x block records are in memory, of each lane
    that is read here; at most twice as many.
    """
    return BlockOrder(source.count, block, window, seed, lanes, batch_size)


def kept_by_blocks(source, order):
    """`source` behind a BlockCache if it is remote and `order` asks for blocks; else `source` itself."""
    if not isinstance(order, BlockOrder) or getattr(source, "local", True):
        return source
    # An epoch's last window holds the shorter last block besides.
    return BlockCache(source, order.block, 2 * (order.window + 1) * order.lanes)


class BlockCache:
    """A record source over another one, with the same interface; safe to use from several threads."""

    def __init__(self, source, block: int, blocks: int):
        """source: count, metadata, read(indices).

        block: records per block, as in the order. blocks: how many are kept at most; twice the order's window (for
        each lane that is read here) keeps the window that is being read and the next. A block all of whose records
        were handed out is given up at once.
        """
        if block < 1 or blocks < 1:
            raise ValueError(f"block and blocks must be at least 1, got {block} and {blocks}")
        self.count, self.metadata = source.count, source.metadata
        self._source, self._block, self._blocks = source, int(block), int(blocks)
        self._kept: OrderedDict[int, Future] = OrderedDict()
        self._left: dict[int, int] = {}  # records of a kept block that were not handed out yet
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(_REQUESTS, thread_name_prefix="blocks")

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """The serialized examples of these records, None where one is damaged."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        numbers, counts = np.unique(indices // self._block, return_counts=True)
        numbers = numbers.tolist()
        with self._lock:
            missing = [number for number in numbers if number not in self._kept]
        read = dict(zip(missing, self._pool.map(self._get, missing)))
        blocks = read | {number: self._get(number) for number in numbers if number not in read}
        with self._lock:
            for number, count in zip(numbers, counts.tolist()):
                if number not in self._kept:  # others needed its place meanwhile
                    continue
                self._left[number] = self._left.get(number, len(blocks[number])) - count
                if self._left[number] <= 0:
                    self._give_up(number)
        return [blocks[i // self._block][i % self._block] for i in indices.tolist()]

    def _give_up(self, number: int) -> None:
        self._kept.pop(number, None)
        self._left.pop(number, None)

    def _get(self, number: int) -> list[bytes | None]:
        with self._lock:
            future = self._kept.get(number)
            mine = future is None
            if mine:
                future = self._kept[number] = Future()
                while len(self._kept) > self._blocks:
                    self._give_up(next(iter(self._kept)))
            else:
                self._kept.move_to_end(number)
        if mine:  # read outside the lock: other blocks can be read meanwhile, other readers of this one wait
            start = number * self._block
            try:
                future.set_result(self._source.read(np.arange(start, min(start + self._block, self.count))))
            except BaseException as error:
                with self._lock:
                    self._give_up(number)  # the next reader tries again
                future.set_exception(error)
        return future.result()
