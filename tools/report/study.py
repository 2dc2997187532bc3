"""The generated parts of docs/results/study.md, from the study.json of the finished runs, or from their record beside it."""

import os
from collections.abc import Sequence

from basic_tf.evaluation import pictures
from basic_tf.monitoring.progress import duration
from tools.report.comparisons import comparisons
from tools.report.layout import DASH, Charts, percent, table
from tools.report.runs import MissingError
from tools.study import claims, plan, statistics, store

_RECORD = "runs.json"
_SETTINGS = {
    "samples": f"equal samples ({plan.EXAMPLES:,} pairs)",
    "steps": f"equal steps ({plan.STEPS:,})",
    "distinct": "equal samples, distinct concepts in a batch",
}
_LOSSES = "false_negatives_per_pair"


def _study(runs: Sequence[str], charts: Charts) -> claims.Study:
    """The finished runs of the folder; without any, those of the record beside the document."""
    if len(runs) != 1:
        raise ValueError(f"a part of the study takes its folder, received {' '.join(runs) or 'none'}")
    path = charts.present(_RECORD)
    found, record = store.finished(runs[0]), store.read_record(path)
    if not found and not record:
        raise MissingError(f"{runs[0]} holds no finished run, and there is no {path}; make study")
    lost = [name for name in record if name not in found]
    if found and lost:
        raise MissingError(
            f"{path} records {len(lost)} runs that {runs[0]} has not finished ({', '.join(lost[:3])}); take them over with "
            f"tools/run_study.py --adopt={path}, or delete that file to report the {len(found)} runs alone"
        )
    return claims.Study(found or record)


def study_verdicts(runs: Sequence[str], charts: Charts) -> str:
    """Every statement with its figure and its verdict."""
    study = _study(runs, charts)
    rows = [
        [
            f"{part.claim}: {claims.TITLES[part.claim]}" if first else "",
            part.says,
            DASH
            if part.figure.count == 0 or part.verdict == statistics.NOT_RUN
            else f"{part.figure.text(part.scale, part.digits, sign=True)} {part.unit}".strip(),
            part.verdict if part.verdict == statistics.NOT_RUN else f"**{part.verdict}**",
        ]
        for parts in (claim(study) for claim in claims.CLAIMS.values())
        for first, part in ((row == 0, part) for row, part in enumerate(parts))
    ]
    lines = table(["claim", "what is tested", "figure ± 95 % interval", "verdict"], rows)
    lines[1] = "|---|---|---:|---|"
    return "\n".join(lines)


def study_batches(runs: Sequence[str], charts: Charts) -> str:
    """Accuracy and gaps against the batch size in each setting, and the charts."""
    study = _study(runs, charts)
    lines, accuracy, gaps = [], {}, {}
    for setting, words in _SETTINGS.items():
        rows = []
        for batch in plan.BATCHES:
            names = [study.batch_run(setting, batch, seed) for seed in plan.SEEDS]

            def cell(key, scale=1.0, digits=2, names=names):
                values = [value for name in names if (value := study.value(name, key)) is not None]
                return statistics.mean(values), statistics.mean(values).text(
                    scale, digits
                ) if values else DASH

            interval, text = cell(claims.SHIFT, 100, 1)
            if not interval.count:
                continue
            accuracy.setdefault(words, []).append((batch, 100 * interval.value, 100 * interval.half_width))
            cells = [f"{batch:,}", f"{interval.count}", cell(_LOSSES)[1].split(" ±")[0], text]
            cells.append(cell(claims.INSIDE, 100, 1)[1])
            for gap in claims.GAPS:
                of_gap, text = cell(f"gap/{gap}")
                cells.append(text)
                if setting == "samples":
                    gaps.setdefault(gap.replace("_", " "), []).append(
                        (batch, of_gap.value, of_gap.half_width)
                    )
            rows.append(cells)
        if rows:
            head = [
                "B",
                "seeds",
                "false negatives per pair",
                "held-out styles, top-1 %",
                "in distribution, top-1 %",
            ]
            head += [f"gap, {gap.replace('_', ' ')}" for gap in claims.GAPS]
            lines += [f"At {words}:", "", *table(head, rows), ""]
    if not lines:
        return "Not run yet."
    path, link = charts.path("accuracy_by_batch.png")
    pictures.error_lines(path, accuracy, "Accuracy on styles never trained on", ("batch size", "top-1, %"))
    lines += [f"![Accuracy against batch size]({link})", ""]
    if gaps:
        path, link = charts.path("gaps_by_batch.png")
        positive = all(value > 0 for of_gap in gaps.values() for _, value, _ in of_gap)
        pictures.error_lines(
            path, gaps, "Generalisation gaps at equal samples", ("batch size", "gap, nats"), log_y=positive
        )
        lines += [f"![Gaps against batch size]({link})"]
    return "\n".join(lines)


def study_rates(runs: Sequence[str], charts: Charts) -> str:
    """The learning-rate search."""
    study, rows = _study(runs, charts), []
    for batch, (tried, chosen) in study.rates.items():
        cells = []
        for rate in sorted(tried):
            figures = study.found.get(plan.rate_name(batch, rate), {}).get("figures")
            score = percent(None if figures is None else plan.retrieval(figures))
            cells.append(f"{rate:g}: **{score}**" if rate == chosen else f"{rate:g}: {score}")
        rows.append([f"{batch:,}", ", ".join(cells)])
    return "\n".join(table(["B", "peak rate: mean retrieval R@1, % (seed 0; the chosen one bold)"], rows))


def study_comparisons(runs: Sequence[str], charts: Charts) -> str:
    """Accuracies of everything that is not a batch size: microbatches, lengths, sizes, stages, data, all together."""
    return comparisons(_study(runs, charts), charts)


def study_shift(runs: Sequence[str], charts: Charts) -> str:
    """Claim g's picture: one point a run."""
    found = claims.shifts(_study(runs, charts))
    inside = [(name, a, b) for name, _, a, b in found if 0 < a < 1 and 0 < b < 1]
    if not inside:
        return "Not run yet."
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, a, b in inside:
        groups.setdefault(name.split("/")[0], []).append((a, b))
    path, link = charts.path("shift.png")
    pictures.shift_scatter(
        path,
        {name: sorted(points) for name, points in groups.items()},
        "Accuracy under style shift, all runs of the study",
        ("top-1 in distribution", "mean top-1 of the held-out styles"),
        joined=False,
    )
    return f"![Accuracy under shift against accuracy in distribution]({link})"


def study_runs(runs: Sequence[str], charts: Charts) -> str:
    """How many runs there are and how long they took; every run's gin file, bindings and figures go beside the document."""
    study = _study(runs, charts)
    path, link = charts.path(_RECORD)
    store.write_record(path, study.found)
    seconds = sum(
        stage["training_seconds"] or 0
        for one in study.found.values()
        for stage in one.get("stages", {}).values()
    )
    specs, waiting = plan.runs({name: one.get("figures", {}) for name, one in study.found.items()})
    open_runs = [spec.name for spec in specs if spec.name not in study.found]
    text = (
        f"{len(study.found)} runs are finished, {duration(seconds)} of training in all; gin file, bindings, seed, revision, "
        f"losses and evaluations of each are in [{os.path.basename(path)}]({link})."
    )
    if open_runs or waiting:
        names = sorted({name.partition("_seed")[0] for name in open_runs})
        rest = f", and {waiting} that wait for a learning rate" if waiting else ""
        text += f" Not run yet: {len(open_runs)} runs ({', '.join(names)}){rest}."
    return text


KINDS = {
    "study_verdicts": study_verdicts,
    "study_batches": study_batches,
    "study_rates": study_rates,
    "study_comparisons": study_comparisons,
    "study_shift": study_shift,
    "study_runs": study_runs,
}
