"""What one tower holds while it embeds a microbatch, with and without a tape: its blocks' traces, put in a row."""

import contextlib
import functools
from typing import NamedTuple

import tensorflow as tf

from basic_tf.planning import block_trace
from basic_tf.planning.head_trace import Head
from basic_tf.planning.liveness import Op, executor_order, liveness


class TowerMemory(NamedTuple):
    """Bytes of one microbatch. Weights and their gradients are not in them, copies of weights are.

    inference: the peak without a tape. training: the peak of forward and backward pass, with the gradients of the weights
    added up elsewhere as they come. with_gradients: the same where every gradient stays until the end. held: what is
    there when the backward pass starts. operations: of the graph (without a tape, with one).
    """

    inference: int
    training: int
    with_gradients: int
    held: int
    operations: tuple[int, int]


def first_state(tower, rows: int) -> tf.TensorSpec:
    """The tower's input for a microbatch: uint8 pictures, or token ids."""
    size = getattr(tower, "image_size", None)
    if size is not None:
        return tf.TensorSpec((rows, *size, 3), tf.uint8)
    return tf.TensorSpec((rows, tower.length), tf.int32)


def _signature(block, state) -> tuple:
    """Equal for blocks that compute the same with other weights. Of a rate it matters only whether it is zero."""
    plain = {
        name: value > 0 if isinstance(value, float) else value
        for name, value in vars(block).items()
        if isinstance(value, (int, float, str, tuple, bool)) and "path" not in name and "name" not in name
    }
    shapes = tuple((s.path.removeprefix(block.block_path), s.shape) for s in block.specs())
    return (
        type(block).__name__,
        shapes,
        repr(sorted(plain.items(), key=str)),
        repr(tf.nest.flatten(state)),
        repr([type(n).__name__ + n.policy for n in block.normalizations()]),
    )


def _traces(tower, rows: int, taped: bool, training: bool, sharded: frozenset[str], head) -> list[list]:
    """The blocks' traces without a tape, and (if wanted) with one, which ends in the head."""
    known, state, chains = {}, first_state(tower, rows), [[], []][: 1 + taped]
    for index, block in enumerate(tower.blocks):
        key = _signature(block, state)
        if key not in known:
            known[key] = block_trace.trace(tower, index, state, training, rows, taped, sharded)
        state, *found = known[key]
        for chain, trace in zip(chains, found):
            chain.append(trace)
    if taped and head is not None:
        chains[1].append(head.trace(state, sharded))
    return chains


class _Chain:
    """Blocks in a row: one numbering of buffers for all; the output of one is the input of the next."""

    def __init__(self, traces: list[block_trace.BlockTrace]):
        self.sizes, self.maps = [0], []
        state: list[int] | None = None
        for trace in traces:
            own = {0: 0}
            for inside, outside in zip(trace.state_in, state or []):
                own[inside] = outside
            self.maps.append(own)
            for buffer in range(1, len(trace.sizes)):
                if buffer not in own:
                    own[buffer] = self._new(trace.sizes[buffer])
            state = [own[b] for b in trace.state_out]
        self.inputs = [self.maps[0][b] for b in traces[0].state_in]
        self.outputs = state
        self.traces = traces

    def _new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def join_gradients(self) -> None:
        """The gradient into a block is the cotangent of the one before it."""
        for before, after, own, later in zip(self.traces, self.traces[1:], self.maps, self.maps[1:]):
            for cotangent, gradient in zip(before.cotangents, after.gradients_in):
                self._rename(own, cotangent, later[gradient])

    @staticmethod
    def _rename(own: dict[int, int], buffer: int, outside: int) -> None:
        if buffer:
            own[buffer] = outside

    def loss(self) -> Op:
        """Stands for the loss: it reads the last block's output and makes its cotangents. (A head has made its own.)"""
        last = [self.maps[-1][b] for b in self.traces[-1].cotangents]
        return Op(tuple(b for b in self.outputs if b), tuple(b for b in last if b))

    def ops(self, part: str, reverse: bool = False) -> list[Op]:
        blocks = list(zip(self.traces, self.maps))
        return [
            Op(tuple(own[b] for b in op.reads), tuple(own[b] for b in op.writes), op.in_place)
            for trace, own in (reversed(blocks) if reverse else blocks)
            for op in getattr(trace, part)
        ]


@contextlib.contextmanager
def _policy(tower, remat: str):
    """Inside, the tower rematerialises by this policy; afterwards by its own again."""
    parts = [tower, *tower.blocks]
    own = [part.remat for part in parts]
    for part in parts:
        part.remat = remat
    try:
        yield
    finally:
        for part, policy in zip(parts, own):
            part.remat = policy


@functools.lru_cache(maxsize=64)
def tower_memory(
    tower,
    rows: int,
    trained: bool,
    training: bool,
    remat: str,
    sharded: frozenset[str] = frozenset(),
    early: bool = True,
    head: Head | None = None,
) -> TowerMemory:
    """Traces the distinct blocks of a tower and follows its buffers.

    rows: the microbatch. trained: whether a backward pass is wanted. training: as in `Tower.forward`. remat: the policy.
    sharded: paths of weights of which a whole copy is gathered to be used. early: copies of weights are made at the start
    of a pass, as TensorFlow's executor does (XLA makes them when they are needed).
    head: a classifier with its loss, the last piece of the chain with a tape.
    """
    with _policy(tower, remat):
        plain, *taped = map(_Chain, _traces(tower, rows, trained, training, sharded, head))
    inference = liveness(_ordered(plain, early), plain.sizes, given=plain.inputs, kept=plain.outputs).peak
    operations = sum(t.operations for t in plain.traces)
    if not trained:
        return TowerMemory(inference, 0, 0, 0, (operations, 0))
    chain = taped[0]
    chain.join_gradients()
    ops = _ordered(chain, early)
    gradients = {own[b] for trace, own in zip(chain.traces, chain.maps) for b in trace.weight_gradients}
    added_up = liveness(ops, chain.sizes, given=chain.inputs)
    stay = liveness(ops, chain.sizes, given=chain.inputs, kept=gradients)
    held = added_up.after[ops.index(chain.loss())]
    taped_operations = sum(t.operations for t in chain.traces)
    return TowerMemory(inference, added_up.peak, stay.peak, held, (operations, taped_operations))


def _ordered(chain: _Chain, early: bool) -> list[Op]:
    prepared, rest = (
        chain.ops("prepared"),
        [*chain.ops("forward"), chain.loss(), *chain.ops("backward", reverse=True)],
    )
    return executor_order(prepared + rest) if early else _as_late_as_possible(prepared, rest)


def _as_late_as_possible(prepared: list[Op], rest: list[Op]) -> list[Op]:
    """Each prepared operation just before the first that reads what it makes."""
    makers = {b: number for number, op in enumerate(prepared) for b in op.writes}
    done, ordered = set(), []

    def need(buffers):
        for buffer in buffers:
            number = makers.get(buffer)
            if number is not None and number not in done:
                done.add(number)
                need(prepared[number].reads)
                ordered.append(prepared[number])

    for op in rest:
        need(op.reads)
        ordered.append(op)
    return ordered
