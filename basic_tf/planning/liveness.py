"""How many bytes a sequence of operations holds at once: buffers are born, read for the last time, and freed.

This is what TensorFlow's executor does: a tensor lives from the operation that makes it to the last one that reads
it, an operation that changes no shape hands its input on, and an element-wise one may write over an input that
nobody reads any more.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Op(NamedTuple):
    """One operation. reads, writes: buffer numbers. in_place: it may write over an input that it is the last to read."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    in_place: bool = False


def executor_order(ops: list[Op]) -> list[Op]:
    """The order in which TensorFlow's executor runs `ops` (listed as they were made) on one inter-op thread.

    An operation becomes ready when its last input is made. Of those that one operation makes ready, the one listed
    first runs next, the others wait on top of what was ready before: depth first, earliest first. Operations that wait
    for nothing come in their own order, when all that earlier ones made ready is done. TensorFlow promises no order; of
    several rules this one came closest to what training processes were measured to hold (docs/planner.md).
    """
    makers = {buffer: number for number, op in enumerate(ops) for buffer in op.writes}
    missing, readers = [], [[] for _ in ops]
    for number, op in enumerate(ops):
        sources = {makers[b] for b in op.reads if b in makers and makers[b] != number}
        missing.append(len(sources))
        for source in sources:
            readers[source].append(number)
    ordered = []
    for root in [number for number, count in enumerate(missing) if count == 0]:
        stack = [root]
        while stack:
            number = stack.pop()
            ordered.append(ops[number])
            for reader in reversed(readers[number]):  # the earliest ends on top
                missing[reader] -= 1
                if missing[reader] == 0:
                    stack.append(reader)
    return ordered


class Liveness(NamedTuple):
    """peak: the most bytes alive at once. after: bytes alive after each operation. during: while it ran."""

    peak: int
    during: list[int]
    after: list[int]


def liveness(
    ops: list[Op], sizes: list[int], given: Iterable[int] = (), kept: Iterable[int] = ()
) -> Liveness:
    """Walks through `ops` in their order.

    sizes: bytes of each buffer. given: buffers that exist before the first operation. kept: buffers that outlive the last.
    Buffers that nobody reads and nobody keeps are freed at once.
    """
    kept = set(kept)
    last = {}
    for number, op in enumerate(ops):
        for buffer in (*op.reads, *op.writes):
            last[buffer] = number
    alive = set(given)
    total = sum(sizes[b] for b in alive)
    peak, during, after = total, [], []
    for number, op in enumerate(ops):
        dying = {b for b in (*op.reads, *op.writes) if last[b] == number and b not in kept}
        reusable = [sizes[b] for b in set(op.reads) & dying & alive] if op.in_place else []
        extra = 0
        for buffer in set(op.writes) - alive:
            alive.add(buffer)
            total += sizes[buffer]
            if sizes[buffer] in reusable:  # written over a dying input: the two are never alive side by side
                reusable.remove(sizes[buffer])
                extra += sizes[buffer]
        during.append(total - extra)
        peak = max(peak, total - extra)
        for buffer in dying & alive:
            alive.discard(buffer)
            total -= sizes[buffer]
        after.append(total)
    return Liveness(peak, during, after)
