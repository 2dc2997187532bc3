"""The kinds of generated parts: each turns run folders into Markdown, and some into a chart beside the document.

A kind is a function (runs, charts) -> Markdown text. runs: paths as the marker names them. charts: where its pictures
go. It raises runs.MissingError where it can say nothing at all.
"""

import os
from collections.abc import Callable, Sequence

from basic_tf.evaluation import pictures, suite
from basic_tf.evaluation.report import TITLES
from basic_tf.monitoring.progress import duration
from tools.report import interpolation, robustness, study, theory
from tools.report.layout import DASH, Charts, one_run, percent, table, with_error
from tools.report.runs import MissingError, Run, read_json

_DESCRIBED = "held_out_concepts" + suite.DESCRIBED


def _title(name: str) -> str:
    return f"{name}: {TITLES[name]}" if name in TITLES else name


def _mean_title() -> str:
    return f"mean of {', '.join(suite.HELD_OUT_STYLES)}"


def zero_shot(runs: Sequence[str], charts: Charts) -> str:
    """Every test of one run, and the bar chart."""
    run = one_run(runs, "zero_shot")
    content = run.results()
    entries, summary = content["zero_shot"], content["summary"]
    rows = [
        [
            _title(name),
            with_error(entry["top1"], entry["standard_error"]),
            *(percent(entry[key]) for key in ("top5", "mean_per_class")),
            f"{100 / entry['classes']:.2g}",
            f"{entry['examples']:,}",
            f"{entry['classes']:,}",
        ]
        for name, entry in entries.items()
    ]
    head = ["test", "top-1 % ± s.e.", "top-5 %", "mean per class %", "chance %", "pictures", "classes"]
    lines = []
    if summary:
        mean, error = (summary[f"held_out_styles_mean_top1{end}"] for end in ("", "_standard_error"))
        chance = 1 / entries[summary["held_out_styles"][0]]["classes"]
        lines += [
            f"Mean top-1 over the held-out styles {', '.join(summary['held_out_styles'])}: "
            f"**{with_error(mean, error)} %** (standard error grouped by concept; chance {100 * chance:.2g} %).",
            "",
        ]
    path, link = charts.path(f"{run.name}_zero_shot.png")
    pictures.accuracy_bars(
        path,
        [name.replace("_", " ") for name in entries],
        [entry["top1"] for entry in entries.values()],
        [entry["top5"] for entry in entries.values()],
        [entry["standard_error"] for entry in entries.values()],
        [1 / entry["classes"] for entry in entries.values()],
        "Zero-shot accuracy by test",
    )
    lines += [*table(head, rows), "", f"![Zero-shot accuracy by test]({link})", "", f"From {run.source()}."]
    return "\n".join(lines)


def retrieval(runs: Sequence[str], charts: Charts) -> str:
    """Recalls of one run in both directions."""
    del charts
    run = one_run(runs, "retrieval")
    entries = run.results()["retrieval"]
    if not entries:
        raise MissingError(f"{run.folder}/results.json has no retrieval; evaluate without --noretrieval")
    rows = [
        [
            name.replace("_", " "),
            *(percent(entry[f"R@{k}"]) for k in (1, 5, 10)),
            f"{entry['queries']:,}",
            f"{entry['candidates']:,}",
        ]
        for name, entry in entries.items()
    ]
    head = ["direction", "R@1 %", "R@5 %", "R@10 %", "queries", "candidates"]
    return "\n".join([*table(head, rows), "", f"From {run.source()}."])


def training(runs: Sequence[str], charts: Charts) -> str:
    """Steps, speed and time of the stages of one run."""
    del charts
    run = one_run(runs, "training")
    rows = []
    for stage in run.stages():
        rate = stage.median("_per_second")
        unit = next((key for line in stage.train for key in line if key.endswith("_per_second")), "")
        rows.append(
            [
                stage.name,
                f"{stage.steps:,}",
                DASH if rate is None else f"{rate:,.0f} {unit.removesuffix('_per_second')}/s",
                *(
                    DASH if value is None else f"{value:.2f}"
                    for value in (stage.median("matrix_rate_share"), stage.median("data_wait_share"))
                ),
                DASH if stage.seconds is None else duration(stage.seconds),
            ]
        )
    head = ["stage", "steps", "speed (median)", "share of the matrix rate", "waiting for data", "time"]
    note = f"From `{run.folder}/*/metrics.jsonl`; the time leaves out start-up, evaluation and saving."
    return "\n".join([*table(head, rows), "", note])


def stages(runs: Sequence[str], charts: Charts) -> str:
    """What each stage of one run brings: its last evaluation while training, one column a stage."""
    del charts
    run = one_run(runs, "stages")
    found = [stage for stage in run.stages() if stage.evaluations]
    if not found:
        raise MissingError(
            f"{run.folder} was never evaluated while training; train with --mode=train_and_eval"
        )
    figures = [stage.evaluations[-1] for stage in found]
    keys = {
        f"zero_shot/{name}/top1": f"{_title(name)}, top-1 %"
        for name in suite.report_order(
            [
                key.split("/")[1]
                for key in figures[-1]
                if key.startswith("zero_shot/") and key.endswith("/top1")
            ]
        )
    }
    keys["zero_shot/held_out_styles_mean_top1"] = f"{_mean_title()}, top-1 %"
    keys["zero_shot/held_out_concepts/top5"] = f"{_title('held_out_concepts')}, top-5 %"
    keys[f"zero_shot/{_DESCRIBED}/top5"] = f"{_title(_DESCRIBED)}, top-5 %"
    keys["retrieval/image_to_text/R_at_5"] = "image to text, R@5 %"
    keys["retrieval/text_to_image/R_at_5"] = "text to image, R@5 %"
    rows = [
        [title, *(percent(of_stage.get(key)) for of_stage in figures)]
        for key, title in keys.items()
        if any(key in of_stage for of_stage in figures)
    ]
    head = ["test", *(f"{stage.name}, step {stage.evaluations[-1]['step']:,}" for stage in found)]
    return "\n".join([*table(head, rows), "", f"From `{run.folder}/*/metrics.jsonl`."])


def _comparison_rows(contents: Sequence[dict]) -> list[list[str]]:
    """Titles and one cell a run; what no run has is left out."""

    def top(name: str, key: str, content: dict) -> str:
        entry = content["zero_shot"].get(name)
        if entry is None:
            return DASH
        return with_error(entry[key], entry["standard_error"]) if key == "top1" else percent(entry[key])

    def mean(content: dict) -> str:
        summary = content["summary"]
        keys = ("held_out_styles_mean_top1", "held_out_styles_mean_top1_standard_error")
        return with_error(*(summary[key] for key in keys)) if summary else DASH

    def recall(direction: str, content: dict) -> str:
        return percent(content["retrieval"].get(direction, {}).get("R@5"))

    rows = [
        [f"{_title(name)}, top-1", *(top(name, "top1", content) for content in contents)]
        for name in ("in_distribution", *suite.HELD_OUT_STYLES, "symbola")
    ]
    rows.insert(-1, [f"**{_mean_title()}**, top-1", *(f"**{mean(content)}**" for content in contents)])
    rows += [
        [f"{_title(name)}, top-5", *(top(name, "top5", content) for content in contents)]
        for name in ("held_out_concepts", _DESCRIBED)
    ]
    rows += [
        [f"{direction.replace('_', ' ')}, R@5", *(recall(direction, content) for content in contents)]
        for direction in ("image_to_text", "text_to_image")
    ]
    return [row for row in rows if any(cell.strip("*") != DASH for cell in row[1:])]


def ablations(runs: Sequence[str], charts: Charts) -> str:
    """Runs side by side, one column each, the first is the one to compare with. Runs that are not there are named."""
    if len(runs) < 2:
        raise ValueError(
            f"a part of kind ablations takes two runs or more, received {' '.join(runs) or 'none'}"
        )
    there, missing = [], []
    for folder in runs:
        try:
            run = Run(folder)
            there.append((run, run.results()))
        except MissingError:
            missing.append(folder)
    if not there:
        raise MissingError(f"none of {', '.join(runs)} has a results.json")
    contents = [content for _, content in there]
    rows = _comparison_rows(contents)
    times, stage_names = [], []
    for run, _ in there:
        try:
            logs = run.stages()
        except MissingError:
            logs = []
        timed = [log.seconds for log in logs if log.seconds is not None]
        times.append(duration(sum(timed)) if timed else DASH)
        stage_names.append(", ".join(f"{log.name} {log.steps:,}" for log in logs) or DASH)
    rows += [["training time", *times], ["stages and steps", *stage_names]]
    head = ["test, %", *(run.name for run, _ in there)]
    lines = [*table(head, rows), ""]
    shown = [content for content in contents if content["summary"]]
    if shown:
        path, link = charts.path("ablations.png")
        names = ["in_distribution", *suite.HELD_OUT_STYLES]
        pictures.grouped_bars(
            path,
            [name.replace("_", " ") for name in names],
            {
                run.name: [
                    (content["zero_shot"][name]["top1"], content["zero_shot"][name]["standard_error"])
                    if name in content["zero_shot"]
                    else None
                    for name in names
                ]
                for run, content in there
            },
            "Zero-shot top-1, with standard errors",
        )
        lines += [f"![Zero-shot top-1 of each run]({link})", ""]
    lines.append("From " + "; ".join(run.source() for run, _ in there) + ".")
    if missing:
        lines.append(f"Not run yet: {', '.join(f'`{folder}`' for folder in missing)}.")
    return "\n".join(lines)


def chaos(runs: Sequence[str], charts: Charts) -> str:
    """What tools/chaos.py found: its folder's chaos.json."""
    del charts
    if len(runs) != 1:
        raise ValueError(f"a part of kind chaos takes one folder, received {' '.join(runs) or 'none'}")
    content = read_json(os.path.join(runs[0], "chaos.json"))
    verdict = "all equal" if not content["different"] else f"**{content['different']} differ**"
    return (
        f"A run killed {content['signals']} times at random moments (SIG{content['signal']}) and started again, against an "
        f"uninterrupted one: {content['compared']:,} arrays and losses compared bit for bit, {verdict}."
    )


KINDS: dict[str, Callable[[Sequence[str], Charts], str]] = {
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "training": training,
    "stages": stages,
    "ablations": ablations,
    "chaos": chaos,
    "robustness": robustness.robustness,
    "interpolation": interpolation.interpolation,
    "generalization": theory.generalization,
    "estimator_bias": theory.estimator_bias,
    **study.KINDS,
}
