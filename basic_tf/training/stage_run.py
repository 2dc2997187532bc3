"""One stage, built and ready to run: its model, optimizer and input, and the variables that a checkpoint holds."""

import contextlib
import dataclasses
import os
import re
import zlib

import numpy as np
import tensorflow as tf

from basic_tf.optimization import rules
from basic_tf.parallel import runtime as runtime_lib
from basic_tf.parallel import strategies, weights
from basic_tf.training import checkpoints, finished, preflight, warm_start
from basic_tf.training.stages import ConfigurationError, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line decides for every stage.

    train_steps: where each stage ends. Fewer steps than the stage's own duration leave the schedule as it is, so that they
    are the first steps of the whole run, bit for bit; more stretch it.
    """

    seed: int = 0
    steps_per_loop: int = 1
    train_steps: int | None = None
    profile_steps: str | None = None


def stage_seed(seed: int, name: str) -> int:
    """Each stage draws from streams of its own."""
    return (seed << 32) ^ zlib.crc32(name.encode())


def checkpoint_folder(stage_folder: str) -> str:
    """Where a stage keeps its checkpoints."""
    return os.path.join(stage_folder, "checkpoints")


def is_finished(stage_folder: str) -> bool:
    """Whether the stage has reached the last step of some run and saved it."""
    return finished.read(stage_folder) is not None


def trained_arrays(checkpoint: checkpoints.Checkpoint, averaged: bool = True) -> dict[str, np.ndarray]:
    """The model's arrays by parameter path; with `averaged`, averaged weights take the place of the last ones."""
    arrays = _under(checkpoint.arrays, "parameters/")
    if averaged:
        slots = _under(checkpoint.arrays, "average/")
        arrays.update({path.removesuffix("/average"): value for path, value in slots.items()})
    return arrays


def _under(arrays: dict, prefix: str) -> dict:
    return {path.removeprefix(prefix): value for path, value in arrays.items() if path.startswith(prefix)}


class StageRun:
    """One stage, built and ready: model, optimizer, input, the variables that a checkpoint holds."""

    def __init__(self, stage: Stage, folder: str, runtime: runtime_lib.Runtime, options: Options):
        self.stage, self.folder, self.runtime, self.options = stage, folder, runtime, options
        self.seed = stage_seed(options.seed, stage.name)
        self.batches = stage.batches(seed=self.seed, batch_size=stage.batch_size)
        planned = stage.train.to_steps(stage.batch_size, self.batches.source.count)
        self.total_steps = options.train_steps or planned
        if self.total_steps < 1:
            raise ConfigurationError(
                f"stage {stage.name} lasts {self.total_steps} steps; Stage.train must give at least one"
            )
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        with runtime.scope():
            self.task = stage.task_on(self.batches)
            # Not the stage's own seed: a weight that two stages make anew is the same in both.
            self.task.model.add_seed(options.seed)
            parameters = self.task.parameters()
            trainable = {path: variable for path, variable in parameters.items() if variable.trainable}
            resolved = stage.rules.resolve(trainable)
            self.trained = {path: v for path, v in trainable.items() if not resolved[path].frozen}
            self.schedule_steps = max(self.total_steps, planned)
            self.schedule = stage.schedule(total_steps=self.schedule_steps)
            self.optimizer = stage.optimizer(self.schedule, rules=resolved, seed=self.seed)
            preflight.check(stage, runtime, self.batches, self.task, self.optimizer, self.trained)
            runtime.place(parameters, self._layouts(trainable, resolved))
            self.optimizer.build(self.trained)
            self.average = None
            if stage.weight_average is not None:
                self.average = stage.weight_average()
                self.average.build(self.trained)
            self.guard = None
            if stage.update_guard is not None:
                self.guard = stage.update_guard()
                self.guard.build()
        self.parameters = parameters
        self.started_from: dict | None = None  # what checkpoints keep of the warm start

    def _layouts(self, parameters: dict, resolved: dict[str, rules.Rule]) -> dict[str, tuple]:
        """Where rules name a layout themselves; elsewhere the default was taken when the variable was made."""
        size = self.runtime.model_axis
        return {
            path: rules.layout_of(path, tuple(parameters[path].shape), rule, size)
            for path, rule in resolved.items()
            if rule.layout is not None
        }

    def state(self) -> dict[str, tf.Variable]:
        """Every variable of a checkpoint by path."""
        state = {f"parameters/{path}": variable for path, variable in self.parameters.items()}
        state.update({f"optimizer/{path}": variable for path, variable in self.optimizer.slots().items()})
        if self.average is not None:
            state.update({f"average/{path}": variable for path, variable in self.average.slots().items()})
        if self.guard is not None:
            state.update({f"update_guard/{name}": variable for name, variable in self.guard.slots().items()})
        return state | {"step": self.global_step}

    @contextlib.contextmanager
    def averaged_weights(self):
        """Inside, the model holds the averaged weights (if the stage keeps an average); afterwards its own again."""
        if self.average is None:
            yield
            return
        own = {path: np.array(weights.logical_array(variable)) for path, variable in self.trained.items()}
        try:
            for path, value in self.average.averaged().items():
                self.trained[path].assign(value)
            yield
        finally:
            for path, value in own.items():
                self.trained[path].assign(value)

    def save(self, clock: dict) -> None:
        """Writes a checkpoint of the present state. All hosts call it together, the first one writes.

        Refuses (RuntimeError) if the replicas have drifted apart, and (FloatingPointError) if a weight is not finite: a
        later start would resume from it for ever.
        """
        state = self.state()
        spread = self.runtime.replica_spread(
            {path: weights.underlying(variable) for path, variable in state.items()}
        )
        if spread:
            worst = max(spread, key=spread.get)
            raise RuntimeError(
                f"replicas differ at step {int(self.global_step)}: {len(spread)} variables, most {worst} by "
                f"{spread[worst]:.3g}; the checkpoint was not written. This is a bug in a step that assigns in a replica"
            )
        arrays = {path: weights.logical_array(variable) for path, variable in state.items()}
        broken = [path for path, array in arrays.items() if not np.isfinite(array.astype(np.float32)).all()]
        if broken:
            raise FloatingPointError(
                f"stage {self.stage.name}: {len(broken)} arrays are not finite after step {int(self.global_step)} "
                f"({', '.join(broken[:3])}); the checkpoint was not written. Lower the learning rate, or raise the warm-up"
            )
        if self.runtime.host:
            return
        checkpoints.save(
            checkpoint_folder(self.folder),
            int(self.global_step),
            arrays,
            {
                "stage": self.stage.name,
                "seed": self.options.seed,
                "total_steps": self.total_steps,
                "schedule_steps": self.schedule_steps,
                "started_from": self.started_from,
                "clock": clock,
            },
            keep=self.stage.keep_checkpoints,
        )

    def mark_finished(self) -> None:
        """Says that the stage has reached its last step and saved it."""
        step = int(self.global_step)
        mark = finished.Finished(step, self.total_steps, self.schedule_steps, self.options.seed)
        finished.write(self.folder, mark)

    def restore(self, training: bool = True) -> dict | None:
        """Resumes from the newest whole checkpoint and returns its metadata; None if there is none.

        training: whether this run goes on training, and saves into the same folder; otherwise it only reads.
        """
        checkpoint = checkpoints.load_latest(
            checkpoint_folder(self.folder), set_damaged_aside=training and self.runtime.host == 0
        )
        if checkpoint is None:
            return None
        finished.check_seed(checkpoint.path, checkpoint.metadata["seed"], self.options)
        if training:
            self._check_length(checkpoint)
            self.started_from = checkpoint.metadata.get("started_from")
            finished.check_resumed(self.stage, self._run_folder, self.folder, self.started_from, self.options)
        checkpoints.assign(checkpoint.arrays, self.state(), checkpoint.path)
        if self.guard is not None:
            self.guard.restored()
        return checkpoint.metadata

    @property
    def _run_folder(self) -> str:
        return os.path.dirname(self.folder)

    def _check_length(self, checkpoint: checkpoints.Checkpoint) -> None:
        if checkpoint.step > self.total_steps:
            raise ConfigurationError(
                f"{checkpoint.path} is at step {checkpoint.step}, beyond the {self.total_steps} steps of this run; "
                "train for longer or use another --model_dir"
            )
        old = checkpoint.metadata.get("schedule_steps", self.schedule_steps)  # older versions did not say
        if old != self.schedule_steps:
            raise ConfigurationError(
                f"{checkpoint.path} was trained on a schedule of {old} steps, and this run's has {self.schedule_steps}: "
                "--train_steps beyond a stage's duration stretches its schedule. Use the same --train_steps, or another "
                "--model_dir"
            )

    def warm_start(self, run_folder: str) -> warm_start.Report | None:
        """Takes the weights that the stage's WarmStart names; None where the stage starts from scratch."""
        spec = self.stage.warm_start
        if spec is None:
            return None
        folder = spec.stage if "/" in spec.stage else os.path.join(run_folder, spec.stage)
        checkpoint = checkpoints.load_latest(checkpoint_folder(folder))
        if checkpoint is None:
            raise ConfigurationError(
                f"stage {self.stage.name} warm-starts from {folder}, which holds no checkpoint; train that stage first"
            )
        self.started_from = finished.check_source(self.stage, run_folder, checkpoint, self.options)
        arrays = trained_arrays(checkpoint, spec.averaged)
        report = warm_start.apply(
            self.parameters, arrays, spec.fresh, spec.ignored, checkpoint.path, spec.resized
        )
        if self.average is not None:
            # The average was built on the initial weights; it starts anew from those just loaded.
            for path, slot in self.average.slots().items():
                slot.assign(tf.cast(self.trained[path.removesuffix("/average")], slot.dtype))
        return report


def built(stage: Stage, folder: str, runtime: runtime_lib.Runtime, options: Options) -> StageRun:
    """The stage, built. What a user's numbers or paths make impossible is a ConfigurationError of one line."""
    with in_words(stage):
        return StageRun(stage, folder, runtime, options)


@contextlib.contextmanager
def in_words(stage: Stage):
    """Inside, what a user's numbers or paths make impossible is a ConfigurationError of one line that names the stage."""
    try:
        yield
    except ConfigurationError:
        raise
    except (ValueError, TypeError, OSError, MemoryError, re.error, tf.errors.OpError) as error:
        if strategies.is_lost_worker(error):  # no fault of the configuration: the workers are started again
            raise
        # gin appends where it was ("In call to configurable ..."); the first lines say what is wrong.
        said, *calls = str(error).split("\n  In call to configurable")
        words = " ".join(said.split())
        if calls and isinstance(error, TypeError):  # Python's own words, which name no parameter
            innermost = calls[0].split("'")[1]
            words += f" (of {innermost})"
        raise ConfigurationError(f"stage {stage.name}: {words or type(error).__name__}") from error
