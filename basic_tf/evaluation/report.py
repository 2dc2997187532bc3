"""results.json, results.md and the figures of one evaluation."""

import json
import posixpath
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from basic_tf.data import decoding
from basic_tf.evaluation import pictures, published
from basic_tf.evaluation.public_sets import PUBLIC_SETS, ROBUSTNESS
from basic_tf.evaluation.suite import DESCRIBED, SuiteResult

_SHOWN_PIXELS = 96
GRID_FILE, BARS_FILE = "predictions.png", "accuracy.png"
TITLES = {
    "in_distribution": "a training style, hidden pictures",
    "held_out_concepts": "concepts never trained on, by name",
    "held_out_concepts_described": "concepts never trained on, by name and keywords",
    "symbola": "symbola (line drawings, never trained on)",
    "clipart_folders": "drawings of clip art, by the name of their folder",
    "fashion": "grey photographs of clothes (Fashion-MNIST)",
    "photos": "photographs cut out (Tux Paint's stamps), a class for nearly each",
}


def results(suite: SuiteResult, provenance: dict) -> dict:
    """The content of results.json."""
    optional = {
        "multi_label": {name: result.summary() for name, result in suite.multi_label.items()},
        "missing": suite.missing,
        # The templates of tests that have their own, as public ones have.
        "templates": {name: list(test.templates) for name, test in suite.tests.items() if test.templates},
    }
    return {
        "zero_shot": {name: result.summary() for name, result in suite.zero_shot.items()},
        "summary": suite.summary(),
        "retrieval": suite.retrieval or {},
        **{key: value for key, value in optional.items() if value},
        "provenance": {
            **provenance,
            "templates": list(suite.templates),
            "described_templates": list(suite.described_templates),
            "canonicalisation": suite.canonicalisation,
        },
    }


def write(suite: SuiteResult, output_dir: str, provenance: dict) -> dict:
    """Writes results.json, results.md, predictions.png and accuracy.png into a folder; returns the results.

    results.json holds nothing that differs between two runs of the same weights on the same machine: the same
    model gives the same bytes.
    """
    tf.io.gfile.makedirs(output_dir)
    content = results(suite, provenance)
    _write_text(
        posixpath.join(output_dir, "results.json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    )
    figures = ()
    if suite.zero_shot:
        write_bars(posixpath.join(output_dir, BARS_FILE), content)
        write_grid(posixpath.join(output_dir, GRID_FILE), suite)
        figures = (BARS_FILE, GRID_FILE)
    _write_text(posixpath.join(output_dir, "results.md"), markdown(content, figures))
    return content


def _write_text(path: str, text: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def markdown(content: dict, figures: Sequence[str] = ()) -> str:
    """results.md from the content of results.json."""
    lines = ["# Results", ""]
    summary = content["summary"]
    if summary:
        mean, error = (
            summary["held_out_styles_mean_top1"],
            summary["held_out_styles_mean_top1_standard_error"],
        )
        styles = summary["held_out_styles"]
        chance = 1 / content["zero_shot"][styles[0]]["classes"]
        lines += [
            f"Mean zero-shot top-1 over the held-out styles {', '.join(styles)}: **{_percent(mean)} %** "
            f"± {_percent(error)} (standard error, grouped by concept); chance {100 * chance:.2g} %.",
            "",
        ]
    if content["zero_shot"] or content.get("multi_label"):
        lines += ["## Zero-shot classification", ""]
    if content["zero_shot"]:
        lines += [
            "| test | top-1 % | ± s.e. | top-5 % | mean per class % | chance % | pictures | classes |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
    for name, entry in content["zero_shot"].items():
        title = f"{name}: {TITLES[name]}" if name in TITLES else name
        shares = (entry["top1"], entry["standard_error"], entry["top5"], entry["mean_per_class"])
        cells = " | ".join(_percent(share) for share in shares)
        lines.append(
            f"| {title} | {cells} | {100 / entry['classes']:.2g} | {entry['examples']} | {entry['classes']} |"
        )
    for name, entry in content.get("multi_label", {}).items():
        share = _percent(entry["mean_average_precision"])
        lines += [
            "",
            f"{name}: mean average precision {share} % ({entry['examples']} pictures, {entry['classes']} labels).",
        ]
    lines += _published(content)
    if content.get("missing"):
        lines += ["", "Left out, because their pictures are not on disk:", ""]
        lines += [f"- {line}" for line in content["missing"].values()]
    if content["retrieval"]:
        lines += ["", "## Retrieval", "", "| direction | R@1 % | R@5 % | R@10 % | queries | candidates |"]
        lines.append("|---|---:|---:|---:|---:|---:|")
        for name, entry in content["retrieval"].items():
            cells = " | ".join(_percent(entry[f"R@{k}"]) for k in (1, 5, 10))
            lines.append(
                f"| {name.replace('_', ' ')} | {cells} | {entry['queries']} | {entry['candidates']} |"
            )
    for figure in figures:
        lines += ["", f"![{figure.rsplit('.', 1)[0]}]({figure})"]
    lines += ["", "## How this was made", "", *_templates(content)]
    for key, value in content["provenance"].items():
        if key in ("templates", "described_templates"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {text}" for inner, text in value.items())
        lines.append(f"- {key.replace('_', ' ')}: {value}")
    return "\n".join(lines) + "\n"


def _templates(content: dict) -> list[str]:
    """A line for each list of templates that was used, with the names of its tests where there are several lists."""
    own, provenance = content.get("templates", {}), content["provenance"]
    used: dict[tuple[str, ...], list[str]] = {}
    for name in [*content["zero_shot"], *content.get("multi_label", {})]:
        common = provenance.get("described_templates" if name.endswith(DESCRIBED) else "templates", ())
        used.setdefault(tuple(own.get(name, common)), []).append(name)
    lines = []
    for templates, names in used.items():
        of = f" of {', '.join(names)}" if len(used) > 1 else ""
        lines.append(f"- templates{of}: {', '.join(f'`{template}`' for template in templates)}")
    return lines


def _published(content: dict) -> list[str]:
    """The paper's tables with published rows, for the public tests that were evaluated."""
    entries = content["zero_shot"] | content.get("multi_label", {})
    ours = {name: entries[name][PUBLIC_SETS[name].figure] for name in PUBLIC_SETS if name in entries}
    titles = {
        name: one.title
        + {"mean_per_class": " (per class)", "mean_average_precision": " (mAP)"}.get(one.figure, "")
        for name, one in PUBLIC_SETS.items()
    }
    others = tuple(name for name in PUBLIC_SETS if name not in ROBUSTNESS)
    differing = {name: PUBLIC_SETS[name].differs for name in ours if PUBLIC_SETS[name].differs}
    tables = [published.table(ours, tests, titles, differing) for tests in (ROBUSTNESS, others)]
    tables = [lines for lines in tables if lines]
    if not tables:
        return []
    note = "Per cent. Published rows are of larger models and private data; a row marked as a recollection is no citation."
    lines = ["", "## Beside published figures", "", note] + [
        line for lines in tables for line in ("", *lines)
    ]
    if differing:
        lines += ["", f"{published.DIFFERS} not surely of the same prompts and pictures as ours:", ""]
        lines += [f"- {PUBLIC_SETS[name].title}: {why}" for name, why in differing.items()]
    return lines


def write_bars(path: str, content: dict) -> None:
    """The bar chart of results.json."""
    entries = content["zero_shot"]
    labels = [name.replace("_", " ") for name in entries]
    pictures.accuracy_bars(
        path,
        labels,
        [entry["top1"] for entry in entries.values()],
        [entry["top5"] for entry in entries.values()],
        [entry["standard_error"] for entry in entries.values()],
        [1 / entry["classes"] for entry in entries.values()],
        "Zero-shot accuracy by test",
    )


def write_grid(path: str, suite: SuiteResult, for_each: int = 6) -> None:
    """A row of pictures from each test, evenly spread over the kept ones, never chosen by how well they
    did.
    """
    rows = []
    for name, result in suite.zero_shot.items():
        if name.endswith(DESCRIBED):  # the same pictures as the test before it
            continue
        count = min(for_each, len(result.kept_records))
        chosen = np.linspace(0, len(result.kept_records) - 1, count).round().astype(int)
        classes = suite.classes[name]
        images = suite.tests[name].read_images(result.kept_records[chosen])
        rows.append(
            pictures.GridRow(
                name.replace("_", " "),
                [decoding.framed(decoding.decode(image), _SHOWN_PIXELS, "pad") for image in images],
                [classes[label] for label in result.kept_labels[chosen]],
                list(result.kept_predictions[chosen, 0] == result.kept_labels[chosen]),
                [[classes[index] for index in best] for best in result.kept_predictions[chosen]],
                list(result.kept_scores[chosen]),
            )
        )
    pictures.prediction_grid(path, rows, "Zero-shot predictions, with cosine similarities")
