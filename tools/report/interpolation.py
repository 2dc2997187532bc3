"""Accuracy between two models, over the run folders that tools/interpolate_weights.py made (WiSE-FT, arXiv 2109.01903)."""

import os
from collections.abc import Sequence

import tensorflow as tf

from basic_tf.evaluation import pictures
from basic_tf.evaluation.suite import DESCRIBED
from tools.checkpoints.interpolated import PREFIX
from tools.report.layout import Charts, one_run, percent, table, with_error
from tools.report.runs import MissingError, Run

_CONCEPTS = ("held_out_concepts", f"held_out_concepts{DESCRIBED}")
_HEAD = [
    "alpha",
    "in distribution, top-1 %",
    "held-out styles, top-1 %",
    "held-out concepts by name, top-5 %",
    "the same, described, top-5 %",
    "image to text, R@5 %",
    "text to image, R@5 %",
]


def evaluated(folder: str) -> list[tuple[float, Run, dict]]:
    """(alpha, its run, its results.json), alphas ascending, of those that have been evaluated."""
    found = []
    for entry in tf.io.gfile.listdir(folder):
        name = entry.rstrip("/")
        if not name.startswith(PREFIX):
            continue
        run = Run(os.path.join(folder, name))
        try:
            found.append((float(name.removeprefix(PREFIX)), run, run.results()))
        except MissingError:
            continue
    return sorted(found, key=lambda one: one[0])


def interpolation(runs: Sequence[str], charts: Charts) -> str:
    """A row for each alpha, and the two curves: accuracy in distribution and under style shift."""
    folder = one_run(runs, "interpolation").folder
    found = evaluated(folder)
    if not found:
        raise MissingError(
            f"{folder} has no {PREFIX}*/results.json; evaluate the folders of tools/interpolate_weights.py"
        )
    rows = []
    curves: dict[str, list] = {name: [] for name in ("in distribution", "held-out styles")}
    for alpha, _, content in found:
        tests, summary, retrieval = (content[key] for key in ("zero_shot", "summary", "retrieval"))
        inside, mean = tests["in_distribution"], "held_out_styles_mean_top1"
        pairs = [
            (inside["top1"], inside["standard_error"]),
            (summary[mean], summary[f"{mean}_standard_error"]),
        ]
        for curve, (share, error) in zip(curves.values(), pairs):
            curve.append((alpha, 100 * share, 100 * error))
        shares = [
            *(tests[name]["top5"] if name in tests else None for name in _CONCEPTS),
            *(retrieval.get(name, {}).get("R@5") for name in ("image_to_text", "text_to_image")),
        ]
        rows.append([f"{alpha:g}", *(with_error(*pair) for pair in pairs), *map(percent, shares)])
    path, link = charts.path("interpolation.png")
    labels = ("alpha: 0 before fine-tuning, 1 after", "zero-shot top-1, %, with standard errors")
    pictures.error_lines(path, curves, "Weights between two models (WiSE-FT)", labels, log_x=False)
    sources = "; ".join(run.source() for _, run, _ in (found[0], found[-1]))
    return "\n".join([*table(_HEAD, rows), "", f"![Accuracy by alpha]({link})", "", f"From {sources}."])
