"""The real train.py on any runtime, with tiny towers: one set-up for all that is asked of a runtime."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from basic_tf.training import checkpoints, stage_run
from tests import tiny_data
from tools import bench_runtimes, train_processes

TINIEST = (
    "CoAtNetTable.stem = (1, 8)",
    "CoAtNetTable.stages = (('mbconv', 1, 8), ('attention', 1, 16))",
    "TextTransformer.width = 16",
    "joint/Contrastive.microbatch = 4",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What tests ask of a run folder, and of a run into it."""

    data: str
    folder: Path
    dtype: str = "float64"
    steps: int = 3
    bindings: Sequence[str] = TINIEST
    flags: Sequence[str] = ()

    def start(self, runtime: str, **changes) -> train_processes.Processes:
        own = dataclasses.replace(self, **changes)
        arguments = train_processes.joint_arguments(
            own.data, str(own.folder), own.dtype, own.steps, own.bindings
        )
        return train_processes.Processes([*arguments, *own.flags], runtime)

    def ended(self, runtime: str, seconds: float = 900, **changes) -> list[train_processes.Ended]:
        return self.start(runtime, **changes).wait(seconds)

    def losses(self, runtime: str, **changes) -> list[float]:
        """Trains; the loss of every step."""
        ended = self.ended(runtime, **changes)
        assert not any(process.code for process in ended), [process.errors[-3000:] for process in ended]
        return bench_runtimes.losses(str(changes.get("folder", self.folder)))

    @property
    def stage(self) -> Path:
        return self.folder / "joint"

    def checkpoint_steps(self) -> list[int]:
        return checkpoints.steps(stage_run.checkpoint_folder(str(self.stage)))

    def last(self) -> checkpoints.Checkpoint:
        return checkpoints.load_latest(stage_run.checkpoint_folder(str(self.stage)))

    def forget_the_end(self) -> None:
        """Makes a finished run one that was killed after its last checkpoint."""
        os.remove(self.stage / "finished.json")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    return tiny_data.make(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def run(tiny, tmp_path) -> Run:
    """A run of three float64 steps into a folder of its own."""
    return Run(tiny, tmp_path / "run")


@pytest.fixture(scope="session")
def one_device(tiny, tmp_path_factory) -> list[float]:
    """The losses that every runtime must give."""
    return Run(tiny, tmp_path_factory.mktemp("one_device")).losses("one_device")
