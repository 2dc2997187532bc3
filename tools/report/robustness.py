"""Accuracy under style shift against accuracy in distribution, over all checkpoints that were evaluated while training."""

from collections.abc import Sequence

import numpy as np

from basic_tf.evaluation import pictures, suite
from tools.report.layout import Charts, percent, table
from tools.report.runs import MissingError, Run

_INSIDE = "zero_shot/in_distribution/top1"
_OUTSIDE = "zero_shot/held_out_styles_mean_top1"


def logit(share):
    """log(p / (1 - p))."""
    return np.log(np.asarray(share) / (1 - np.asarray(share)))


def checkpoints(run: Run) -> list[tuple[str, int, float, float]]:
    """(stage, step, top-1 in distribution, mean top-1 under shift) of the evaluations that have both, inside (0, 1)."""
    return [
        (stage.name, line["step"], line[_INSIDE], line[_OUTSIDE])
        for stage in run.stages()
        for line in stage.evaluations
        if 0 < line.get(_INSIDE, 0) < 1 and 0 < line.get(_OUTSIDE, 0) < 1
    ]


def fit(pairs: np.ndarray) -> tuple[float, float] | None:
    """Slope and intercept of logit(under shift) on logit(in distribution); None for fewer than three different points."""
    if len(pairs) < 3 or np.ptp(pairs[:, 0]) == 0:
        return None
    slope, intercept = np.polyfit(logit(pairs[:, 0]), logit(pairs[:, 1]), 1)
    return float(slope), float(intercept)


def robustness(runs: Sequence[str], charts: Charts) -> str:
    """The effective-robustness picture: the line is fitted to the first run, the last column is the distance from it.

    Above the line is better than the first run's checkpoints of the same in-distribution accuracy.
    """
    found = {}
    for folder in runs:
        run = Run(folder)
        found[run.name] = checkpoints(run)
    if not any(found.values()):
        raise MissingError(f"no evaluation with {_INSIDE} and {_OUTSIDE} in {', '.join(runs)}")
    first = next(name for name, of_run in found.items() if of_run)
    line = fit(np.array([entry[2:] for entry in found[first]]))
    rows = []
    for name, of_run in found.items():
        for stage, step, inside, outside in of_run:
            row = [f"{name}, {stage}", f"{step:,}", *map(percent, (inside, outside))]
            row.append(f"{100 * (inside - outside):.1f}")
            if line is not None:
                expected = 1 / (1 + np.exp(-(line[0] * logit(inside) + line[1])))
                row.append(f"{100 * (outside - expected):+.1f}")
            rows.append(row)
    head = ["run and stage", "step", "in distribution, %", "mean under shift, %", "drop, points"]
    if line is not None:
        head.append(f"above the line of {first}, points")
    path, link = charts.path("robustness.png")
    pictures.shift_scatter(
        path,
        {name: [entry[2:] for entry in of_run] for name, of_run in found.items() if of_run},
        "Accuracy under style shift, all evaluated checkpoints",
        ("top-1 in distribution", f"mean top-1 of {', '.join(suite.HELD_OUT_STYLES)}"),
        line,
    )
    lines = [*table(head, rows), "", f"![Accuracy under shift against accuracy in distribution]({link})"]
    if line is not None:
        lines += [
            "",
            f"Fit over the checkpoints of {first}: logit(shift) = {line[0]:.2f} logit(in) {line[1]:+.2f}.",
        ]
    return "\n".join(lines)
