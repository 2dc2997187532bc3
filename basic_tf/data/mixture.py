"""Several datasets mixed by weight, by arithmetic: which source a position draws from, and which of its records, follow
from (seed, position) alone, as in order.py. The data state of a run stays one integer.

    source = MixedSource([icons, emoji, web], [50, 30, 20], ["icons", "emoji", "web"])
    ContrastiveBatches(source, tokenizer, augmentation, batch_size, seed)      # its order is MixtureOrder
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from basic_tf.data.order import ExampleOrder, Permutation
from basic_tf.randomness import step_key_numpy

_UNIT = 1 << 32  # weights are kept as whole shares of it


class MixedSource:
    """The records of several sources as one: those of the first, then those of the second, and so on.

    The json's facts (`metadata`) of the parts are joined: `label_names` to the list of all names, equal names being one
    label, and `mixture`, the parts' names, weights and counts. Labels of a record are numbered by the joined names
    (`relabelled`). One parser reads the records of all parts.
    """

    def __init__(
        self, sources: Sequence, weights: Sequence[float] | None = None, names: Sequence[str] | None = None
    ):
        """sources: each with count, metadata, read(indices). weights: shares of the examples of a batch, of any sum;
        default each part's count. names: for metrics; default each json's name, else part_0, part_1, ...
        """
        self.parts = list(sources)
        if not self.parts:
            raise ValueError("a mixture needs at least one source")
        weights = [part.count for part in self.parts] if weights is None else list(weights)
        if len(weights) != len(self.parts) or not all(np.isfinite(w) and w > 0 for w in weights):
            raise ValueError(
                f"a mixture of {len(self.parts)} sources needs as many weights, all above 0; got {weights}"
            )
        self.weights = [float(weight) / sum(weights) for weight in weights]
        if names is None:
            names = [str(part.metadata.get("name", f"part_{n}")) for n, part in enumerate(self.parts)]
            if len(set(names)) < len(names):  # many a dataset is called train
                names = [f"part_{n}_{name}" for n, name in enumerate(names)]
        if len(names) != len(self.parts) or len(set(names)) < len(names):
            raise ValueError(
                f"a mixture of {len(self.parts)} sources needs as many different names, got {list(names)}"
            )
        self.names = list(names)
        self._first = np.cumsum([0] + [part.count for part in self.parts])
        self.count = int(self._first[-1])
        self._joined: list[np.ndarray | None] = []
        self.metadata = {"count": self.count} | self._facts()

    def _facts(self) -> dict:
        numbers: dict[str, int] = {}
        kinds: dict[str, str] = {}
        for part in self.parts:
            own = part.metadata.get("label_names")
            for name, kind in zip(own or (), part.metadata.get("label_kinds") or itertools.repeat("")):
                kinds.setdefault(name, kind)
            mapped = [numbers.setdefault(name, len(numbers)) for name in own or ()]
            self._joined.append(np.array(mapped, np.int64) if own else None)
        facts = {
            "mixture": [
                {"name": name, "weight": weight, "count": part.count}
                for name, weight, part in zip(self.names, self.weights, self.parts)
            ]
        }
        if numbers:
            facts["label_names"] = list(numbers)
            if any(kinds.values()):
                facts["label_kinds"] = list(kinds.values())
        return facts

    def check_batch(self, batch_size: int) -> None:
        """ValueError if a batch takes more examples of a part than it has records: some would stand in it twice."""
        for name, weight, part in zip(self.names, self.weights, self.parts):
            if weight * batch_size > part.count:
                raise ValueError(
                    f"a batch of {batch_size} takes {weight * batch_size:,.0f} examples of {name}, which has "
                    f"{part.count:,} records: it would hold a record twice; lower its weight (now {weight:.4g} of all) "
                    f"to {part.count / batch_size:.4g} of all, or batch_size to {int(part.count / weight)}"
                )

    def part_of(self, records: np.ndarray) -> np.ndarray:
        """int64 [N]: the number of the part each record belongs to."""
        return np.searchsorted(self._first, np.asarray(records, np.int64), "right") - 1

    def record(self, part: int, own: np.ndarray) -> np.ndarray:
        """int64 [N]: the numbers, here, of some records of a part."""
        return self._first[part] + own

    def relabelled(self, record: int, labels: np.ndarray) -> np.ndarray:
        """The labels of a record by the joined names; those of a part without label names have no meaning and go.

        Where no part has label names, labels stay as they are.
        """
        if "label_names" not in self.metadata:
            return labels
        joined = self._joined[int(self.part_of(record))]
        if joined is None or not labels.size:
            return labels[:0]
        if labels.min() < 0 or labels.max() >= len(joined):
            part = self.names[int(self.part_of(record))]
            raise LookupError(
                f"record {record} of {part} has labels {labels.tolist()}, {len(joined)} have names"
            )
        return joined[labels]

    def read(self, indices: np.ndarray) -> list[bytes | None]:
        """Serialized examples of these records, None where one is damaged. IndexError outside [0, count)."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(
                f"record indices must lie in [0, {self.count}), got {indices.min()} .. {indices.max()}"
            )
        owners, found = self.part_of(indices), [None] * indices.size
        for number in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == number)
            for row, payload in zip(
                rows.tolist(), self.parts[number].read(indices[rows] - self._first[number])
            ):
                found[row] = payload
        return found


class MixtureOrder:
    """Draws from the parts of a MixedSource by their weights, each part in an order of its own.

    Positions are cut into blocks of one batch (of several, if a weight is so small that a batch holds less than two of
    its examples). With c_k the sum of the first k weights, parts 0 .. k-1 have given floor(n c_k) examples before
    position n, for every n where a block begins. So whole blocks from the start hold the share of every part to within
    one example, each block by itself to within two. Within a block, a permutation by the hash of (seed, block) says
    which rows are whose. The d-th example that a part gives is the d-th of its own order: a part's epoch ends when all of
    its records were drawn, and other parts may be in their first or hundredth.

    An epoch of the whole (`epoch_length`) is as many positions as there are records, whatever the weights.
    """

    def __init__(self, source: MixedSource, batch_size: int, seed: int, orders: Callable | None = None):
        """orders: (part, seed) -> the order of a part; default `ExampleOrder`, a permutation for each epoch."""
        if not isinstance(source, MixedSource):
            raise ValueError(f"MixtureOrder mixes the parts of a MixedSource, got a {type(source).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.count = self.epoch_length = source.count
        self.batch_size, self.seed, self.names = int(batch_size), int(seed), source.names
        self._source = source
        sums = np.cumsum(source.weights) / sum(source.weights)
        self._sums = [0, *(round(float(s) * _UNIT) for s in sums)]  # c_k * _UNIT
        smallest = min(b - a for a, b in itertools.pairwise(self._sums))
        if not smallest:
            raise ValueError(f"a weight is too small to be drawn: {source.weights}")
        batches = max(1, -(-2 * _UNIT // (smallest * self.batch_size)))
        self._block = batches * self.batch_size
        make = orders or (lambda part, part_seed: ExampleOrder(part.count, part_seed))
        # Each part draws from streams of its own.
        self._orders = [make(part, self.seed ^ ((n + 1) << 20)) for n, part in enumerate(source.parts)]

    def _before(self, block: int) -> list[int]:
        """For each k, how many examples parts 0 .. k-1 have given before a block."""
        return [block * self._block * s // _UNIT for s in self._sums]

    def _slots(self, block: int, ranks: np.ndarray) -> np.ndarray:
        """Which place of the block each of its rows holds: the first places are the first part's, and so on."""
        return Permutation(self._block, step_key_numpy(self.seed, block), "mixture/slot")(ranks)

    def indices(self, position: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs (each record's own part's) int64 [n] and records int64 [n] of positions position .. position + n - 1."""
        if position < 0 or n < 0:
            raise ValueError(f"position and n must not be negative, got position={position}, n={n}")
        epochs, records = np.empty(n, np.int64), np.empty(n, np.int64)
        for block in range(position // self._block, -(-(position + n) // self._block)):
            start = max(position, block * self._block)
            stop = min(position + n, (block + 1) * self._block)
            slots = self._slots(block, np.arange(start, stop) - block * self._block)
            before, after = self._before(block), self._before(block + 1)
            first = 0
            for part, order in enumerate(self._orders):
                drawn = before[part + 1] - before[part]
                own = after[part + 1] - after[part] - drawn
                rows = np.flatnonzero((slots >= first) & (slots < first + own))
                if rows.size:
                    own_epochs, own_records = _drawn_at(order, drawn, own, slots[rows] - first)
                    epochs[start - position + rows] = own_epochs
                    records[start - position + rows] = self._source.record(part, own_records)
                first += own
        return epochs, records

    def drawn(self, position: int) -> dict[str, int]:
        """How many examples each part has given before a position."""
        block, rest = divmod(position, self._block)
        before, after = self._before(block), self._before(block + 1)
        slots = self._slots(block, np.arange(rest))
        counts, first = {}, 0
        for part, name in enumerate(self.names):
            drawn = before[part + 1] - before[part]
            own = after[part + 1] - after[part] - drawn
            counts[name] = drawn + int(((slots >= first) & (slots < first + own)).sum())
            first += own
        return counts

    def scalars(self, position: int) -> Mapping[str, float]:
        """For metrics: examples that each part has given, and how often it was gone through."""
        counts = self.drawn(position)
        found = {f"mixture/{name}_examples": float(count) for name, count in counts.items()}
        for part, name in zip(self._source.parts, self.names):
            found[f"mixture/{name}_epochs"] = counts[name] / part.count
        return found


def _drawn_at(order, first: int, count: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, records) of the positions first + places of an order, where all places lie below count."""
    if hasattr(order, "at"):  # a block may be thousands of batches long, where a weight is small
        return order.at(first + places)
    epochs, records = order.indices(first, count)
    return epochs[places], records[places]
