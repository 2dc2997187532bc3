"""Where a step runs: the small interface that training code asks, whatever the devices are.

Two families stand behind it: `strategies.py` (tf.distribute: one device, mirrored, multi-worker, TPU) and, for sharded
weights, DTensor. Step code never names either.

A training step has two halves. The *replica half* runs once per replica on that replica's rows: forward, backward,
then `sum` over replicas. The *update half* runs once and applies the summed gradients. Keras 3 variables have no
aggregation under tf.distribute and drift apart silently when they are assigned inside a replica; hence the split.
"""

import abc
import contextlib
from collections.abc import Callable, Sequence

import tensorflow as tf


class RuntimeError_(ValueError):
    """The devices at hand do not fit what was asked for."""


class Collectives(abc.ABC):
    """What the replica half of a step may ask of the other replicas. Never call these inside a TensorFlow loop."""

    @property
    @abc.abstractmethod
    def replicas(self) -> int:
        """How many replicas share the global batch."""

    @abc.abstractmethod
    def replica_index(self) -> tf.Tensor:
        """int32 scalar in [0, replicas): which rows of the global batch are mine."""

    @abc.abstractmethod
    def all_gather(self, rows: tf.Tensor) -> tf.Tensor:
        """[b, ...] of each replica -> [replicas * b, ...], in the order of the replicas."""

    @abc.abstractmethod
    def sum(self, value):
        """The sum over replicas of a tensor or a nest of tensors; every replica gets the same result."""


class Runtime(abc.ABC):
    """Creates variables, splits the batch, runs the replica half and the update half of a step."""

    name: str
    replicas: int
    hosts: int
    host: int
    collectives: Collectives | None

    @abc.abstractmethod
    def scope(self) -> contextlib.AbstractContextManager:
        """Variables made inside belong to this runtime."""

    @abc.abstractmethod
    def split(self, batch: dict[str, tf.Tensor]):
        """This host's rows of the global batch -> what `run` takes, one equal part per local replica."""

    @abc.abstractmethod
    def run(self, replica_half: Callable, args: Sequence):
        """Runs the replica half everywhere; every replica must return the same values, and one copy comes back."""

    @abc.abstractmethod
    def update(self, variables: Sequence, function: Callable, *values: Sequence) -> None:
        """For each variable group: function(group, *its values) -> new values, assigned to every copy once.

        variables: a sequence of lists of variables. values: for each further argument, one nest per group.
        """

    @abc.abstractmethod
    def assert_replicas_equal(self, variables: dict[str, tf.Variable]) -> None:
        """Raises if the copies of a variable differ between replicas; called whenever a checkpoint is written."""

    def rows_per_replica(self, batch_size: int) -> int:
        """Rows of the global batch for each replica; an error in words if it does not divide."""
        if batch_size % self.replicas:
            raise RuntimeError_(
                f"a global batch of {batch_size} cannot be divided among {self.replicas} replicas ({self.name}); "
                f"use {batch_size // self.replicas * self.replicas or self.replicas} "
                f"or {(batch_size // self.replicas + 1) * self.replicas}"
            )
        return batch_size // self.replicas
