"""What the study compares apart from batch sizes, claim by claim, each with the runs that it is compared with."""

import dataclasses

from basic_tf.evaluation import pictures
from tools.report.layout import DASH, Charts, table
from tools.study import claims, plan, statistics

_KEYS = (claims.SHIFT, claims.INSIDE, "zero_shot/held_out_concepts/top5")
_HEAD = [
    "compared",
    "seeds",
    "held-out styles, top-1 %",
    "in distribution, top-1 %",
    "held-out concepts, top-5 %",
]
_TITLES = {
    "b": "b: more steps of small batches",
    "c": "c: microbatches, B = 4,096",
    "d": "d: model size, after stage 2",
    "e": "e: data of stage 2, B = 256",
    "f": "f: stages",
    "0": "0: data, model and batch",
}


@dataclasses.dataclass(frozen=True)
class Compared:
    """One group of runs that differ in their seed: `run` of each seed's name; `stage` if not its last evaluation counts."""

    claim: str
    label: str
    run: str
    stage: str | None = None

    def values(self, study: claims.Study, key: str) -> list[float]:
        """A figure of every seed that is there."""
        names = [self._name(study, seed) for seed in plan.SEEDS]
        found = (
            study.stage_value(name, self.stage, key) if self.stage else study.value(name, key)
            for name in names
        )
        return [value for value in found if value is not None]

    def _name(self, study: claims.Study, seed: int) -> str:
        if self.run.startswith("samples/batch"):
            return study.samples(int(self.run.removeprefix("samples/batch")), seed)
        return f"{self.run}_seed{seed}"


_SAMPLES = f"{plan.EXAMPLES:,} pairs"
GROUPS = (
    Compared("b", f"B = 64, {_SAMPLES}", "samples/batch64"),
    Compared("b", "B = 64, four times", "longer/batch64"),
    Compared("b", f"B = 256, {_SAMPLES}", "samples/batch256"),
    Compared("b", "B = 256, four times", "longer/batch256"),
    Compared("b", f"B = 4,096, {_SAMPLES}", "samples/batch4096"),
    Compared("b", "B = 4,096, four times", "steps/batch4096"),
    Compared("c", "plain", "samples/batch4096"),
    Compared("c", f"exact, microbatches of {plan.MICROBATCH}", "microbatch/exact"),
    Compared("c", f"a loss over each {plan.MICROBATCH} pairs", "microbatch/separate"),
    Compared("d", "small", "size/small"),
    Compared("d", "middle", "stages/staged", "contrastive"),
    Compared("d", "large", "size/large"),
    *(Compared("e", f"{share:.0%} of the emoji records", f"data/share{share:g}") for share in plan.SHARES),
    Compared("e", f"{plan.TRAINED:.0%} of the emoji records", "samples/batch256"),
    Compared("e", "half emoji, half icons", "data/icons"),
    Compared("f", "from scratch, one stage", "stages/from_scratch"),
    Compared("f", "three stages", "stages/staged"),
    Compared("0", "all small", "combined/small"),
    Compared("0", "more data", "combined/data"),
    Compared("0", "larger model", "combined/model"),
    Compared("0", "larger batch", "combined/batch"),
    Compared("0", "all three", f"samples/batch{plan.COMBINED_BATCH}"),
)


def comparisons(study: claims.Study, charts: Charts) -> str:
    """The table, and a chart with a dot for each run."""
    rows, dots = [], {}
    for group in GROUPS:
        found = [group.values(study, key) for key in _KEYS]
        if not found[0]:
            continue
        title = _TITLES[group.claim]
        rows.append(
            [
                f"{group.claim}: {group.label}",
                f"{len(found[0])}",
                *(statistics.mean(values).text(100, 1) if values else DASH for values in found),
            ]
        )
        dots.setdefault(title, {})[group.label] = [100 * value for value in found[0]]
    if not rows:
        return "Not run yet."
    path, link = charts.path("comparisons.png")
    pictures.seed_dots(path, dots, "The study's comparisons", "mean top-1 on styles never trained on, %")
    return "\n".join([*table(_HEAD, rows), "", f"![Accuracy of every run of each comparison]({link})"])
