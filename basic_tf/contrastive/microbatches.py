"""How the pairs of a replica are cut into microbatches, for both forms of Algorithm 1."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Rows = tf.Tensor | Callable[[tf.Tensor], tf.Tensor]


class Microbatches(NamedTuple):
    """How the B rows of this replica are cut: `count` times `size` consecutive rows. `count` may be a
    tensor."""

    count: Any
    size: Any

    def rows(self, source: Rows, i) -> tf.Tensor:
        """The rows of microbatch i, out of all rows or from the function that makes them."""
        if callable(source):
            rows = source(i)
            if rows.shape[0] is not None and isinstance(self.size, int) and rows.shape[0] != self.size:
                raise ValueError(
                    f"the function of the microbatch index returned {rows.shape[0]} rows; expected "
                    f"{self.size}, the size of a microbatch."
                )
            return rows
        start = tf.concat([[i * self.size], tf.zeros([source.shape.rank - 1], tf.int32)], 0)
        rows = tf.slice(source, start, [self.size, *([-1] * (source.shape.rank - 1))])
        # Without a known number of rows BatchNorm would not take its fused kernel.
        rows.set_shape([self.size if isinstance(self.size, int) else None, *source.shape[1:]])
        return rows


def count_rows(images: Rows, token_ids: Rows, batch: int | None):
    """Pairs on this replica, which the sources must agree about: an int, or a tensor where it is not known."""
    rows = [source for source in (images, token_ids) if not callable(source)]
    sizes = {source.shape[0] for source in rows if source.shape[0] is not None} | ({batch} - {None})
    if len(sizes) > 1:
        raise ValueError(
            f"images and token_ids must hold as many rows as each other (and as `batch`, if given); received "
            f"{sizes}."
        )
    if sizes:
        (size,) = sizes
        if not size:
            raise ValueError("images and token_ids hold no pair; a batch needs at least one")
        return size
    if not rows:
        raise ValueError(
            "images and token_ids are both functions: pass `batch`, the number of pairs on this replica."
        )
    return tf.shape(rows[0])[0]


def divisors(rows: int, group: int = 1) -> list[int]:
    """The sizes, ascending, that divide the rows and hold whole groups."""
    return [size for size in range(group, rows + 1, group) if rows % size == 0]


def cut_rows(batch, microbatch: int | None) -> Microbatches:
    """The cut into microbatches of the given size (None: one); ValueError if it does not divide the batch."""
    if microbatch is None:
        return Microbatches(1, batch)
    if microbatch < 1:
        raise ValueError(f"microbatch must be at least 1; received {microbatch}.")
    if not isinstance(batch, int):
        message = f"the number of pairs on a replica must be a multiple of the microbatch, {microbatch}"
        with tf.control_dependencies([tf.debugging.assert_equal(batch % microbatch, 0, message)]):
            return Microbatches(batch // microbatch, microbatch)
    if batch % microbatch:
        dividing = divisors(batch)
        nearest = [max(d for d in dividing if d < microbatch), *(d for d in dividing if d > microbatch)][:2]
        raise ValueError(
            f"{batch} pairs on a replica cannot be cut into microbatches of {microbatch}: the microbatch "
            f"must divide {batch}. The nearest that do: {', '.join(map(str, nearest))}."
        )
    return Microbatches(batch // microbatch, microbatch)
