"""Python functions inside tf.data, ended before the interpreter is.

tf.data reads ahead in threads of its own. One that is inside Python, or enters it, while the interpreter is
shutting down brings the whole process down ("terminate called without an active exception") or hangs it,
after the work was done. So at exit every call is answered at once with zeros, which nobody will read, until
the buffers are full and all is quiet.
"""

import atexit
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

_QUIET_SECONDS = 0.05
_ALIGNMENT = 64  # bytes, that of TensorFlow's own tensors
_LONGEST_SECONDS = 10.0


class _Calls:
    """How many calls are running; whether the process is about to end."""

    def __init__(self):
        self.ending = False
        self._running = 0
        self._latest = 0.0
        self._lock = threading.Lock()

    def __enter__(self):
        with self._lock:
            self._running += 1
            self._latest = time.monotonic()

    def __exit__(self, *_):
        with self._lock:
            self._running -= 1
            self._latest = time.monotonic()

    def end(self) -> None:
        """Returns when no call is running and none has come for a moment."""
        self.ending = True
        deadline = time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < deadline:
            with self._lock:
                if not self._running and time.monotonic() - self._latest > _QUIET_SECONDS:
                    return
            time.sleep(_QUIET_SECONDS / 5)


_calls = _Calls()
atexit.register(_calls.end)


def mapped(
    numbers: tf.data.Dataset,
    make: Callable[[int], Mapping[str, np.ndarray]],
    signature: dict[str, tf.TensorSpec],
    parallel: int,
    prefetch: int,
    private_threads: int | None = None,
) -> tf.data.Dataset:
    """numbers.map(make), in order, several at once, read ahead; elements as `signature` says.

    numbers: a dataset of int64 scalars. make: an element from its number; it runs in several threads.
    private_threads: a pool of that size for this dataset alone; None shares tf.data's.
    """
    names = list(signature)

    def nothing():
        return [
            np.zeros([side or 0 for side in spec.shape], spec.dtype.as_numpy_dtype)
            for spec in signature.values()
        ]

    def call(number):
        with _calls:
            if _calls.ending:
                return nothing()
            try:
                made = make(int(number))
            except RuntimeError as error:  # concurrent.futures ends a little before this module does
                if "after interpreter shutdown" in str(error):
                    return nothing()
                raise
            return [made[name] for name in names]

    def load(number):
        values = tf.numpy_function(call, [number], [signature[name].dtype for name in names])
        for name, value in zip(names, values, strict=True):
            value.set_shape(signature[name].shape)
        return dict(zip(names, values, strict=True))

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    if private_threads is not None:
        options.threading.private_threadpool_size = private_threads
    dataset = numbers.map(load, num_parallel_calls=parallel, deterministic=True)
    return dataset.prefetch(prefetch).with_options(options)


def aligned_empty(shape: Sequence[int]) -> np.ndarray:
    """An uninitialised uint8 array that TensorFlow takes from a Python function as it is; others it copies."""
    size = int(np.prod(shape, dtype=np.int64))
    whole = np.empty(size + _ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % _ALIGNMENT
    return whole[start : start + size].reshape(shape)
