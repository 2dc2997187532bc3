"""The one reader of weights (design: a tower is written once and is sharded by configuration), and their arrays.

Everything here looks at the variable's own type: a plain variable is taken as it is, a DTensor variable (which has a
`layout`) shard by shard. There is no global switch.
"""

import numpy as np
import tensorflow as tf


def underlying(weight):
    """The TensorFlow variable inside a Keras variable; anything else is returned as it is."""
    return weight.value if hasattr(weight, "value") and not callable(weight.value) else weight


def layout_of(weight):
    """The DTensor layout of a variable or Keras variable; None if it is a plain one."""
    return getattr(underlying(weight), "layout", None)


def gathered(weight, dtype=None) -> tf.Tensor:
    """The whole weight in the computation dtype.

    weight: a Keras variable, a tf.Variable or a DTensor variable. dtype: the computation dtype; None keeps the
    variable's own. A plain variable is cast. A sharded DTensor variable is cast shard by shard, then laid out as
    replicated: half the bytes on the wire when computing in bfloat16. Inside a recomputed block the gathered copy
    lives only as long as the block (BASIC section on SPMD weight sharding).
    """
    value = underlying(weight)
    layout = getattr(value, "layout", None)
    tensor = tf.convert_to_tensor(value)
    if dtype is not None:
        tensor = tf.cast(tensor, dtype)
    if layout is None:
        return tensor
    from tensorflow.experimental import dtensor

    return dtensor.relayout(tensor, dtensor.Layout.replicated(layout.mesh, rank=layout.rank))


def local_slices(layout, shape) -> list[tuple[slice, ...]]:
    """Which part of a logical array each local device holds, in the order of `dtensor.pack` and `unpack`."""
    from tensorflow.experimental import dtensor

    slices = []
    for place in layout.mesh.local_device_locations():
        own = []
        for size, name in zip(shape, layout.sharding_specs, strict=True):
            if name == dtensor.UNSHARDED:
                own.append(slice(None))
            else:
                part = size // layout.mesh.dim_size(name)
                own.append(slice(place[name] * part, (place[name] + 1) * part))
        slices.append(tuple(own))
    return slices


def packed(array: np.ndarray, layout) -> tf.Tensor:
    """A DTensor of a logical array: every device is sent its own part and nothing else.

    Raises ValueError when a sharded dimension does not divide.
    """
    from tensorflow.experimental import dtensor

    for size, name in zip(array.shape, layout.sharding_specs, strict=True):
        if name != dtensor.UNSHARDED and size % layout.mesh.dim_size(name):
            raise ValueError(f"{size} rows cannot be cut into {layout.mesh.dim_size(name)} parts ({name})")
    return dtensor.pack([tf.constant(array[own]) for own in local_slices(layout, array.shape)], layout)


def logical_array(variable) -> np.ndarray:
    """The whole value of any variable on the host.

    The shards of a DTensor variable are put together on the host where this process holds them all; with several
    processes they are gathered first, so all must call this together.
    """
    layout = layout_of(variable)
    if layout is None:
        return np.asarray(variable)
    from tensorflow.experimental import dtensor

    variable = underlying(variable)
    value = variable.read_value()
    if layout.mesh.num_local_devices() < layout.mesh.size:
        layout = dtensor.Layout.replicated(layout.mesh, rank=layout.rank)
        value = dtensor.relayout(value, layout)
        return np.array(dtensor.unpack(value)[0])
    whole = np.empty(variable.shape, variable.dtype.as_numpy_dtype)
    seen = set()
    for part, own in zip(dtensor.unpack(value), local_slices(layout, variable.shape), strict=True):
        if str(own) not in seen:
            seen.add(str(own))
            whole[own] = part.numpy()
    return whole


def assign_array(variable, array: np.ndarray) -> None:
    """Assigns a logical array, in the variable's dtype and layout; array: of the variable's shape."""
    layout = layout_of(variable)
    if layout is None:
        variable.assign(tf.cast(array, variable.dtype))
        return
    variable = underlying(variable)
    variable.assign(packed(np.asarray(array).astype(variable.dtype.as_numpy_dtype), layout))
