"""Where the second pass of Algorithm 1 puts the gradients of its microbatches."""

from typing import Any, Protocol

import tensorflow as tf

from basic_tf.precision import wide


class Accumulator(Protocol):
    """Takes contributions whose sum is the gradient; what it carries between them goes through a loop.

    pieces: into how many equal parts a microbatch is cut, each with a gradient of its own (1: none).
    """

    pieces: int

    def start(self, counts: list) -> list:
        """The state before the first contribution: a nest of tensors, one element for each variable.

        counts: how many contributions each variable will get (int, or a tensor where it is not known).
        """

    def add(self, state: list, found: dict[int, list[tf.Tensor | None]]) -> list:
        """The state after one more contribution to some variables: index -> the gradients of its pieces.

        None stands for a gradient of zero. The new state must depend on everything that was assigned.
        """


class GradientSums:
    """The default: a buffer for each variable, in at least float32, which holds the gradient in the end."""

    pieces = 1

    def __init__(self, variables: list):
        self._variables = variables

    def start(self, counts: list) -> list[tf.Tensor]:
        """Zeros."""
        del counts
        return [tf.zeros(v.shape, wide(v.dtype)) for v in self._variables]

    def add(self, state: list[tf.Tensor], found: dict[int, list[Any]]) -> list[tf.Tensor]:
        """Adds to the buffers."""
        state = list(state)
        for k, gradients in found.items():
            for gradient in gradients:
                if gradient is not None:  # embedding tables give IndexedSlices: dense from here on
                    state[k] += tf.cast(tf.convert_to_tensor(gradient), state[k].dtype)
        return state
