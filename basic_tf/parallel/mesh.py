"""The DTensor backend of the runtime interface: a mesh batch x model, weights sharded over the model axis.

One process sees whole logical tensors; DTensor cuts every operation into one program for all devices. So there is one
`replica` half, over the rows of the *global* batch, and what the step code asks of the collectives is a layout: spread
these rows over the batch axis, make this tensor whole, cut that gradient as its variable is cut.

The two halves of a step are two DTensor functions. Inside one, every variable is read before it is assigned: a DTensor
function that reads what it has just assigned silently computes with other numbers.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from basic_tf.parallel import runtime, weights

BATCH, MODEL = "batch", "model"
Layout = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices share the rows of a batch, and how many share each weight.

    shape: "4x2" is 4 on the batch axis, 2 on the model axis. Devices along the model axis see the same rows, so they
    compute the same: that axis saves memory and no time. smallest_sharded: weights of fewer elements stay whole.
    shard_over: the axis that cuts weights and slots. "batch" cuts them among the devices that share the rows, so that
    nothing is computed twice: what BASIC calls SPMD weight sharding.
    """

    shape: str = "1x1"
    smallest_sharded: int = 16_384
    shard_over: str = MODEL

    def __post_init__(self):
        if not re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", self.shape):
            raise runtime.DeviceError(
                f"a mesh of {self.shape!r} makes no sense; give batch x model as two whole numbers, e.g. --mesh=4x2"
            )

        if self.shard_over not in (BATCH, MODEL):
            raise runtime.DeviceError(
                f"Mesh.shard_over is {self.shard_over!r}; it can be {BATCH!r} or {MODEL!r}"
            )

    @property
    def batch(self) -> int:
        """Devices along the batch axis."""
        return int(self.shape.split("x")[0])

    @property
    def model(self) -> int:
        """Devices along the model axis."""
        return int(self.shape.split("x")[1])

    @property
    def shards(self) -> int:
        """Into how many parts a weight is cut."""
        return self.batch if self.shard_over == BATCH else self.model

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.batch * self.model


class MeshCollectives(runtime.Collectives):
    """What the replica half asks of a mesh. Every tensor is a logical one: its rows are those of the global batch."""

    global_view = True

    def __init__(self, mesh: dtensor.Mesh):
        self._mesh = mesh

    @property
    def replicas(self) -> int:
        """Devices that share the rows of the global batch."""
        return self._mesh.dim_size(BATCH)

    def replica_index(self) -> tf.Tensor:
        """There is none: the step sees all rows."""
        raise NotImplementedError("a mesh has no replica index; its step sees the rows of the global batch")

    def all_gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The same rows, whole on every device."""
        return dtensor.relayout(rows, dtensor.Layout.replicated(self._mesh, rows.shape.rank))

    def sum(self, value):
        """The value itself: sums over the rows of logical tensors are global."""
        return value

    def spread(self, rows: tf.Tensor) -> tf.Tensor:
        """The same rows, cut over the batch axis."""
        return dtensor.relayout(rows, dtensor.Layout.batch_sharded(self._mesh, BATCH, rows.shape.rank))

    def like(self, value: tf.Tensor, variable) -> tf.Tensor:
        """The same tensor (a gradient), cut as the variable is."""
        return dtensor.relayout(value, weights.layout_of(variable))

    def microbatch(self, rows: tf.Tensor, index, count: int) -> tf.Tensor:
        """[B, ...] -> [B / count, ...]: microbatch `index` of every device's own rows, one device after the other.

        Each device takes consecutive rows of its own, so nothing moves, and groups of consecutive rows stay together.
        """
        replicas, tail = self.replicas, rows.shape[1:]
        size = rows.shape[0] // (replicas * count)
        # Spread anew: on a batch axis of one device the reshape takes it along to the second dimension.
        parts = self.spread(tf.reshape(rows, (replicas, count, size, *tail)))
        # tf.gather, not rows[:, index]: a strided slice that drops an axis mistakes the layout of those behind it.
        cut = tf.gather(parts, index, axis=1)
        return self.spread(tf.reshape(cut, (replicas * size, *tail)))

    def place_microbatch(self, part: tf.Tensor, index, count: int) -> tf.Tensor:
        """The inverse: [B / count, ...] -> [B, ...], zero outside the rows of microbatch `index`."""
        replicas, tail = self.replicas, part.shape[1:]
        size = part.shape[0] // replicas
        chosen = tf.cast(tf.equal(tf.range(count), index), part.dtype)
        chosen = tf.reshape(chosen, (1, count, 1) + (1,) * len(tail))
        placed = self.spread(tf.reshape(part, (replicas, 1, size, *tail))) * chosen
        return self.spread(tf.reshape(placed, (replicas * count * size, *tail)))


def _sum_over_devices(own: tf.Tensor) -> tf.Tensor:
    """[batch axis, model axis, n] -> [n]."""
    return tf.reduce_sum(own, (0, 1))


def _never_constant(value: np.ndarray) -> np.ndarray:
    """Unsigned for signed: DTensor takes small int32 and int64 inputs for constants and compiles anew when they change."""
    unsigned = {np.dtype(np.int32): np.uint32, np.dtype(np.int64): np.uint64}
    return value.astype(unsigned[value.dtype]) if value.ndim < 2 and value.dtype in unsigned else value


class MeshRuntime(runtime.Runtime):
    """A DTensor mesh behind the runtime interface.

    default_layout: called with (path or name, shape, model axis size, smallest sharded), see
    `optimization.rules.default_layout`; it says how a variable is cut when it is made. `place` cuts anew what a rule
    wants otherwise.
    """

    name = "dtensor"
    host_loop = True
    strategy = None

    def __init__(self, mesh: dtensor.Mesh, shape: MeshShape, default_layout: Callable[..., Layout]):
        self.mesh, self.shape = mesh, shape
        self._default_layout = default_layout
        self.replicas, self.model_axis = shape.batch, shape.shards
        self.host, self.hosts = dtensor.client_id(), dtensor.num_clients()
        self.collectives = MeshCollectives(mesh)
        self._compiled: dict[Callable, Callable] = {}

    def _layout(self, cuts: Layout) -> dtensor.Layout:
        return dtensor.Layout(
            [self.shape.shard_over if name else dtensor.UNSHARDED for name in cuts], self.mesh
        )

    def scope(self) -> contextlib.AbstractContextManager:
        """Every variable made inside becomes a DTensor variable with the default layout of its shape."""
        return tf.variable_creator_scope(self._create)

    def _create(self, next_creator, **options):
        del next_creator
        value = options["initial_value"]
        dtype = options.get("dtype")
        value = tf.convert_to_tensor(value() if callable(value) else value, dtype=dtype).numpy()
        cuts = self._default_layout(
            options.get("name") or "", value.shape, self.shape.shards, self.shape.smallest_sharded
        )
        return dtensor.DVariable(
            weights.packed(value, self._layout(cuts)),
            trainable=options.get("trainable"),
            name=options.get("name"),
        )

    def place(self, parameters: Mapping[str, object], layouts: Mapping[str, Layout]) -> None:
        """Cuts Keras variables anew where their layout is not the wanted one."""
        for path, cuts in layouts.items():
            old, layout = weights.underlying(parameters[path]), self._layout(cuts)
            if old.layout != layout:
                value = weights.packed(weights.logical_array(old), layout)
                # Keras knows no way to exchange the variable inside its own; nothing else holds it yet.
                parameters[path]._value = dtensor.DVariable(value, trainable=old.trainable, name=old.name)

    def iterator(self, host_rows: Callable[[int, int], tf.data.Dataset]):
        """Batches as DTensors, their rows cut over the batch axis."""
        places = self.mesh.local_device_locations()
        rows_of_axis = sorted({place[BATCH] for place in places})
        for batch in host_rows(self.host, self.hosts).as_numpy_iterator():
            packed = {}
            for key, rows in batch.items():
                rows = _never_constant(rows)
                part = rows.shape[0] // len(rows_of_axis)
                parts = [
                    tf.constant(rows[part * rows_of_axis.index(place[BATCH]) :][:part]) for place in places
                ]
                packed[key] = dtensor.pack(parts, dtensor.Layout.batch_sharded(self.mesh, BATCH, rows.ndim))
            yield packed

    def step_function(self, step: Callable) -> Callable:
        """The step itself, in Python: each half is a DTensor function of its own."""
        return step

    def replicated(self, value: tf.Tensor) -> tf.Tensor:
        """A host value on every device."""
        value = tf.constant(_never_constant(value.numpy()))
        return dtensor.copy_to_mesh(value, dtensor.Layout.replicated(self.mesh, value.shape.rank))

    def _call(self, function: Callable, args: Sequence):
        # Bound methods are equal when their object is: one trace for a trainer's half.
        if function not in self._compiled:
            self._compiled[function] = tf.function(function, autograph=False)
        with dtensor.default_mesh(self.mesh):
            return self._compiled[function](*args)

    def run(self, replica_half: Callable, args: Sequence):
        """The replica half, once, over the rows of the global batch."""
        return self._call(replica_half, args)

    def update(self, anchor, function: Callable, args: Sequence) -> None:
        """The update half. It must read each variable before it assigns it."""
        del anchor
        self._call(function, args)

    def local(self, value):
        """Replicated results as plain tensors on the host."""
        return tf.nest.map_structure(lambda v: tf.constant(dtensor.unpack(v)[0].numpy()), value)

    def any_host(self, flags: Sequence[bool]) -> list[bool]:
        """A sum over all devices."""
        if self.hosts == 1:
            return super().any_host(flags)
        layout = dtensor.Layout([BATCH, MODEL, dtensor.UNSHARDED], self.mesh)
        own = dtensor.pack([tf.constant([[flags]], tf.float32)] * self.mesh.num_local_devices(), layout)
        return [bool(value > 0) for value in self.local(self._call(_sum_over_devices, (own,))).numpy()]

    def replica_spread(self, variables: dict[str, tf.Variable]) -> dict[str, float]:
        """Compares the copies that devices along the batch axis hold of each shard."""
        spread = {}
        for path, variable in variables.items():
            layout = weights.layout_of(variable)
            if layout is None:
                continue
            copies: dict[str, np.ndarray] = {}
            worst = 0.0
            slices = weights.local_slices(layout, variable.shape)
            for part, own in zip(dtensor.unpack(variable.read_value()), slices, strict=True):
                array = part.numpy().astype(np.float64)
                first = copies.setdefault(str(own), array)
                worst = max(worst, float(np.max(np.abs(array - first), initial=0.0)))
            if worst:
                spread[path] = worst
        return spread

    def bytes_per_device(self, variables: Sequence) -> list[int]:
        """Bytes of these variables on each local device, counted from the shards themselves."""
        totals = [0] * self.mesh.num_local_devices()
        for variable in variables:
            for device, part in enumerate(dtensor.unpack(weights.underlying(variable).read_value())):
                totals[device] += part.numpy().nbytes
        return totals


def create(
    shape: MeshShape, default_layout: Callable[..., Layout], logical_devices: int | None = None
) -> MeshRuntime:
    """Starts DTensor on the TPUs or GPUs of this machine, else on logical CPU devices, and lays the mesh over them.

    logical_devices: how many CPU devices there are to be; None makes as many as the mesh needs. Must run before any
    other TensorFlow operation. With several processes (a TPU pod slice), DTensor reads DTENSOR_CLIENT_ID, DTENSOR_JOBS and
    DTENSOR_JOB_NAME from the environment. Raises DeviceError when the mesh does not fit the devices.
    """
    kind, clients = dtensor.preferred_device_type(), dtensor.num_clients()
    if kind == "CPU":
        _check_fit(shape, logical_devices * clients if logical_devices else shape.devices, kind)
        cpu = tf.config.list_physical_devices("CPU")[0]
        own = [tf.config.LogicalDeviceConfiguration()] * (shape.devices // clients)
        try:
            tf.config.set_logical_device_configuration(cpu, own)
        except RuntimeError as error:
            raise runtime.DeviceError(
                f"a mesh of {shape.shape} was asked for after TensorFlow had started; create the runtime first"
            ) from error
    dtensor.initialize_accelerator_system(kind)
    _check_fit(shape, dtensor.num_global_devices(kind), kind)
    make = dtensor.create_distributed_mesh if clients > 1 or kind == "TPU" else dtensor.create_mesh
    mesh = make([(BATCH, shape.batch), (MODEL, shape.model)], device_type=kind)
    return MeshRuntime(mesh, shape, default_layout)


def _check_fit(shape: MeshShape, found: int, kind: str) -> None:
    if found != shape.devices:
        raise runtime.DeviceError(
            f"--mesh={shape.shape} needs {shape.devices} devices, but there are {found} ({kind}); use a mesh whose "
            f"product is {found}, e.g. --mesh={found}x1"
        )
