"""Local files that stay open between reads: as many as the process may have, the least recently read given up first.

A batch in random order reads from nearly every shard, so each shard wants to stay open; a dataset may have more
shards than a process may have open files (often 1,024).
"""

import errno
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import tensorflow as tf

try:
    import resource
except ImportError:  # Windows
    resource = None

_MOST_WANTED = 1 << 16  # some systems name no hard limit, and refuse to set none
_WITHOUT_LIMIT = 512


def _share_of_limit() -> int:
    """How many files to keep open: half of what the process may have, the soft limit raised to the hard one."""
    if resource is None:
        return _WITHOUT_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_WANTED if hard == resource.RLIM_INFINITY else min(hard, _MOST_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):  # not allowed here: the soft limit it is
            pass
    return max(1, (_MOST_WANTED if soft == resource.RLIM_INFINITY else soft) // 2)


class _Descriptor:
    """Closed when nobody holds it any more: a thread may still read from a file that has been given up."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class OpenFiles:
    """The descriptors behind `LocalFile`; threads and forks share them, as no read moves a file's position."""

    def __init__(self, most: int | None = None):
        """most: files that stay open; default half of what the process may have."""
        self._most = most
        self._kept: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.RLock()  # `forget` may be called amid anything, by the garbage collector

    def get(self, key: int, path: str) -> _Descriptor:
        """The descriptor that is kept under `key`, else a new one of `path`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        descriptor = self.with_room(lambda: _Descriptor(path))
        with self._lock:
            if self._most is None:
                self._most = _share_of_limit()
            self._kept[key] = descriptor
            self._give_up(self._most)
        return descriptor

    def forget(self, key: int) -> None:
        """Closes a file that will not be read again."""
        with self._lock:
            self._kept.pop(key, None)

    def with_room(self, opens: Callable):
        """What `opens`, a function that opens a file, returns; files are given up where the process may have no more."""
        while True:
            try:
                return opens()
            except (OSError, tf.errors.ResourceExhaustedError) as error:
                if getattr(error, "errno", errno.EMFILE) != errno.EMFILE or not self._kept:
                    raise
            # Others hold more than their half of the descriptors: keep half as many from now on.
            with self._lock:
                fewer = len(self._kept) // 2
                self._most = max(1, fewer)
                self._give_up(fewer)

    def _give_up(self, most: int) -> None:
        while len(self._kept) > most:
            self._kept.popitem(last=False)


_files = OpenFiles()  # one for the process, as its limit is


def with_room(opens: Callable):
    """What `opens`, a function that opens another file for a moment, returns: it may cost some of those that are kept."""
    return _files.with_room(opens)


class LocalFile:
    """One file, opened when it is read, and again where it was given up meanwhile."""

    def __init__(self, path: str):
        self.path = path
        # Under a key of its own, not its path: a file that was replaced is another one.
        weakref.finalize(self, _files.forget, id(self)).atexit = False

    def read(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Bytes [start, end) of the file, for each of the ranges; fewer where the file ends before."""
        descriptor = _files.get(id(self), self.path)
        return [os.pread(descriptor.number, end - start, start) for start, end in ranges]
