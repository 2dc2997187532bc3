"""Which stages have reached their end, for which run that holds, and what a later stage may therefore start from.

A stage that ended early (`--train_steps`) has ended for a run that asks for no more; another one trains it on, along the
same schedule. A stage never starts, nor goes on, from half of an earlier stage of its own run.
"""

import dataclasses
import json
import os

import tensorflow as tf
from absl import logging

from basic_tf.training import checkpoints
from basic_tf.training.stages import ConfigurationError

FILE = "finished.json"


@dataclasses.dataclass(frozen=True)
class Finished:
    """What finished.json says. step: the last one, which is saved. total_steps: where that run was to end. schedule_steps:
    the length of its schedule. seed: of the run; None in a file of an older version.
    """

    step: int
    total_steps: int
    schedule_steps: int
    seed: int | None

    def ends(self, train_steps: int | None) -> bool:
        """Whether a run of the same configuration with that --train_steps has nothing left to train."""
        # Where there is no --train_steps, the stage's own duration is the schedule's, or less if that was stretched.
        return self.step >= (train_steps or self.schedule_steps)


def read(stage_folder: str) -> Finished | None:
    """None if the stage has not ended."""
    path = os.path.join(stage_folder, FILE)
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "r") as file:
        text = file.read()
    try:
        facts = json.loads(text)
        step = facts["step"]
        # A file of an older version holds the step alone, and is taken at its word.
        return Finished(
            step, facts.get("total_steps", step), facts.get("schedule_steps", step), facts.get("seed")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        logging.warning("%s is damaged: the stage's checkpoint says how far it is.", path)
        return None


def write(stage_folder: str, mark: Finished) -> None:
    """Says that the stage has reached its last step and saved it."""
    with tf.io.gfile.GFile(os.path.join(stage_folder, FILE), "w") as file:
        file.write(json.dumps(dataclasses.asdict(mark)))


def remove(stage_folder: str) -> None:
    """The stage goes on."""
    path = os.path.join(stage_folder, FILE)
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def check_seed(what: str, seed: int, options) -> None:
    """ConfigurationError if what is in this run's folder was trained with another seed. options: stage_run.Options."""
    if seed != options.seed:
        raise ConfigurationError(
            f"{what} was trained with --seed={seed}, this run has --seed={options.seed}; use the same seed or another "
            "--model_dir"
        )


def check_source(stage, run_folder: str, checkpoint: checkpoints.Checkpoint, options) -> dict:
    """What checkpoints of `stage` keep of the checkpoint that it starts from.

    ConfigurationError if that is of an earlier stage of the same run (run_folder) which has not ended, or has another seed;
    half-trained weights of another run are only warned of. options: stage_run.Options.
    """
    name = stage.warm_start.stage
    own = "/" not in name
    seed, planned = checkpoint.metadata.get("seed"), checkpoint.metadata.get("schedule_steps")
    folder = os.path.join(run_folder, name) if own else name
    mark = read(folder)
    if own and seed not in (None, options.seed):
        raise ConfigurationError(
            f"stage {stage.name} warm-starts from {name}, which was trained with --seed={seed}; this run has "
            f"--seed={options.seed}. Use the same seed or another --model_dir"
        )
    if planned is None:  # of an older version, or made by a tool
        short = own and mark is None
    else:
        short = _is_short(checkpoint.step, planned, options.train_steps)
    where = f"is at step {checkpoint.step:,}" + (f" of {planned:,}" if planned else "")
    if short and not own:
        logging.warning("stage %s warm-starts from %s, which %s.", stage.name, checkpoint.path, where)
    elif short and mark is not None and mark.step > checkpoint.step:
        raise ConfigurationError(
            f"stage {stage.name} warm-starts from {name}, whose newest readable checkpoint {where}: a later one is damaged. "
            f"Delete {os.path.join(folder, FILE)} and train that stage again: it goes on from there"
        )
    elif short:
        raise ConfigurationError(
            f"stage {stage.name} warm-starts from {name}, which {where} and has not ended; train that stage to its end "
            "first"
        )
    return {"step": checkpoint.step, "schedule_steps": planned}


def check_resumed(stage, run_folder: str, stage_folder: str, started_from: dict | None, options) -> None:
    """ConfigurationError if the earlier stage that `stage` started from was cut short, or has been trained on since.

    started_from: what `check_source` gave then; None: nothing is known.
    """
    if not started_from or stage.warm_start is None or "/" in stage.warm_start.stage:
        return
    name, step, planned = stage.warm_start.stage, started_from["step"], started_from["schedule_steps"]
    now = max(checkpoints.steps(os.path.join(run_folder, name, "checkpoints")), default=step)
    if now != step or (planned and _is_short(step, planned, options.train_steps)):
        of = f" of {planned:,}" if planned else ""
        raise ConfigurationError(
            f"stage {stage.name} started from {name} at step {step:,}{of}, which is now at step {now:,}; delete "
            f"{stage_folder} to train it anew, once {name} has ended, or use another --model_dir"
        )


def _is_short(step: int, planned: int, train_steps: int | None) -> bool:
    """Whether a stage is cut shorter than this run would: each of its stages runs for its duration or --train_steps."""
    return step < min(planned, train_steps or planned)
