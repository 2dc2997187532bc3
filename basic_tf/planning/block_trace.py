"""One block of a tower, traced with weights that hold nothing: its operations, by when they can run.

The planner does not know what a block computes. It traces the block's own code, forward and backward, and reads the
graph: so it stays true when the code changes.
"""

import contextlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from basic_tf.planning.liveness import Op
from basic_tf.randomness import Noise

# Outputs that are their input under another shape or name.
_ALIASES = {
    "Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient", "Snapshot",
    "EnsureShape", "CheckNumerics",
}  # fmt: skip
# They read a shape, which is known when the graph is made: no buffer is held for them.
_SHAPES = {"Shape", "ShapeN", "Size", "Rank", "BroadcastGradientArgs", "ZerosLike", "OnesLike"}
_IN_PLACE = {
    "Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Neg", "Square", "Rsqrt", "Sqrt", "Exp", "Tanh", "Sigmoid", "TanhGrad",
    "SigmoidGrad", "RsqrtGrad", "SqrtGrad", "Softmax", "BiasAdd", "Maximum", "Minimum", "Select", "SelectV2", "Reciprocal",
    "SquaredDifference", "Pow", "Log", "Log1p", "Abs", "Sign", "FusedBatchNormV3", "FusedBatchNormGradV3",
}  # fmt: skip
_SOURCES = {"Const", "VarHandleOp", "Placeholder", "NoOp"}


class BlockTrace(NamedTuple):
    """Buffers are numbers; `sizes` are their bytes; a buffer of a weight or constant has none of its own.

    prepared: operations that need weights alone. The executor runs them as soon as it can, which is at the start.
    forward: those that need no gradient of the output. backward: the rest. state_in, state_out: the block's input and
    output. cotangents: gradients of state_out . gradients_in: of state_in (0: none).
    weight_gradients: buffers.
    operations: how many the graph has.
    """

    sizes: list[int]
    prepared: list[Op]
    forward: list[Op]
    backward: list[Op]
    state_in: list[int]
    state_out: list[int]
    cotangents: list[int]
    gradients_in: list[int]
    weight_gradients: list[int]
    operations: int


def _bytes(tensor: tf.Tensor) -> int:
    if not tensor.dtype.is_numpy_compatible or not tensor.shape.is_fully_defined():
        return 0
    return int(np.prod(tensor.shape.as_list(), dtype=np.int64)) * tensor.dtype.size


def untouched_variable(shape: tuple[int, ...], dtype, trainable: bool = True) -> tf.Variable:
    """A variable whose memory is never written: it costs address space, not memory."""
    return tf.Variable(
        lambda: tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=False), trainable=trainable
    )


def placeholders(specs):
    """A placeholder of the graph that is being made for each tf.TensorSpec of a nest."""
    return tf.nest.map_structure(lambda spec: tf.compat.v1.placeholder(spec.dtype, spec.shape), specs)


def trace(
    tower, index: int, state, training: bool, rows: int, taped: bool, sharded: frozenset[str] = frozenset()
) -> tuple:
    """Block `index` of a tower: (specs of the next state, its BlockTrace without a tape[, and with one]).

    state: a nest of tf.TensorSpec, the block's input. training: as in `Tower.forward`. rows: the microbatch.
    taped: with the backward pass. sharded: weight paths of which reading makes a whole copy.
    """
    block, weights, found = tower.blocks[index], {}, []

    def make(spec):
        weights[spec.path] = untouched_variable(spec.shape, tower.variable_dtype, spec.trainable)
        return weights[spec.path]

    block.stand_in(make)
    trained = [weights[s.path] for s in block.specs() if s.trainable]

    def traced():
        noise = Noise(*placeholders((tf.TensorSpec([2], tf.uint32), tf.TensorSpec([rows], tf.int32))))
        inputs = placeholders(state)
        flat = tf.nest.flatten(inputs)
        floats = [tensor for tensor in flat if tensor.dtype.is_floating]
        with tf.GradientTape() if taped else contextlib.nullcontext() as tape:
            if taped:
                tape.watch(floats)
            outputs, statistics = tower.run_block(index, inputs, training, noise)
        flat_out, cotangents, gradients = tf.nest.flatten(outputs), [], []
        if taped:
            targets = [tensor for tensor in flat_out if tensor.dtype.is_floating]
            cotangents = placeholders([tf.TensorSpec(t.shape, t.dtype) for t in targets])
            gradients = tape.gradient(targets, [*floats, *trained], output_gradients=cotangents)
        into, of_weights = gradients[: len(floats)], [g for g in gradients[len(floats) :] if g is not None]
        fetches = [*flat_out, *statistics, *(g for g in into if g is not None), *of_weights]
        graph = tf.compat.v1.get_default_graph()
        copied = {
            inside.op.name
            for handle, inside in graph.captures
            if any(handle is w.handle for path, w in weights.items() if path in sharded)
        }
        data = [*flat, *noise]
        specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), outputs)
        without_tape = Reader(graph, [*flat_out, *statistics], data, [], copied)
        found.append(specs)
        found.append(_block_trace(without_tape, flat, flat_out, [], [], []))
        if taped:
            with_tape = Reader(graph, fetches, data, cotangents, copied)
            found.append(_block_trace(with_tape, flat, flat_out, cotangents, into, of_weights))
        return tf.constant(0)

    tf.function(traced, autograph=False).get_concrete_function()
    return tuple(found)


def _block_trace(reader: "Reader", state_in, state_out, cotangents, into, of_weights) -> BlockTrace:
    of = reader.buffer_of
    return BlockTrace(
        reader.sizes,
        *reader.ops,
        [of(t) for t in state_in],
        [of(t) for t in state_out],
        [of(t) for t in cotangents],
        [0 if g is None else of(g) for g in into],
        [of(g) for g in of_weights],
        reader.operations,
    )


class Reader:
    """Reads a graph: which operations `fetches` need, what they hold, and on what they wait.

    data, late: tensors that come from outside, and those of them that come last. copied: names of the handles of
    weights of which reading makes a copy. ops: operations that need neither, those that need `data` alone, the rest.
    """

    def __init__(self, graph, fetches, data, late, copied: set[str] = frozenset()):
        self.sizes: list[int] = [0]  # buffer 0: weights, constants, shapes
        self._buffers: dict = {}
        self.ops: tuple[list[Op], list[Op], list[Op]] = [], [], []
        needed = self._needed(fetches)
        self.operations = len(needed)
        waits = {t.op.name: 1 for t in data} | {t.op.name: 2 for t in late}
        for tensor in (*data, *late):
            self._new(tensor)
        for op in graph.get_operations():
            if op.name not in needed or op.type in _SOURCES:
                if op.name not in waits:
                    waits[op.name] = 0
                continue
            inputs = [] if op.type in _SHAPES else list(op.inputs)
            waits[op.name] = max([waits[t.op.name] for t in inputs], default=0)
            if op.type == "ReadVariableOp":
                if op.inputs[0].op.name in copied:
                    self._new(op.outputs[0])
                    self.ops[0].append(Op((), (self.buffer_of(op.outputs[0]),)))
                continue
            if op.type in _ALIASES or self._slices_nothing_off(op):
                for source, target in zip(op.inputs, op.outputs):
                    self._buffers[target.ref()] = self.buffer_of(source)
                continue
            for tensor in op.outputs:
                self._new(tensor)
            made = Op(
                tuple(b for b in map(self.buffer_of, inputs) if b),
                tuple(b for b in map(self.buffer_of, op.outputs) if b),
                op.type in _IN_PLACE,
            )
            self.ops[waits[op.name]].append(made)

    @staticmethod
    def _slices_nothing_off(op) -> bool:
        return op.type == "StridedSlice" and 0 < _bytes(op.inputs[0]) == _bytes(op.outputs[0])

    @staticmethod
    def _needed(fetches) -> set[str]:
        needed, waiting = set(), [t.op for t in fetches]
        while waiting:
            op = waiting.pop()
            if op.name not in needed:
                needed.add(op.name)
                waiting += [t.op for t in op.inputs] + list(op.control_inputs)
        return needed

    def _new(self, tensor) -> None:
        size = _bytes(tensor)
        if size:
            self._buffers[tensor.ref()] = len(self.sizes)
            self.sizes.append(size)

    def buffer_of(self, tensor) -> int:
        """The buffer of a tensor; 0 for those that have none of their own."""
        return self._buffers.get(tensor.ref(), 0)
