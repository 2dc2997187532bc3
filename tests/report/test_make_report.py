"""Documents whose tables come from runs: what is written by hand stays, what is generated follows the JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_tf.evaluation.suite import HELD_OUT_STYLES
from tools import make_report
from tools.report import blocks, document
from tools.report.runs import MissingError, Run

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("in_distribution", *HELD_OUT_STYLES, "held_out_concepts", "held_out_concepts_described")


def write_run(folder, rng, stages=("pretrain", "contrastive", "finetune")):
    """A run folder in the format of basic_tf.train and basic_tf.evaluate; returns its results."""
    folder.mkdir(parents=True)
    results = {
        "zero_shot": {
            name: {
                "top1": rng.random(),
                "top5": rng.random(),
                "mean_per_class": rng.random(),
                "standard_error": 0.1 * rng.random(),
                "examples": int(rng.integers(100, 5000)),
                "classes": 200,
            }
            for name in TESTS
        },
        "summary": {
            "held_out_styles_mean_top1": rng.random(),
            "held_out_styles_mean_top1_standard_error": 0.1 * rng.random(),
            "held_out_styles": list(HELD_OUT_STYLES),
        },
        "retrieval": {
            direction: {f"R@{k}": rng.random() for k in (1, 5, 10)} | {"queries": 77, "candidates": 1234}
            for direction in ("image_to_text", "text_to_image")
        },
        "provenance": {"model": str(folder), "stage": stages[-1], "step": 600, "templates": ["{}"]},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "versions.json").write_text(json.dumps({"revision": "abc123", "options": {"seed": 5}}))
    order = ", ".join(f"@{name}/Stage()" for name in stages)
    (folder / "config.gin").write_text(f"x/Stage.y = 3\nRecipe.stages = [{order}]\nz.a = @finetune/Stage\n")
    for number, name in enumerate(stages):
        (folder / name).mkdir()
        lines = [
            {"step": 20, "kind": "train", "loss": 3.0},
            {"step": 40, "kind": "train", "loss": 2.0, "pairs_per_second": 100.0, "training_seconds": 60.0},
            {"step": 60, "kind": "train", "loss": 1.0, "pairs_per_second": 300.0, "training_seconds": 125.0},
            {"step": 80, "kind": "train", "loss": 1.0, "pairs_per_second": 250.0, "training_seconds": 185.0},
        ]
        if name != "pretrain":
            lines += [
                {"step": step, "kind": "evaluation", "zero_shot/openmoji/top1": (step + number) / 1000}
                for step in (40, 80)
            ]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return results


def cells(text, first):
    """The cells of the table row whose first cell begins so."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def percent(value):
    return f"{100 * value:.1f}"


@pytest.fixture
def rng():
    return np.random.default_rng()


def test_the_zero_shot_part(rng, tmp_path):
    results = write_run(tmp_path / "run", rng)
    text = blocks.zero_shot([str(tmp_path / "run")], blocks.Charts(str(tmp_path / "demo.md")))
    for name in TESTS:
        entry = results["zero_shot"][name]
        row = cells(text, f"{name}:" if name in blocks.TITLES else f"{name} ")
        assert row[1] == f"{percent(entry['top1'])} ± {percent(entry['standard_error'])}"
        assert row[2:5] == [percent(entry["top5"]), percent(entry["mean_per_class"]), "0.5"]
        assert row[5:] == [f"{entry['examples']:,}", "200"]
    summary = results["summary"]
    mean = f"{percent(summary['held_out_styles_mean_top1'])} ± "
    assert f"**{mean}{percent(summary['held_out_styles_mean_top1_standard_error'])} %**" in text
    assert "stage finetune, step 600, revision abc123, seed 5" in text
    with Image.open(tmp_path / "demo" / "run_zero_shot.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 10
    assert "](demo/run_zero_shot.png)" in text


def test_stages_come_in_the_order_of_the_recipe(rng, tmp_path):
    write_run(tmp_path / "run", rng, stages=("pretrain", "zeta", "alpha"))
    charts = blocks.Charts(str(tmp_path / "demo.md"))
    text = blocks.stages([str(tmp_path / "run")], charts)
    assert cells(text, "test") == ["test", "zeta, step 80", "alpha, step 80"]
    assert cells(text, "openmoji")[1:] == [percent(0.081), percent(0.082)]
    training = blocks.training([str(tmp_path / "run")], charts)
    assert cells(training, "zeta") == ["zeta", "80", "250 pairs/s", "–", "–", "3:05"]


def test_ablations_name_what_is_missing(rng, tmp_path):
    folders = [str(tmp_path / name) for name in ("demo", "gone", "without")]
    first = write_run(tmp_path / "demo", rng)
    last = write_run(tmp_path / "without", rng, stages=("contrastive", "finetune"))
    charts = blocks.Charts(str(tmp_path / "demo.md"))
    text = blocks.ablations(folders, charts)
    assert cells(text, "test, %") == ["test, %", "demo", "without"]
    assert "gone`" in text.splitlines()[-1] and "Not run yet" in text
    for content, column in ((first, 1), (last, 2)):
        entry = content["zero_shot"]["fxemoji"]
        expected = f"{percent(entry['top1'])} ± {percent(entry['standard_error'])}"
        assert cells(text, "fxemoji")[column] == expected
        described = content["zero_shot"]["held_out_concepts_described"]["top5"]
        assert cells(text, "held_out_concepts_described")[column] == percent(described)
        assert cells(text, "text to image")[column] == percent(content["retrieval"]["text_to_image"]["R@5"])
        mean = content["summary"]["held_out_styles_mean_top1"]
        assert cells(text, "**mean of")[column].startswith(f"**{percent(mean)} ± ")
    assert cells(text, "training time")[1:] == ["9:15", "6:10"]
    assert (tmp_path / "demo" / "ablations.png").exists()
    with pytest.raises(MissingError, match="none of"):
        blocks.ablations([str(tmp_path / "x"), str(tmp_path / "y")], charts)


def test_robustness_over_all_checkpoints(tmp_path):
    """Checkpoints on a known line in logits; a second run lies above it by a known distance."""
    slope, intercept = 0.8, -0.5

    def shift(inside, above=0.0):
        return 1 / (1 + np.exp(-(slope * np.log(inside / (1 - inside)) + intercept + above)))

    for name, above in (("demo", 0.0), ("other", 0.4)):
        (tmp_path / name / "finetune").mkdir(parents=True)
        lines = [
            {
                "step": step,
                "kind": "evaluation",
                "zero_shot/in_distribution/top1": inside,
                "zero_shot/held_out_styles_mean_top1": shift(inside, above),
            }
            for step, inside in ((10, 0.2), (20, 0.5), (30, 0.8))
        ]
        lines.append({"step": 40, "kind": "evaluation", "zero_shot/in_distribution/top1": 1.0})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "finetune" / "metrics.jsonl").write_text(text)
    charts = blocks.Charts(str(tmp_path / "doc.md"))
    text = blocks.KINDS["robustness"]([str(tmp_path / "demo"), str(tmp_path / "other")], charts)
    assert "logit(shift) = 0.80 logit(in) -0.50" in text
    rows = [line for line in text.splitlines() if line.startswith("| other")]
    assert len(rows) == 3
    middle = [cell.strip() for cell in rows[1].strip("|").split("|")]
    assert middle[1:4] == ["20", "50.0", percent(shift(0.5, 0.4))]
    assert (
        middle[4] == percent(0.5 - shift(0.5, 0.4))
        and middle[5] == f"{100 * (shift(0.5, 0.4) - shift(0.5)):+.1f}"
    )
    assert all("+0.0" in line or "-0.0" in line for line in text.splitlines() if line.startswith("| demo"))
    assert (tmp_path / "doc" / "robustness.png").exists()


def test_the_curve_between_two_models(rng, tmp_path):
    found = {alpha: write_run(tmp_path / "between" / f"alpha-{alpha:.2f}", rng) for alpha in (1.0, 0.0, 0.25)}
    (tmp_path / "between" / "alpha-0.50").mkdir()  # not evaluated
    charts = blocks.Charts(str(tmp_path / "doc.md"))
    text = blocks.KINDS["interpolation"]([str(tmp_path / "between")], charts)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["0", "0.25", "1"]
    for alpha, results in found.items():
        row, tests, summary = cells(text, f"{alpha:g} "), results["zero_shot"], results["summary"]
        assert row[1].startswith(f"{percent(tests['in_distribution']['top1'])} ± ")
        assert row[2].startswith(f"{percent(summary['held_out_styles_mean_top1'])} ± ")
        assert row[3:5] == [
            percent(tests[name]["top5"]) for name in ("held_out_concepts", "held_out_concepts_described")
        ]
        assert row[5:] == [percent(of_direction["R@5"]) for of_direction in results["retrieval"].values()]
    assert (tmp_path / "doc" / "interpolation.png").exists()
    with pytest.raises(MissingError, match="evaluate the folders"):
        blocks.KINDS["interpolation"]([str(tmp_path)], charts)


def test_runs_that_are_not_whole(tmp_path):
    with pytest.raises(MissingError, match="no run folder"):
        Run(str(tmp_path / "none"))
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingError, match=r"there is no .*results\.json"):
        Run(str(tmp_path / "run")).results()
    (tmp_path / "run" / "results.json").write_text('{"zero_shot": {')
    with pytest.raises(MissingError, match="is no JSON"):
        Run(str(tmp_path / "run")).results()
    (tmp_path / "run" / "results.json").write_text('{"zero_shot": {}}')
    with pytest.raises(MissingError, match="has no 'summary'"):
        Run(str(tmp_path / "run")).results()


TEXT = "# A\n\n<!-- generated: one -->\nold\n<!-- end -->\n\nby hand\n<!-- generated: two a b/c -->\n<!-- end -->\ntail\n"


def test_only_the_parts_between_markers_change():
    seen = []

    def make(kind):
        return lambda runs: seen.append((kind, list(runs))) or f"new {kind}\n"

    made, missing = document.regenerate(TEXT, "docs/results/x.md", {"one": make("one"), "two": make("two")})
    assert seen == [("one", ["runs/x"]), ("two", ["a", "b/c"])] and not missing
    assert made == TEXT.replace("old", "new one").replace("c -->\n", "c -->\nnew two\n")
    again, _ = document.regenerate(made, "docs/results/x.md", {"one": make("one"), "two": make("two")})
    assert again == made


def test_a_part_without_its_run_stays():
    def missing(runs):
        raise MissingError("no run")

    made, lines = document.regenerate(TEXT, "x.md", {"one": missing, "two": lambda runs: "new"})
    assert "old" in made and "new" in made
    assert lines == ["x.md:3: one stays as it was: no run"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<!-- generated: one -->\nx\n", "x.md:2: .*no line `<!-- end -->`"),
        ("<!-- generated: one -->\n<!-- generated: one -->\n<!-- end -->\n", "x.md:1: .*no line"),
        ("<!-- generated: three -->\n<!-- end -->\n", "x.md:1: no kind 'three'; there are one"),
        ("a\n\n<!-- end -->\n", "x.md:3: .*is no marker"),
        ("a <!-- generated: one -->\n<!-- end -->\n", "x.md:1: .*is no marker"),
        ("<!-- generated one -->\n<!-- end -->\n", "x.md:1: .*is no marker"),
    ],
)
def test_wrong_markers_are_errors(text, message):
    with pytest.raises(ValueError, match=message):
        document.regenerate(text, "x.md", {"one": lambda runs: "new"})


def test_the_tool(rng, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs" / "demo", rng)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "demo.md"
    kinds = [
        f"<!-- generated: {kind} -->\n<!-- end -->\n"
        for kind in ("zero_shot", "retrieval", "training", "stages")
    ]
    path.write_text("by hand\n" + "".join(kinds))
    assert make_report.update(["demo.md"], check=True) == 1
    assert path.read_text().count("\n") == 9 and not (tmp_path / "demo").exists()
    assert make_report.update(["demo.md"]) == 0
    written, chart = path.read_text(), (tmp_path / "demo" / "demo_zero_shot.png").read_bytes()
    assert written.startswith("by hand\n") and cells(written, "image to text")[4:] == ["77", "1,234"]
    assert make_report.update(["demo.md"]) == 0
    assert path.read_text() == written and (tmp_path / "demo" / "demo_zero_shot.png").read_bytes() == chart
    assert make_report.update(["demo.md"], check=True) == 0
    assert capsys.readouterr().out.endswith("demo.md is up to date\n")
    path.write_text("<!-- generated: chaos runs/chaos -->\nnot yet\n<!-- end -->\n")
    assert make_report.update(["demo.md"]) == 1
    said = capsys.readouterr().err
    assert said == "make_report: demo.md:1: chaos stays as it was: there is no runs/chaos/chaos.json\n"
    assert make_report.update(["none.md"]) == 2


def test_shipped_documents_have_sound_markers():
    for path in (ROOT / "docs" / "results").glob("*.md"):
        document.regenerate(path.read_text(), str(path), dict.fromkeys(blocks.KINDS, lambda runs: "new"))
