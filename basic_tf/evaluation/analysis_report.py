"""analysis.json, analysis.md and confusions.png: what lies behind the accuracies of one evaluation."""

import dataclasses
import json
import posixpath

import numpy as np
import tensorflow as tf

from basic_tf.data import decoding
from basic_tf.evaluation import analysis, pictures, probe
from basic_tf.evaluation.encoder import Encoder
from basic_tf.evaluation.suite import SuiteResult

FIGURE = "confusions.png"
_SHOWN_PIXELS = 96
_IN_GRID = 6
_IN_TABLE = 15


def collect(suite: SuiteResult, encoder: Encoder) -> dict:
    """The content of analysis.json: for each test with its embeddings, templates, classes, confusions, few-shot curve.

    The few-shot curve of a test is that of a ridge probe on examples of the other tests with the same classes (another
    style, for one), over the classes that they have; a test without such others has none.
    """
    content = {}
    for name, (embeddings, labels) in suite.embeddings.items():
        result, classes = suite.zero_shot[name], suite.classes[name]
        entry: dict = {
            "per_class": [
                {"class": label, "examples": count, "top1": top1, "top5": top5}
                for label, count, top1, top5 in analysis.per_class(result, classes)
            ],
            "confused": [
                {
                    "class": classes[pair.label],
                    "taken_for": classes[pair.predicted],
                    "count": pair.count,
                    "examples": pair.examples,
                    "records": list(pair.records),
                }
                for pair in analysis.confused_pairs(
                    result.kept_labels, result.kept_predictions[:, 0], result.kept_records
                )
            ],
        }
        templates = suite.tests[name].templates or suite.templates
        # Where a subset competes, template effects would need the classifier's own restriction.
        if len(templates) > 1 and result.candidates == len(classes):
            effects = analysis.template_effects(
                encoder, classes, templates, embeddings, labels, canonicalisation=suite.canonicalisation
            )
            entry["templates"] = {
                "ensemble": dataclasses.asdict(effects.ensemble),
                "templates": [dataclasses.asdict(effect) for effect in effects.templates],
            }
        others = [
            suite.embeddings[other]
            for other in suite.embeddings
            if other != name and suite.classes[other] == classes
        ]
        if others:
            train = tuple(np.concatenate(part) for part in zip(*others))
            entry |= _few_shot(train, (embeddings, labels))
        content[name] = entry
    return content


def _few_shot(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict:
    """The curve over the classes that `train` has: a probe cannot know others, and pictures of them would say nothing."""
    covered, labels = np.unique(train[1], return_inverse=True)
    known = np.isin(test[1], covered)
    if len(covered) < 2 or not known.any():
        return {}
    of_known = (test[0][known], np.searchsorted(covered, test[1][known]))
    curve = probe.few_shot_curve((train[0], labels), of_known, len(covered))
    return {"few_shot": [dataclasses.asdict(point) for point in curve], "few_shot_classes": len(covered)}


def markdown(content: dict) -> str:
    """analysis.md from the content of analysis.json."""
    lines = ["# Behind the accuracies", "", f"![Confused classes]({FIGURE})"]
    for name, entry in content.items():
        lines += ["", f"## {name}"]
        if "templates" in entry:
            lines += [
                "",
                "| template | top-1 % (95 %) | the ensemble is better by, points (95 %) |",
                "|---|---:|---:|",
            ]
            lines.append(f"| **all together** | {_interval(entry['templates']['ensemble'])} | |")
            for effect in entry["templates"]["templates"]:
                lines.append(
                    f"| `{_cell(effect['template'])}` | {_interval(effect['top1'])} | {_interval(effect['ensemble_gain'])} |"
                )
        if "few_shot" in entry:
            lines += [
                "",
                f"Few-shot, over the {entry['few_shot_classes']} classes that other tests show:",
                "",
                "| examples a class, of other tests | ridge probe, top-1 % ± deviation over draws |",
                "|---:|---:|",
            ]
            lines += [
                f"| {point['shots']} | {100 * point['accuracy']:.1f} ± {100 * point['deviation']:.1f} |"
                for point in entry["few_shot"]
            ]
        if entry["confused"]:
            lines += ["", "| class | taken for | pictures |", "|---|---|---:|"]
            lines += [
                f"| {_cell(pair['class'])} | {_cell(pair['taken_for'])} | {pair['count']} of {pair['examples']} |"
                for pair in entry["confused"][:_IN_TABLE]
            ]
        hardest = entry["per_class"][:_IN_TABLE]
        lines += ["", f"The hardest of {len(entry['per_class'])} classes:", ""]
        lines += ["| class | pictures | top-1 % | top-5 % |", "|---|---:|---:|---:|"]
        lines += [
            f"| {_cell(row['class'])} | {row['examples']} | {100 * row['top1']:.1f} | {100 * row['top5']:.1f} |"
            for row in hardest
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A name inside a table."""
    return text.replace("|", "\\|")


def _interval(interval: dict) -> str:
    value, low, high = (f"{100 * interval[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def write(suite: SuiteResult, encoder: Encoder, output_dir: str) -> dict:
    """Writes the three files; returns the content of analysis.json. Needs `suite.run(keep_embeddings=True)`."""
    content = collect(suite, encoder)
    for name, text in (
        ("analysis.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"),
        ("analysis.md", markdown(content)),
    ):
        with tf.io.gfile.GFile(posixpath.join(output_dir, name), "w") as file:
            file.write(text)
    rows = [row for name in content if (row := _grid_row(suite, name, content[name]["confused"])) is not None]
    if rows:
        pictures.prediction_grid(
            posixpath.join(output_dir, FIGURE), rows, "One picture of each most confused pair"
        )
    return content


def _grid_row(suite: SuiteResult, name: str, confused: list[dict]) -> pictures.GridRow | None:
    """The first picture of each of a test's most confused pairs; None where nothing was confused."""
    result, classes = suite.zero_shot[name], suite.classes[name]
    records = [pair["records"][0] for pair in confused[:_IN_GRID]]
    if not records:
        return None
    position = {int(record): row for row, record in enumerate(result.kept_records)}
    rows = [position[record] for record in records]
    return pictures.GridRow(
        name.replace("_", " "),
        [
            decoding.framed(decoding.decode(image), _SHOWN_PIXELS, "pad")
            for image in suite.tests[name].read_images(np.array(records))
        ],
        [classes[result.kept_labels[row]] for row in rows],
        [False] * len(rows),
        [[classes[index] for index in result.kept_predictions[row]] for row in rows],
        [result.kept_scores[row] for row in rows],
    )
