"""Where a step runs: the small interface that training code asks, whatever the devices are.

Two families stand behind it: `strategies.py` (tf.distribute: one device, mirrored, multi-worker, TPU) and, for sharded
weights, `mesh.py` (DTensor). Step code never names either.

A training step has two halves. The *replica half* runs once per replica on that replica's rows: forward, backward,
then `sum` over replicas. The *update half* runs once and applies the summed gradients. Keras 3 variables have no
aggregation under tf.distribute and drift apart silently when they are assigned inside a replica; hence the split.
"""

import abc
import contextlib
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf


class DeviceError(ValueError):
    """The devices at hand do not fit what was asked for."""


class Collectives(abc.ABC):
    """What the replica half of a step may ask of the other replicas. Never call these inside a TensorFlow loop.

    global_view: whether the replica half sees the rows of the global batch as logical tensors (a mesh), and asks for
    layouts, instead of seeing this replica's rows.
    """

    global_view = False

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
    """Creates variables, feeds the replicas, runs the replica half and the update half of a step.

    collectives is None where there is one replica: there is nobody to ask.
    host_loop says whether Python feeds the steps one by one (and can time the wait for data), or whether
    `steps_per_loop` steps run inside one compiled loop, as a TPU wants.
    """

    name: str
    replicas: int
    hosts: int
    host: int
    collectives: Collectives | None
    host_loop: bool
    strategy: tf.distribute.Strategy | None
    model_axis: int = 1  # devices that share each weight

    @abc.abstractmethod
    def scope(self) -> contextlib.AbstractContextManager:
        """Variables made inside belong to this runtime."""

    @abc.abstractmethod
    def iterator(self, host_rows: Callable[[int, int], tf.data.Dataset]):
        """An iterator of per-replica batches.

        host_rows(host, hosts) is a dataset of this host's rows of each global batch, in the order of the rows.
        """

    def place(self, parameters: Mapping[str, object], layouts: Mapping[str, tuple]) -> None:  # noqa: B027
        """Cuts parameters as their rules say; only a mesh does (one entry per dimension: None or "model")."""

    def step_function(self, step: Callable) -> Callable:
        """The step, compiled. No autograph: every loop of ours is an explicit tf.while_loop."""
        return tf.function(step, autograph=False)

    def replicated(self, value: tf.Tensor) -> tf.Tensor:
        """A host value as the step wants it."""
        return value

    @abc.abstractmethod
    def run(self, replica_half: Callable, args: Sequence):
        """Runs the replica half on every replica and returns its per-replica results."""

    @abc.abstractmethod
    def update(self, anchor: tf.Variable, function: Callable, args: Sequence) -> None:
        """The update half: function(*args) may assign any variable of this runtime; it runs once for each copy.

        anchor: any variable of the runtime; it names the devices that hold copies. args: nests of per-replica results
        of `run` that are equal on all replicas, or plain values.
        """

    @abc.abstractmethod
    def local(self, value):
        """One copy of a nest of per-replica results that are equal on all replicas."""

    def any_host(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag, true if it is true on any host. All hosts must ask together; nobody goes on before all have."""
        return [bool(flag) for flag in flags]

    @abc.abstractmethod
    def replica_spread(self, variables: dict[str, tf.Variable]) -> dict[str, float]:
        """The paths whose copies differ between replicas, each with the largest difference; empty when all is well."""

    def rows_per_replica(self, batch_size: int) -> int:
        """Rows of the global batch for each replica; an error in words if it does not divide."""
        if batch_size % self.replicas:
            raise DeviceError(
                f"a global batch of {batch_size} cannot be divided among {self.replicas} replicas ({self.name}); "
                f"use {batch_size // self.replicas * self.replicas or self.replicas} "
                f"or {(batch_size // self.replicas + 1) * self.replicas}"
            )
        return batch_size // self.replicas
