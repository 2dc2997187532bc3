"""Which microbatch and rematerialisation fit a memory limit, and what to do when none does."""

import dataclasses

from basic_tf.planning.parameters import weight_bytes
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
    return subject.towers["image_tower"].group_size if subject.trains("image_tower") else 1


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


def _smallest(subject: Subject, setting: Setting, **changes) -> Setting:
    """The setting with these changes, and with the policy and the microbatch that keep least."""
    changed = dataclasses.replace(setting, **changes)
    smallest = microbatches(changed.rows, ghost_group(subject))[0]
    return dataclasses.replace(changed, remat="blocks", microbatch=smallest)


def _cuts(subject: Subject, setting: Setting) -> list[Setting]:
    """Ways to cut weights further than `setting` does, best first, on up to 1,024 devices or as many as there are.

    Devices that share the batch compute nothing twice, and those that are there already may be enough. A model axis repeats
    the arithmetic: it is for batches that cannot be cut further.
    """
    devices, group = setting.batch_axis * setting.model_axis, ghost_group(subject)
    sizes = [1 << n for n in range(11)]
    meshes = [
        (setting.batch_axis, setting.model_axis), (devices, 1), *((devices * n, 1) for n in sizes if devices * n <= 1024),
    ]  # fmt: skip
    over_batch = [
        _smallest(subject, setting, batch_axis=batch, model_axis=model, shard_over="batch")
        for batch, model in dict.fromkeys(meshes)
        if setting.pairs % (batch * group) == 0
    ]
    over_model = [
        _smallest(subject, setting, model_axis=n)
        for n in sizes
        if n > setting.model_axis and setting.shard_over == "model"
    ]
    return over_batch + over_model


def remedy(subject: Subject, setting: Setting, limit_bytes: int) -> str:
    """What would fit, in words: the first of `_cuts` that does."""

    def weights(of: Setting) -> int:
        return weight_bytes(subject.specs, subject.element, of.shards)

    for cut in _cuts(subject, setting):
        # More shards need not be less: what no dimension of a weight divides evenly stays whole. A plan takes seconds, so
        # there is none where weights alone are too much, nor where nothing is less than now.
        if weights(cut) > limit_bytes or (weights(cut) >= weights(setting) and cut.rows == setting.rows):
            continue
        plan = step_memory(subject, cut)
        if plan.peak <= limit_bytes:
            return (
                f"weights cut over {cut.shards} devices would ({plan.peak / GIB:.1f} GiB): --runtime=dtensor "
                f"--mesh={cut.batch_axis}x{cut.model_axis} --shard_over={cut.shard_over}"
            )
    plan = step_memory(subject, _smallest(subject, setting))
    largest = max(plan.phases[plan.peak_phase].items(), key=lambda item: item[1])
    return (
        f"{largest[0]} alone take {largest[1] / GIB:.1f} GiB of {plan.peak / GIB:.1f}, and no mesh that was tried is "
        "enough; use a smaller batch or a larger limit"
    )
