"""What the optimizer keeps, and what an update holds while it runs: its own rule, traced on one parameter of each kind."""

from typing import NamedTuple

import tensorflow as tf

from basic_tf.optimization.rules import default_layout
from basic_tf.planning.block_trace import Reader, placeholders
from basic_tf.planning.liveness import liveness


class OptimizerMemory(NamedTuple):
    """Bytes on one device.

    slots: between the steps. copies: what is made of the slots before any gradient is there, because nothing keeps the
    executor from it, and stays until the update. update: the most that one parameter's update holds beside its gradient.
    """

    slots: int
    copies: int
    update: int


def optimizer_memory(
    rule, shapes: dict[str, tuple[int, ...]], dtype: str, model_axis: int, early: bool
) -> OptimizerMemory:
    """shapes: trained parameters by path. early: as in `tower_memory`; without it nothing is copied ahead."""
    kinds: dict[tuple, list[str]] = {}
    slots = 0
    for path, shape in shapes.items():
        specs = rule.slot_specs(path, shape, dtype)
        layout = default_layout(path, shape, model_axis)
        for spec in specs.values():
            slots += spec.bytes // (model_axis if any(layout[axis] for axis in spec.axes) else 1)
        kinds.setdefault((len(shape), tuple(specs)), []).append(path)

    def size(path):
        count = tf.TensorShape(shapes[path]).num_elements()
        return count // (model_axis if any(default_layout(path, shapes[path], model_axis)) else 1)

    copies = update = 0
    for paths in kinds.values():
        largest = max(paths, key=size)
        kept, most = _traced_update(rule, largest, shapes[largest], dtype)
        whole = max(1, tf.TensorShape(shapes[largest]).num_elements())
        if early:
            copies += kept * sum(map(size, paths)) // whole
        update = max(update, most * size(largest) // whole)
    return OptimizerMemory(slots, copies, update)


def _traced_update(rule, path: str, shape: tuple[int, ...], dtype: str) -> tuple[int, int]:
    """(bytes kept from before the gradient, peak of the update beyond them and the gradient)."""
    found = []

    def traced():
        value, gradient = placeholders([tf.TensorSpec(shape, dtype)] * 2)
        specs = rule.slot_specs(path, shape, dtype)
        values = placeholders({name: tf.TensorSpec(s.shape, s.dtype) for name, s in specs.items()})
        step, rate, key = placeholders(
            [tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.float32), tf.TensorSpec([2], tf.uint32)]
        )
        new_value, new = rule.update(
            path, value, gradient, values, step, rate, 0.01, key if rule.stochastic else None
        )
        graph = tf.compat.v1.get_default_graph()
        reader = Reader(graph, [new_value, *new.values()], [], [gradient])
        early, _, late = reader.ops
        read = {b for op in late for b in op.reads}
        made = {b for op in early for b in op.writes}
        kept = liveness(early, reader.sizes, kept=read & made).after[-1] if early else 0
        given = [*(read & made), reader.buffer_of(gradient)]
        results = [reader.buffer_of(t) for t in (new_value, *new.values())]
        peak = liveness(late, reader.sizes, given=given, kept=results).peak
        found.append((kept, peak - sum(reader.sizes[b] for b in given)))
        return tf.constant(0)

    tf.function(traced, autograph=False).get_concrete_function()
    return found[0]
