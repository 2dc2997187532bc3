"""Which microbatch and rematerialisation fit a memory limit, and what to do when none does."""

import bisect
import dataclasses

from basic_tf.planning.step_memory import Setting, StepMemory, Subject, step_memory
from basic_tf.towers.layers import REMATERIALISATIONS

GIB = 1 << 30
# Cheapest first: what each policy makes the step compute again.
POLICIES = tuple(sorted(REMATERIALISATIONS, key=("none", "norms_and_activations", "blocks").index))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One policy: the largest microbatch that fits (None: none does) and its plan; without one, the smallest's plan."""

    remat: str
    microbatch: int | None
    plan: StepMemory


def microbatches(rows: int, group: int = 1) -> list[int]:
    """Divisors of the rows that ghost BatchNorm's groups divide, ascending; at least the rows themselves."""
    return [n for n in range(1, rows + 1) if rows % n == 0 and n % group == 0] or [rows]


def ghost_group(subject: Subject) -> int:
    """Rows of a ghost BatchNorm group of a trained image tower, else 1."""
    tower = subject.towers["image_tower"]
    if not subject.trains("image_tower"):
        return 1
    groups = [n.group for block in tower.blocks for n in block.normalizations() if n.policy == "ghost"]
    return max(groups, default=1)


def largest_that_fits(subject: Subject, setting: Setting, limit_bytes: int) -> Candidate:
    """Bisection over the microbatches for the policy of `setting`; each step of it is one plan."""
    choices = microbatches(setting.rows, ghost_group(subject))

    def plan(microbatch):
        return step_memory(subject, dataclasses.replace(setting, microbatch=microbatch))

    whole = plan(choices[-1])
    if whole.peak <= limit_bytes:
        return Candidate(setting.remat, choices[-1], whole)
    best = choices[0], plan(choices[0])
    if best[1].peak > limit_bytes:
        return Candidate(setting.remat, None, best[1])
    low, high = 0, len(choices) - 2
    while low < high:
        middle = (low + high + 1) // 2
        found = plan(choices[middle])
        if found.peak <= limit_bytes:
            low, best = middle, (choices[middle], found)
        else:
            high = middle - 1
    return Candidate(setting.remat, *best)


def recommend(subject: Subject, setting: Setting, limit_bytes: int) -> list[Candidate]:
    """One candidate for each policy, cheapest policy first."""
    return [
        largest_that_fits(subject, dataclasses.replace(setting, remat=policy), limit_bytes)
        for policy in POLICIES
    ]


def choice(candidates: list[Candidate], enough: int = 8) -> Candidate | None:
    """The cheapest policy whose microbatch keeps a device busy (`enough` rows, or the most there are); else the largest."""
    fitting = [c for c in candidates if c.microbatch]
    if not fitting:
        return None
    most = max(c.microbatch for c in fitting)
    return next(c for c in fitting if c.microbatch >= min(enough, most))


def remedy(subject: Subject, setting: Setting, limit_bytes: int) -> str:
    """What would fit, in words: the smallest model axis that does (up to 1,024 devices)."""
    smallest = dataclasses.replace(
        setting, remat="blocks", microbatch=microbatches(setting.rows, ghost_group(subject))[0]
    )
    axes = [1 << n for n in range(1, 11) if 1 << n > setting.model_axis and setting.shard_over == "model"]

    def cut(axis: int) -> StepMemory:
        return step_memory(subject, dataclasses.replace(smallest, model_axis=axis))

    if axes and cut(axes[-1]).peak <= limit_bytes:
        axis = axes[bisect.bisect_left(axes, True, key=lambda axis: cut(axis).peak <= limit_bytes)]
        needs = cut(axis).peak / GIB
        return f"weights cut over {axis} devices would ({needs:.1f} GiB): --mesh={setting.batch_axis}x{axis}"
    plan = step_memory(subject, smallest)
    largest = max(plan.phases[plan.peak_phase].items(), key=lambda item: item[1])
    return (
        f"{largest[0]} alone take {largest[1] / GIB:.1f} GiB of {plan.peak / GIB:.1f}; "
        f"use a smaller batch on each device (--mesh={2 * setting.batch_axis}x{setting.model_axis}) or a larger limit"
    )
