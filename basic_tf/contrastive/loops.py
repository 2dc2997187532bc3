"""The loop over microbatches and over tiles: one of them in memory at a time. For this folder."""

import tensorflow as tf


def one_after_the_other(count, body, state):
    """body(i, *state) -> state for i below count, strictly one after the other: two microbatches
    or tiles in flight would double the memory."""
    return tf.while_loop(
        lambda i, *_: i < count,
        lambda i, *state: (i + 1, *body(i, *state)),
        (tf.constant(0), *state),
        parallel_iterations=1,
    )[1:]
