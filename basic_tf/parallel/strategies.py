"""The tf.distribute backend of the runtime interface: one device, mirrored, multi-worker, TPU.

Weights are replicated, the batch is split. Everything is written once against tf.distribute.Strategy, so that what is
tested on logical CPU devices is what a TPU runs.
"""

import contextlib
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import multi_worker_util

from basic_tf.machine import cores
from basic_tf.parallel import runtime

NAMES = ("one_device", "mirrored", "multi_worker", "tpu")


class ReplicaCollectives(runtime.Collectives):
    """Collectives of the replica context; valid inside `strategy.run` only."""

    def __init__(self, replicas: int):
        self._replicas = replicas

    @property
    def replicas(self) -> int:
        """How many replicas share the global batch."""
        return self._replicas

    def replica_index(self) -> tf.Tensor:
        """int32 scalar: which rows are mine."""
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.cast(index, tf.int32)

    def all_gather(self, rows: tf.Tensor) -> tf.Tensor:
        """Concatenates the rows of all replicas, in their order."""
        return tf.distribute.get_replica_context().all_gather(rows, axis=0)

    def sum(self, value):
        """Sums a nest of tensors over the replicas."""
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


class StrategyRuntime(runtime.Runtime):
    """A tf.distribute.Strategy behind the runtime interface."""

    def __init__(self, name: str, strategy: tf.distribute.Strategy, host: int = 0, hosts: int = 1):
        self.name = name
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.host, self.hosts = host, hosts
        self._replicas_of_a_host(hosts)
        self.collectives = ReplicaCollectives(self.replicas) if self.replicas > 1 else None
        self.host_loop = name != "tpu"
        self._sum_of_flags = None

    def _replicas_of_a_host(self, hosts: int) -> int:
        if self.replicas % hosts:
            raise runtime.DeviceError(
                f"{self.replicas} replicas cannot be shared evenly by {hosts} hosts ({self.name}); every host needs as many "
                "devices"
            )
        return self.replicas // hosts

    def scope(self) -> contextlib.AbstractContextManager:
        """The strategy's scope."""
        return self.strategy.scope()

    def iterator(self, host_rows: Callable[[int, int], tf.data.Dataset]):
        """One element per local replica from each batch of this host's rows."""
        if self.replicas == 1:
            return iter(host_rows(self.host, self.hosts))

        def with_static_rows(context):
            # A worker of several makes one pipeline, its own; the one process of a TPU slice makes one for each host of it.
            pipelines = context.num_input_pipelines
            local = self._replicas_of_a_host(pipelines)

            def parts(rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
                # [local * b, ...] -> local elements of [b, ...]: consecutive elements go to consecutive replicas.
                return {
                    key: tf.reshape(value, tf.concat([[local, -1], tf.shape(value)[1:]], 0))
                    for key, value in rows.items()
                }

            dataset = host_rows(context.input_pipeline_id, pipelines)
            spec = dataset.element_spec
            dataset = dataset.map(parts).unbatch()
            return dataset.map(
                lambda rows: {
                    key: tf.ensure_shape(value, [spec[key].shape[0] // local, *spec[key].shape[1:]])
                    for key, value in rows.items()
                }
            )

        return iter(self.strategy.distribute_datasets_from_function(with_static_rows))

    def run(self, replica_half: Callable, args: Sequence):
        """`strategy.run`, or a plain call where there is one replica."""
        if self.replicas == 1:
            return replica_half(*args)
        return self.strategy.run(replica_half, args=tuple(args))

    def update(self, anchor: tf.Variable, function: Callable, args: Sequence) -> None:
        """`strategy.extended.update`: the one place where mirrored variables may be assigned.

        Inside it every mirrored variable stands for its copy on the device being updated, not for the anchor alone.
        """
        if self.replicas == 1:
            function(*args)
            return

        def on_each_copy(anchor, *args):
            del anchor
            function(*args)

        self.strategy.extended.update(anchor, on_each_copy, args=tuple(args), group=True)

    def local(self, value):
        """The first local replica's copy."""
        if self.replicas == 1:
            return value
        return tf.nest.map_structure(lambda v: self.strategy.experimental_local_results(v)[0], value)

    def any_host(self, flags: Sequence[bool]) -> list[bool]:
        """A sum over the replicas of every host, by the strategy's own collectives."""
        if self.hosts == 1:
            return super().any_host(flags)
        if self._sum_of_flags is None:

            def on_replica(own):
                # The argument of a function has no device, and the reduction goes to the device of its operand.
                return self.collectives.sum(tf.identity(own))

            @tf.function(autograph=False)
            def sum_of_flags(own):
                return self.strategy.run(on_replica, args=(own,))

            self._sum_of_flags = sum_of_flags
        sums = self.local(self._sum_of_flags(tf.constant(flags, tf.float32)))
        return [bool(value > 0) for value in sums.numpy()]

    def replica_spread(self, variables: dict[str, tf.Variable]) -> dict[str, float]:
        """Compares the local copies of every variable."""
        spread = {}
        for path, variable in variables.items():
            copies = [copy.numpy() for copy in self.strategy.experimental_local_results(variable)]
            differences = [
                np.max(np.abs(copy.astype(np.float64) - copies[0].astype(np.float64)), initial=0.0)
                for copy in copies[1:]
            ]
            if any(differences):
                spread[path] = float(max(differences))
        return spread


def is_lost_worker(error: Exception) -> bool:
    """Whether an error is that of a collective which says that another worker has died or hangs."""
    kinds = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    )
    if not isinstance(error, tf.errors.OpError):
        return False
    return isinstance(error, kinds) or "Collective ops is aborted" in str(error.message)


def _keep_bfloat16_at_home(strategy: tf.distribute.MultiWorkerMirroredStrategy) -> None:
    """Lets each worker make its own initial value of a bfloat16 variable (a momentum: zeros).

    The strategy sends the first worker's initial values to the others, and TensorFlow's broadcast has no bfloat16.
    """
    extended = strategy.extended
    broadcast = extended._get_variable_creator_initial_value

    def initial_value(replica_id, device, primary_var, **options):
        def own_or_sent():
            value = options["initial_value"]
            with tf.device(device):
                value = tf.convert_to_tensor(value() if callable(value) else value, options.get("dtype"))
            if value.dtype == tf.bfloat16:
                return value
            return broadcast(replica_id, device, primary_var, **{**options, "initial_value": value})()

        return broadcast(replica_id, device, primary_var, **options) if replica_id else own_or_sent

    extended._get_variable_creator_initial_value = initial_value


def use_all_cores(threads: int | None = None) -> int:
    """Sets TensorFlow's thread pools from the cores this process may use; must come before any other TensorFlow op."""
    count = threads or cores()
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)
    return count


def place_in_cluster() -> tuple[int, int]:
    """(host, hosts) of this process as TF_CONFIG has it: the chief, where the cluster has one, is host 0, workers follow.

    Raises DeviceError for an environment without, for tasks that do not train, and for what TensorFlow cannot use.
    """
    form = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    if "TF_CONFIG" not in os.environ:
        raise runtime.DeviceError(
            f"--runtime=multi_worker needs the environment variable TF_CONFIG ({form}), which is not set"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster, kind, index = resolver.cluster_spec(), resolver.task_type, resolver.task_id
        if kind is None or index is None:
            raise ValueError("it names no task with a type and an index")
        if kind not in ("chief", "worker"):
            raise ValueError(
                f"a task of the type {kind!r} does not train; evaluate with --mode=continuous_eval --runtime=one_device"
            )
        if "ps" in cluster.jobs:
            # TensorFlow would wait for the first of them, which nobody runs.
            raise ValueError(
                "the cluster has parameter servers (ps), which this runtime does not use; leave them out"
            )
        host = multi_worker_util.id_in_cluster(cluster, kind, index)
        hosts = multi_worker_util.worker_count(cluster, kind)
        if index < 0:
            raise ValueError(f"task index {index} of {hosts} hosts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        words = " ".join(str(error).split())
        raise runtime.DeviceError(
            f"TF_CONFIG cannot be used ({type(error).__name__}: {words}); it must read {form}, where `chief` may take "
            "the place of the first worker"
        ) from error
    return host, hosts


def create(name: str, tpu: str | None = None, logical_devices: int | None = None) -> StrategyRuntime:
    """Builds a runtime by name.

    tpu: the TPU's name or address for `tpu` ("local" on a TPU VM). logical_devices: for `mirrored` on a machine without
    GPUs, how many logical CPU devices stand in for them. Must run before any other TensorFlow operation.
    """
    if name == "one_device":
        return StrategyRuntime(name, tf.distribute.get_strategy())
    if name == "mirrored":
        # Physical devices: asking for logical ones would start TensorFlow and fix their number.
        if tf.config.list_physical_devices("GPU"):
            devices = tf.config.list_logical_devices("GPU")
        else:
            count = logical_devices or 1
            cpu = tf.config.list_physical_devices("CPU")[0]
            try:
                tf.config.set_logical_device_configuration(
                    cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
                )
            except RuntimeError as error:
                raise runtime.DeviceError(
                    f"{count} logical CPU devices were asked for after TensorFlow had started; create the runtime first"
                ) from error
            devices = tf.config.list_logical_devices("CPU")
        return StrategyRuntime(name, tf.distribute.MirroredStrategy([device.name for device in devices]))
    if name == "multi_worker":
        host, hosts = place_in_cluster()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        workers = strategy.extended._num_workers
        if workers != hosts:
            raise runtime.DeviceError(f"TF_CONFIG names {hosts} hosts, the strategy has {workers} workers")
        _keep_bfloat16_at_home(strategy)
        return StrategyRuntime(name, strategy, host, hosts)
    if name == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu or "")
            if tpu != "local":
                tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            strategy = tf.distribute.TPUStrategy(resolver)
        except (ValueError, RuntimeError, ImportError, OSError, tf.errors.OpError) as error:
            words = " ".join(str(error).split())[:300]
            raise runtime.DeviceError(
                f"--runtime=tpu finds no TPU with --tpu={tpu or ''} ({type(error).__name__}: {words}); give its name or "
                "address, or `local` on a TPU VM"
            ) from error
        return StrategyRuntime(name, strategy)
    raise runtime.DeviceError(f"--runtime={name} is not one of {', '.join(NAMES)}")
