"""Stages and the recipe that strings them together, as plain descriptions that gin fills in.

A stage owns everything that may differ between the three stages of BASIC (paper section on training): the task, the
data, batch size and duration, optimizer, the rule table, the warm start.
"""

import dataclasses
from collections.abc import Callable

from basic_tf.optimization import rules, schedules
from basic_tf.training.warm_start import WarmStart


class ConfigurationError(ValueError):
    """The configuration cannot work; the message says what was received, what is needed and what to do."""


@dataclasses.dataclass
class Stage:
    """One stage of training.

    name: the folder under the run folder. task: called with the dataset's metadata, returns a tasks.Task.
    batches: called with (seed, batch_size), returns an object with `.dataset(first_step, host, hosts)`, `.source` and
    `.scalars(step)` (what metrics say of the data; {} for a single source). train: for how long (a schedules.Duration).
    optimizer: called with the learning-rate schedule and the resolved rules. schedule: called with the total steps.
    rules: the total table by parameter path.
    warm_start: None starts from scratch. weight_average: makes an optimization.weight_average.WeightAverage, or None;
    evaluation, export and the next stage then use the average. update_guard: makes an update_guard.UpdateGuard; None:
    a loss that is not finite stops the run at once.
    checkpoint_seconds / checkpoint_steps: save when either has passed. evaluate_steps: evaluate every so many steps
    (0: at the end alone).
    """

    name: str
    task: Callable
    batches: Callable
    batch_size: int
    train: schedules.Duration
    optimizer: Callable
    schedule: Callable
    rules: rules.RuleTable
    warm_start: WarmStart | None = None
    weight_average: Callable | None = None
    update_guard: Callable | None = None
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    evaluate_steps: int = 0
    summary_steps: int = 20

    def task_on(self, batches):
        """The task of these batches, made anew."""
        task = self.task(batches.source.metadata)
        task.given_features = getattr(batches, "gives_features", False)
        return task

    def check(self) -> None:
        """Raises ConfigurationError on numbers that cannot work, before anything heavy starts."""
        whole_numbers = {
            "batch_size": (1, ""),
            "summary_steps": (1, ""),
            "keep_checkpoints": (1, ""),
            "evaluate_steps": (0, " (0: evaluate at the end alone)"),
            "checkpoint_steps": (0, " (0: save by Stage.checkpoint_seconds alone)"),
        }
        for field, (least, words) in whole_numbers.items():
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"{self.name}/Stage.{field} is {value!r}; it must be a whole number >= {least}{words}"
                )
        # Written so that NaN is refused too; infinity is a way to say never.
        if not isinstance(self.checkpoint_seconds, int | float) or not self.checkpoint_seconds > 0:
            raise ConfigurationError(
                f"{self.name}/Stage.checkpoint_seconds is {self.checkpoint_seconds!r}; it must be a number above 0"
            )


@dataclasses.dataclass
class Recipe:
    """The stages in their order. A later stage may warm-start from an earlier one by its name."""

    stages: list[Stage]

    def check(self) -> None:
        """Names are unique and every warm start points at an earlier stage or at a folder."""
        if not self.stages:
            raise ConfigurationError(
                "Recipe.stages is empty; a gin file under gin/runs/ describes a whole recipe"
            )
        seen: list[str] = []
        for stage in self.stages:
            stage.check()
            if stage.name in seen:
                raise ConfigurationError(
                    f"two stages are named {stage.name!r}; each needs a folder of its own"
                )
            source = stage.warm_start.stage if stage.warm_start else None
            if source and "/" not in source and source not in seen:
                raise ConfigurationError(
                    f"stage {stage.name!r} warm-starts from {source!r}, which is not an earlier stage "
                    f"({', '.join(seen) or 'there is none'}) and not a path"
                )
            seen.append(stage.name)

    def stage(self, name: str) -> Stage:
        """The stage of that name; an error in words if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigurationError(f"--stage={name} is not one of {', '.join(s.name for s in self.stages)}")
