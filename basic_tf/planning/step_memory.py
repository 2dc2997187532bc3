"""Bytes on one device through the phases of a step, by cause: the peak is the largest phase, not a sum of everything.

Phases of Algorithm 1 with several microbatches: pass 1 embeds them without a tape, then the loss, then pass 2 of each tower
in turn, then the update. With one microbatch both towers keep their tapes through the loss.
"""

import dataclasses
import functools

from basic_tf.planning.head_trace import Head
from basic_tf.planning.optimizer_memory import OptimizerMemory, optimizer_memory
from basic_tf.planning.parameters import sharded_paths, weight_bytes
from basic_tf.planning.tower_memory import TowerMemory, tower_memory

CAUSES = (
    "weights", "slots", "gradients", "activations", "embeddings", "loss", "update", "input", "runtime",
)  # fmt: skip
TRANSIENT = ("gradients", "activations", "embeddings", "loss", "update")
# TensorFlow keeps a graph several times (Python's, the optimised one, kernels): measured, see docs/planner.md.
GRAPH_BYTES_PER_OPERATION = 24_000
UPDATE_OPERATIONS_PER_PARAMETER = 58
LOSS_OPERATIONS = 1_500
# What malloc holds beyond the tensors that come and go: a share of them, measured as well.
ALLOCATOR_SHARE = 0.08
_TILE_ELEMENTS = 1 << 22  # contrastive.tiles: columns follow rows so that a tile has so many elements
_TILES_AT_ONCE = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how a step runs.

    pairs: B, the global batch. batch_axis: devices that share it. model_axis: devices that see the same rows of it.
    shard_over: the axis of a mesh along which devices share each weight ("batch" or "model").
    microbatch: M, rows at once on a device; None is all of them. remat: None leaves each tower its own.
    host: the device is this machine's CPU, so `input` and `runtime` are on it too. waiting_batches: of the input
    pipeline. runtime_bytes: of a process that has only imported everything. tile: of the loss.
    """

    pairs: int
    microbatch: int | None = None
    remat: str | None = None
    batch_axis: int = 1
    model_axis: int = 1
    shard_over: str = "model"
    host: bool = True
    waiting_batches: int = 5
    runtime_bytes: int = 0
    tile: int = 2048

    @property
    def rows(self) -> int:
        """Pairs on one device."""
        return self.pairs // self.batch_axis

    @property
    def shards(self) -> int:
        """Devices that share each weight."""
        return self.batch_axis if self.shard_over == "batch" else self.model_axis

    @property
    def sums_in_place(self) -> bool:
        """Whether gradients are summed over devices as they arise (a mesh), and not once more at the end (replicas)."""
        return self.batch_axis == 1 or self.shards > 1


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """phases: {phase: {cause: bytes}}, in their order. optimizer, towers: what stands behind them."""

    phases: dict[str, dict[str, int]]
    optimizer: OptimizerMemory
    towers: dict[str, TowerMemory]

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return self.total(self.peak_phase)

    def largest(self, cause: str) -> int:
        """The most bytes of one cause in any phase."""
        return max(phase.get(cause, 0) for phase in self.phases.values())


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is planned: towers by name, all weight specs by full path, trained paths, the optimizer's rule.

    element: bytes of a weight. dtype: its type by name. average: whether a float32 average of the trained weights is kept.
    embedding_dim: 0 for a classifier, which has no contrastive loss. head: the classifier; None without.
    """

    towers: dict[str, object]
    specs: list
    trained: frozenset[str]
    rule: object
    dtype: str
    element: int
    average: bool
    embedding_dim: int
    head: Head | None = None

    def trains(self, part: str) -> bool:
        """Whether any parameter under this name is trained."""
        return any(path.startswith(part + "/") for path in self.trained)


def loss_bytes(setting: Setting, width: int) -> int:
    """Bytes of the tiled loss and its gradient beside the embeddings: tiles, and the sums for the rows of both sides."""
    rows, columns = setting.rows, setting.pairs
    tile_rows = min(setting.tile, rows)
    tile_columns = min(max(setting.tile, _TILE_ELEMENTS // setting.tile), columns)
    # Gradients of the own pictures; of all texts, and those of one block of rows, in parts and in one piece.
    return 4 * (_TILES_AT_ONCE * tile_rows * tile_columns + 3 * columns * width + rows * width)


def step_memory(subject: Subject, setting: Setting) -> StepMemory:
    """The plan of one step. Traces blocks: seconds for a tower that was not planned at this microbatch before."""
    rows = setting.rows
    microbatch = min(setting.microbatch or rows, rows)
    loops, early = microbatch < rows, setting.host
    towers = {}
    for name, tower in subject.towers.items():
        cut = frozenset(p.removeprefix(name + "/") for p in sharded_paths(subject.specs, setting.shards))
        trained = subject.trains(name)
        towers[name] = tower_memory(
            tower, microbatch, trained, trained, setting.remat or tower.remat, cut, early, subject.head
        )
    trained_specs = [spec for spec in subject.specs if spec.path in subject.trained]
    gradients = weight_bytes(trained_specs, max(4, subject.element), setting.shards)
    optimizer = optimizer_memory(
        subject.rule, {s.path: s.shape for s in trained_specs}, subject.dtype, setting.shards, early
    )
    width = subject.embedding_dim
    picture_side = next(iter(subject.towers.values())).image_size
    example = 3 * picture_side[0] * picture_side[1] + (
        4 * subject.towers["text_tower"].length if width else 4 * subject.head.classes
    )
    operations = UPDATE_OPERATIONS_PER_PARAMETER * len(trained_specs) + (LOSS_OPERATIONS if width else 0)
    for memory in towers.values():
        without_tape, with_tape = memory.operations
        operations += with_tape + (without_tape if loops or not with_tape else 0)
    always = {
        "weights": weight_bytes(subject.specs, subject.element, setting.shards),
        "slots": optimizer.slots + (weight_bytes(trained_specs, 4, setting.shards) if subject.average else 0),
        "update": optimizer.copies,
        "input": rows * example * (1 + (setting.waiting_batches if setting.host else 0)),
        "runtime": setting.runtime_bytes + GRAPH_BYTES_PER_OPERATION * operations if setting.host else 0,
    }
    accumulators = gradients if loops else 0
    # Rows of both sides as they come out of the loop and in one piece; of all texts where they are gathered.
    tables = 4 * width * (2 * rows * (2 if loops else 1) + (setting.pairs if setting.batch_axis > 1 else 0))
    embeddings = tables + 8 * rows * width  # with the gradient of each row
    trained_towers = [name for name in towers if subject.trains(name)]
    held = {name: towers[name].held for name in trained_towers}

    def phase(**own) -> dict[str, int]:
        found = {cause: always.get(cause, 0) + own.get(cause, 0) for cause in CAUSES}
        if setting.host:
            found["runtime"] += int(ALLOCATOR_SHARE * sum(found[cause] for cause in TRANSIENT))
        return found

    phases = {}
    if width and (loops or len(trained_towers) < len(towers)):
        phases["pass 1"] = phase(
            gradients=accumulators, embeddings=tables,
            activations=max(t.inference for n, t in towers.items() if loops or n not in trained_towers),
        )  # fmt: skip
    if width:
        kept = 0 if loops else sum(held.values())
        phases["loss"] = phase(
            gradients=accumulators, embeddings=embeddings, loss=loss_bytes(setting, width), activations=kept
        )
    for name in trained_towers:
        label = f"pass 2, {name.replace('_', ' ')}" if loops else f"backward, {name.replace('_', ' ')}"
        memory, others = towers[name], sum(h for other, h in held.items() if other != name)
        activations = memory.training if loops else memory.training + others
        # On a CPU the sums of the round before stay until the round has ended (measured); XLA adds in place.
        rounds = accumulators * (2 if setting.host else 1)
        grown = rounds if loops else memory.with_gradients - memory.training
        phases[label] = phase(gradients=grown, embeddings=embeddings, activations=activations)
    copies = 0 if setting.sums_in_place else gradients  # the sum over devices is another tensor
    phases["update"] = phase(gradients=gradients + copies, embeddings=embeddings, update=optimizer.update)
    return StepMemory(phases, optimizer, towers)


def status_bytes(field: str) -> int:
    """A figure of this process in bytes (VmRSS: resident now, VmHWM: at most so far); 0 where there is no /proc."""
    try:
        with open("/proc/self/status") as file:
            found = next(line for line in file if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return 0
    return int(found.split()[1]) << 10


@functools.cache
def process_bytes() -> int:
    """Resident memory of this process when first asked: TensorFlow and the project, imported, hold about as much."""
    return status_bytes("VmRSS")
