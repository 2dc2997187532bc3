"""What the finished runs say about each claim of the paper. The rules stand here and in statistics.py, and nowhere else.

Accuracy is the mean top-1 over the styles that were never trained on, unless a part says otherwise. A difference is taken
seed by seed, so where runs share the frozen tower it cancels.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from tools.study import plan, statistics
from tools.study.statistics import Interval

SHIFT = "zero_shot/held_out_styles_mean_top1"
INSIDE = "zero_shot/in_distribution/top1"
GAPS = ("same_estimator", "reference_pool", "train_objective")
# Exact microbatching may differ from the plain batch by rounding alone: the largest relative difference of logged losses.
SAME_LOSS = 0.01

TITLES = {
    "a": "a larger batch is better, and shrinks the generalisation gap",
    "b": "a small batch with more steps cannot replace a large one",
    "c": "exact microbatching equals the plain batch, and beats a loss over each microbatch",
    "d": "larger models are better",
    "e": "more data is better, noisy pairs of another source too",
    "f": "the stages beat joint training from scratch, at equal training time",
    "g": "the drop under style shift shrinks as accuracy grows",
    "0": "data, model and batch grown together beat each grown alone, at equal compute",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One tested statement. figure: what is tested. unit: its unit; scale: from the figure to that unit."""

    claim: str
    says: str
    figure: Interval
    verdict: str
    unit: str
    scale: float = 1.0
    digits: int = 1


class Study:
    """The finished runs, by name; what is not there is None or left out, never guessed."""

    def __init__(self, found: Mapping[str, dict]):
        """found: the study.json of each finished run."""
        self.found = dict(found)
        figures = {name: one.get("figures", {}) for name, one in found.items()}
        self.rates = {batch: plan.rates(figures, batch) for batch in plan.BATCHES}

    def value(self, name: str, key: str = SHIFT) -> float | None:
        """A figure of a run."""
        return self.found.get(name, {}).get("figures", {}).get(key)

    def stage_value(self, name: str, stage: str, key: str = SHIFT) -> float | None:
        """A figure of the last evaluation of one stage."""
        evaluations = self.found.get(name, {}).get("stages", {}).get(stage, {}).get("evaluations") or [{}]
        return evaluations[-1].get(key)

    def samples(self, batch: int, seed: int) -> str:
        """The name of the run at equal samples; 'not chosen' while the rate is not known."""
        rate = self.rates[batch][1]
        return "not chosen" if rate is None else plan.sample_name(batch, seed, rate)

    def batch_run(self, setting: str, batch: int, seed: int) -> str:
        """The name of the run of a batch size at equal samples, at equal steps, or with distinct concepts."""
        if setting == "samples" or (
            setting == "steps" and batch == 1024
        ):  # 1,024 x STEPS are the equal samples
            return self.samples(batch, seed)
        return f"{setting}/batch{batch}_seed{seed}"

    def over_seeds(self, figure: Callable[[int], float | None]) -> Interval:
        """The mean over the seeds for which the figure is there."""
        values = [value for seed in plan.SEEDS if (value := figure(seed)) is not None]
        return statistics.mean(values)


def minus(first: float | None, second: float | None) -> float | None:
    """The difference, or None where either is missing."""
    return None if first is None or second is None else first - second


def best(values: Sequence[float | None]) -> float | None:
    """The largest; None unless all are there."""
    return None if any(value is None for value in values) else max(values)


def _points(
    claim: str, says: str, figure: Interval, sign: int = 1, unit: str = "points", scale: float = 100.0
) -> Part:
    return Part(claim, says, figure, figure.verdict(sign), unit, scale, 1 if scale == 100 else 3)


def claim_a(study: Study) -> list[Part]:
    """Slopes over the batch sizes, at equal samples, at equal steps, with distinct concepts."""
    parts = []
    names = {
        "samples": "at equal samples",
        "steps": "at equal steps",
        "distinct": "equal samples, distinct concepts",
    }
    for setting, words in names.items():
        batches = plan.BATCHES[:3] if setting == "distinct" else plan.BATCHES

        def at(seed: int, key: str, setting=setting, batches=batches) -> dict[int, float | None]:
            return {batch: study.value(study.batch_run(setting, batch, seed), key) for batch in batches}

        figure = _seed_slopes(study, lambda seed: at(seed, SHIFT), math.log2)
        parts.append(_points("a", f"{words}: accuracy per doubling of B", figure, 1, "points per doubling"))
        for gap in GAPS:
            key, title = f"gap/{gap}", gap.replace("_", " ")
            values = [value for seed in plan.SEEDS for value in at(seed, key).values() if value is not None]
            if all(value > 0 for value in values):
                figure = _seed_slopes(study, lambda seed, key=key: at(seed, key), math.log, math.log)
                says, unit = f"{words}: slope of log gap on log B, {title}", ""
            else:
                figure = _seed_slopes(study, lambda seed, key=key: at(seed, key), math.log2)
                says, unit = f"{words}: gap per doubling of B, {title} (not all positive)", "nats"
            parts.append(_points("a", says, figure, -1, unit, 1.0))
    return parts


def _seed_slopes(
    study: Study, of_seed: Callable[[int], dict], of_x: Callable, of_value: Callable = float
) -> Interval:
    """The mean over the seeds of the slope of each. of_seed: {x: figure} of a seed; None where its run is missing."""

    def slope(seed: int) -> float | None:
        points = of_seed(seed)
        if any(value is None for value in points.values()):
            return None
        return statistics.slope([of_x(x) for x in points], [of_value(value) for value in points.values()])

    return study.over_seeds(slope)


def claim_b(study: Study) -> list[Part]:
    """The large batch against the best small one, whatever its length."""

    def small(seed: int, longer_only: bool) -> float | None:
        names = [f"longer/batch{batch}_seed{seed}" for batch in (64, 256)]
        if not longer_only:
            names += [study.samples(batch, seed) for batch in (64, 256)]
        return best([study.value(name) for name in names])

    first = study.over_seeds(lambda s: minus(study.value(study.samples(4096, s)), small(s, False)))
    second = study.over_seeds(lambda s: minus(study.value(f"steps/batch4096_seed{s}"), small(s, True)))
    return [
        _points(
            "b", "batch 4,096 less the best of batch 64 and 256 at equal and at four times the samples", first
        ),
        _points("b", "the same, all at four times the samples", second),
    ]


def claim_c(study: Study) -> list[Part]:
    """Losses step by step, and accuracies."""

    def difference(seed: int) -> float | None:
        plain, exact = (
            study.found.get(name, {}).get("stages", {}).get("contrastive", {}).get("losses")
            for name in (study.samples(4096, seed), f"microbatch/exact_seed{seed}")
        )
        if plain is None or exact is None or set(plain) != set(exact):
            return None
        return max(abs(plain[step] - exact[step]) / plain[step] for step in plain)

    found = [value for seed in plan.SEEDS if (value := difference(seed)) is not None]
    largest = Interval(max(found, default=math.nan), math.inf, len(found))
    if len(found) < len(plan.SEEDS):
        verdict = statistics.NOT_RUN
    else:
        verdict = statistics.CONFIRMED if largest.value <= SAME_LOSS else statistics.REVERSED
    says = f"largest relative difference of any logged loss, exact and plain (at most {SAME_LOSS:.0%})"
    gain = study.over_seeds(
        lambda s: minus(study.value(f"microbatch/exact_seed{s}"), study.value(f"microbatch/separate_seed{s}"))
    )
    return [
        Part("c", says, largest, verdict, "%", 100.0, 4),
        _points("c", f"exact less a loss over each {plan.MICROBATCH} pairs", gain),
    ]


def claim_d(study: Study) -> list[Part]:
    """Three sizes of both towers after stage 2, at equal steps."""

    def at(size: str, seed: int) -> float | None:
        if size == "middle":
            return study.stage_value(f"stages/staged_seed{seed}", "contrastive")
        return study.value(f"size/{size}_seed{seed}")

    def gain(larger: str, smaller: str) -> Part:
        figure = study.over_seeds(lambda seed: minus(at(larger, seed), at(smaller, seed)))
        return _points("d", f"{larger} less {smaller}", figure)

    return [gain("middle", "small"), gain("large", "middle")]


def claim_e(study: Study) -> list[Part]:
    """Shares of the records at equal samples, and icons."""

    def by_share(seed: int) -> dict[float, float | None]:
        names = {share: f"data/share{share:g}_seed{seed}" for share in plan.SHARES}
        names[plan.TRAINED] = study.samples(256, seed)
        return {share: study.value(name) for share, name in names.items()}

    figure = _seed_slopes(study, by_share, math.log2)
    icons = study.over_seeds(
        lambda s: minus(study.value(f"data/icons_seed{s}"), study.value(study.samples(256, s)))
    )
    unseen = "zero_shot/held_out_concepts/top5"
    elsewhere = study.over_seeds(
        lambda s: minus(
            study.value(f"data/icons_seed{s}", unseen), study.value(study.samples(256, s), unseen)
        )
    )
    return [
        _points(
            "e", "accuracy per doubling of the emoji records of stage 2", figure, 1, "points per doubling"
        ),
        _points("e", "half icons less emoji alone, at equal samples", icons),
        _points("e", "the same, top-5 on concepts never trained on", elsewhere),
    ]


def claim_f(study: Study) -> list[Part]:
    """Whole recipes."""
    difference = study.over_seeds(
        lambda s: minus(study.value(f"stages/staged_seed{s}"), study.value(f"stages/from_scratch_seed{s}"))
    )
    return [_points("f", "three stages less one", difference)]


def shifts(study: Study) -> list[tuple[str, str, float, float]]:
    """(run, stage, accuracy in distribution, accuracy under shift) of the last evaluation of every stage of every run."""
    found = []
    for name, one in sorted(study.found.items()):
        for stage, of in one.get("stages", {}).items():
            last = (of.get("evaluations") or [{}])[-1]
            if INSIDE in last and SHIFT in last:
                found.append((name, stage, last[INSIDE], last[SHIFT]))
    return found


def _setting(study: Study, name: str) -> str | None:
    """What runs of other seeds share; None for a run that repeats another one exactly (claim c shows that it does)."""
    for batch, (_, chosen) in study.rates.items():
        if chosen is not None and name == plan.rate_name(batch, chosen):
            return f"samples/batch{batch}"
    setting = name.partition("_seed")[0]
    return None if setting == "microbatch/exact" else setting


def claim_g(study: Study) -> list[Part]:
    """The drop in logits against the mean of both logits: against one of them, its own noise would make a slope.

    In logits, as the field plots it: in points the drop of a poor model is small by necessity. A point is a setting, the
    mean of its seeds, after each of its stages.
    """
    settings: dict[bool, dict[tuple, list]] = {True: {}, False: {}}
    for name, stage, inside, outside in shifts(study):
        setting, whole = _setting(study, name), name.startswith(("stages/", "size/"))
        if setting is not None:
            settings[whole].setdefault((setting, stage), []).append((inside, outside))
    parts = []
    for words, whole in (("whole recipes", True), ("text towers against one image tower", False)):
        means = [[sum(part) / len(of) for part in zip(*of)] for of in settings[whole].values()]
        logits = [[math.log(p / (1 - p)) for p in pair] for pair in means if all(0 < p < 1 for p in pair)]
        figure = statistics.trend([sum(pair) / 2 for pair in logits], [a - b for a, b in logits])
        says = f"{words}: drop per accuracy, both in logits, {len(logits)} settings"
        parts.append(_points("g", says, figure, -1, "", 1.0))
    return parts


def claim_0(study: Study) -> list[Part]:
    """All together against the best of each alone."""

    def at(name: str, seed: int) -> float | None:
        return study.value(f"combined/{name}_seed{seed}")

    def grown(seed: int) -> float | None:
        return study.value(study.samples(plan.COMBINED_BATCH, seed))

    difference = study.over_seeds(
        lambda s: minus(grown(s), best([at(name, s) for name in ("data", "model", "batch")]))
    )
    gain = study.over_seeds(lambda s: minus(grown(s), at("small", s)))
    return [
        _points("0", "all grown less the best of one grown", difference),
        _points("0", "all grown less none grown", gain),
    ]


CLAIMS: dict[str, Callable[[Study], list[Part]]] = {
    "a": claim_a,
    "b": claim_b,
    "c": claim_c,
    "g": claim_g,
    "f": claim_f,
    "d": claim_d,
    "e": claim_e,
    "0": claim_0,
}


def verdicts(study: Study) -> list[Part]:
    """Every part of every claim."""
    return [part for claim in CLAIMS.values() for part in claim(study)]
