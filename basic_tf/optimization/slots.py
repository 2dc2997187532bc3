"""Variables that live beside a parameter: created alike on every runtime, sharded as their parameter is.

The one discipline of this room: within one function a variable is read once, everything is computed as
tensors, and the result is assigned last. Under DTensor a variable that is read again after its assignment
silently gives wrong numbers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf


class SlotSpec(NamedTuple):
    """A slot before it exists. axes: the axes of the parameter that the slot keeps, in order."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the slot in bytes."""
        count = 1
        for size in self.shape:
            count *= size
        return count * tf.as_dtype(self.dtype).size


def underlying(parameter) -> tf.Variable:
    """The TensorFlow variable of a Keras variable; any other variable is returned as it is."""
    value = getattr(parameter, "value", None)
    return parameter if value is None or callable(value) else value


def path_of(parameter) -> str:
    """The path a parameter has when its owner names none: Keras' path, or the variable's name."""
    return getattr(parameter, "path", None) or parameter.name.removesuffix(":0")


def identities(parameters: Mapping[str, object]) -> dict[int, str]:
    """From the identity of each variable (Keras' and TensorFlow's object alike) to its path.

    Raises ValueError when two paths name one variable: it would be updated twice.
    """
    paths: dict[int, str] = {}
    for path, parameter in parameters.items():
        for key in {id(parameter), id(underlying(parameter))}:
            if paths.setdefault(key, path) != path:
                raise ValueError(f"{path} and {paths[key]} are one variable; give it once")
    return paths


def create(name: str, spec: SlotSpec, parameter) -> tf.Variable:
    """A variable of zeros under the active strategy scope; a DTensor parameter's slot takes its sharding."""
    variable = underlying(parameter)
    layout = getattr(variable, "layout", None)
    if layout is None:
        return tf.Variable(lambda: tf.zeros(spec.shape, spec.dtype), trainable=False, name=name)
    from tensorflow.experimental import dtensor

    kept: Sequence[str] = [layout.sharding_specs[axis] for axis in spec.axes]
    slot_layout = dtensor.Layout(list(kept), layout.mesh)
    zeros = dtensor.call_with_layout(tf.zeros, slot_layout, shape=spec.shape, dtype=tf.as_dtype(spec.dtype))
    return dtensor.DVariable(zeros, trainable=False, name=name)
