"""Streams through an encoder: several batches under way at a time, results in order, memory bounded.

While one batch is in a tower another is decoded or tokenized, the caller reads and ranks, and towers too small to fill
all cores fill them together.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from basic_tf.evaluation.encoder import DEFAULT_BATCH, Encoder, UndecodableError

UNDER_WAY = 3


def overlapped(function: Callable, items: Iterable, under_way: int = UNDER_WAY) -> Iterator[tuple]:
    """(item, function(item)) for each item, in the order of the items; `under_way` calls run at a time.

    The calls run in threads of their own; the caller's thread reads items and takes results meanwhile. At most
    2 x under_way items are read and not yet taken, however many there are. An error of a call is raised where its result
    would have come; after that, an interrupt, or the end of the generator, no further call starts.
    """
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(under_way) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) == 2 * under_way:
                    oldest, result = waiting.popleft()
                    yield oldest, result.result()
            while waiting:
                oldest, result = waiting.popleft()
                yield oldest, result.result()
        finally:
            for _, result in waiting:
                result.cancel()


def batch_size(encoder: Encoder) -> int:
    """How many pictures or sentences the encoder takes at once; one that does not say is given the default."""
    return getattr(encoder, "batch_size", DEFAULT_BATCH)


def embedded(
    encoder: Encoder,
    batches: Iterable[tuple[Sequence[bytes], np.ndarray, np.ndarray]],
    origin: str = "test set",
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(unit rows float32 [n, E], labels [n, ...], record numbers [n]) of batches as tests read them, in their order.

    Pictures are dealt out anew in the encoder's own batches: only the last is padded. ValueError names `origin` and the
    record of a picture that cannot be decoded.
    """

    def rows_of(batch):
        images, _, records = batch
        try:
            return encoder.encode_image_bytes(images)
        except UndecodableError as error:
            raise ValueError(
                f"{origin}: the picture of record {records[error.row]} {error.complaint}"
            ) from error

    for (_, labels, records), rows in overlapped(rows_of, _dealt(batches, batch_size(encoder))):
        yield rows, labels, records


def _dealt(batches, size: int):
    """The same stream in batches of `size`; the last may be smaller."""
    images, labels, records = [], [], []
    for more_images, more_labels, more_records in batches:
        images.extend(more_images)
        labels.extend(np.asarray(more_labels))
        records.extend(np.asarray(more_records))
        while len(images) >= size:
            yield images[:size], np.asarray(labels[:size]), np.asarray(records[:size])
            del images[:size], labels[:size], records[:size]
    if images:
        yield images, np.asarray(labels), np.asarray(records)
