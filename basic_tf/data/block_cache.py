"""Reads whole blocks of consecutive records and keeps the latest: the reader's half of `order.BlockOrder`.

A remote file answers one long read much faster than many short ones. `BlockOrder` asks for records that lie
in a few blocks at a time, so each block is read once, contiguously, and given up when its window is over.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np


class BlockCache:
    """A record source over another one, with the same interface; safe to use from several threads."""

    def __init__(self, source, block: int, blocks: int):
        """source: count, metadata, read(indices).

        block: records per block, as in the order. blocks: how many are kept; twice the order's window (for
        each lane that is read here) keeps the window that is being read and the next.
        """
        if block < 1 or blocks < 1:
            raise ValueError(f"block and blocks must be at least 1, got {block} and {blocks}")
        self.count, self.metadata = source.count, source.metadata
        self._source, self._block, self._blocks = source, int(block), int(blocks)
        self._kept: OrderedDict[int, Future] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """The serialized examples of these records, None where one is damaged."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        blocks = {int(number): self._get(int(number)) for number in np.unique(indices // self._block)}
        return [blocks[i // self._block][i % self._block] for i in indices.tolist()]

    def _get(self, number: int) -> list[bytes | None]:
        with self._lock:
            future = self._kept.get(number)
            mine = future is None
            if mine:
                future = self._kept[number] = Future()
                while len(self._kept) > self._blocks:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(number)
        if mine:  # read outside the lock: other blocks can be read meanwhile, other readers of this one wait
            start = number * self._block
            try:
                future.set_result(self._source.read(np.arange(start, min(start + self._block, self.count))))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(number, None)  # the next reader tries again
                future.set_exception(error)
        return future.result()
