"""A data folder from its records to results.json, with an encoder that knows what a colour is called."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_tf.data.records import RecordWriter, serialize_example
from basic_tf.evaluation import analysis_report, datasets, pictures, report, suite
from basic_tf.evaluation.encoder import SavedModelEncoder

ROOT = Path(__file__).resolve().parents[2]

COLOURS = {
    "red": (250, 10, 10),
    "green": (10, 200, 10),
    "blue": (10, 10, 250),
    "yellow": (250, 250, 10),
    "pink": (250, 120, 250),
    "cyan": (10, 240, 250),
    "orange": (250, 130, 0),
}
NAMES = tuple(COLOURS)


class ColourEncoder:
    """Embeds a picture by its mean colour and a text by the colour it names; "tomato" it knows by description
    only.
    """

    embedding_dim = 4
    image_size = 16
    temperature = 0.1

    def __init__(self):
        self.texts = 0

    @staticmethod
    def _row(colour):
        row = np.array([*(np.asarray(colour, np.float64) / 127.5 - 1), 0.5])
        return row / np.linalg.norm(row)

    def encode_image_bytes(self, images):
        means = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).mean((0, 1)) for image in images]
        return np.stack([self._row(mean) for mean in means]).astype(np.float32)

    def encode_text(self, texts):
        self.texts += len(texts)
        found = [next((COLOURS[name] for name in NAMES if name in text), (127, 127, 127)) for text in texts]
        return np.stack([self._row(colour) for colour in found]).astype(np.float32)


def picture(colour, size=20):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size + 3), tuple(colour)).save(buffer, "PNG")
    return buffer.getvalue()


def write_test(folder, name, shown, classes=NAMES):
    """shown: (label, name of the colour that the picture really has)."""
    with RecordWriter(str(folder), f"test_{name}") as writer:
        for label, colour in shown:
            writer.write(serialize_example(picture(COLOURS[colour]), [colour], [label], f"{name}/{label}"))
        writer.finish(classes=list(classes), source="made up")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    for name, wrong in (
        ("in_distribution", 0),
        ("openmoji", 2),
        ("emojione-v1", 3),
        ("fxemoji", 1),
        ("sketch", 4),
    ):
        shown = [(label, NAMES[(label + (label < wrong)) % 7]) for label in range(7)]
        write_test(folder, name, [shown[i] for i in rng.permutation(7)])
    described = [
        {"name": "tomato", "described": ["a red fruit", "red"]},
        {"name": "sky", "described": "the blue above"},
    ]
    write_test(folder, "held_out_concepts", [(0, "red"), (1, "blue"), (1, "blue")], described)
    with RecordWriter(str(folder), "retrieval") as writer:
        for name in NAMES:
            writer.write(serialize_example(picture(COLOURS[name]), [name, f"something {name}", "grey"]))
        writer.finish(source="made up")
    (folder / "train.json").write_text("{}")
    return str(folder)


@pytest.fixture(scope="module")
def evaluated(data_dir):
    lines = []
    encoder = ColourEncoder()
    result = suite.run(encoder, data_dir, ("{}", "a picture of a {}"), say=lines.append)
    return result, lines, encoder


def test_every_test_of_the_folder(evaluated):
    result, lines, _ = evaluated
    assert list(result.zero_shot) == [
        "in_distribution",
        "openmoji",
        "emojione-v1",
        "fxemoji",
        "sketch",
        "held_out_concepts",
        "held_out_concepts_described",
    ]
    right = {name: int(entry.top1_of.sum()) for name, entry in result.zero_shot.items()}
    assert right["in_distribution"] == 7
    assert (right["openmoji"], right["emojione-v1"], right["fxemoji"], right["sketch"]) == (5, 4, 6, 3)
    # By name alone both concepts are unknown and equal: the lower one wins every tie.
    assert (right["held_out_concepts"], right["held_out_concepts_described"]) == (1, 3)
    assert len(lines) == 8 and lines[1].startswith("openmoji: top-1 71.4 %, top-5 ")


def test_summary(evaluated):
    summary = evaluated[0].summary()
    assert summary["held_out_styles_mean_top1"] == pytest.approx((5 + 4 + 6) / 21)
    assert 0.05 < summary["held_out_styles_mean_top1_standard_error"] < 0.2


def test_retrieval(evaluated):
    recalls = evaluated[0].retrieval
    assert recalls["image_to_text"]["R@1"] == 1.0
    # 14 captions name their colour; of the 7 that say "grey" one picture is first, five are among the first
    # five.
    assert recalls["text_to_image"]["R@1"] == pytest.approx(15 / 21)
    assert recalls["text_to_image"]["R@5"] == pytest.approx(19 / 21)
    assert recalls["text_to_image"]["R@10"] == 1.0


def test_tests_that_share_classes_share_weights(evaluated, data_dir):
    assert evaluated[2].texts == 7 * 2 + 2 * 2 + 3 + 7 * 3  # colours once; names; descriptions; captions


def test_tests_of_several_folders(data_dir, tmp_path):
    for folder, name in (("a", "birds"), ("b", "fish"), ("c", "birds")):
        (tmp_path / folder).mkdir()
        write_test(tmp_path / folder, name, [(0, "red"), (1, "blue")])
    both = f"{tmp_path}/a, {tmp_path}/b,{data_dir}"
    assert set(datasets.test_names(both)) == {"birds", "fish", *datasets.test_names(data_dir)}
    result = suite.run(ColourEncoder(), both, ("{}",), tests=["birds", "fish", "openmoji"])
    assert list(result.zero_shot) == ["birds", "fish", "openmoji"] and result.retrieval is not None
    with pytest.raises(ValueError, match=r"two tests are called birds: .*/a/.* and .*/c/"):
        datasets.test_names(f"{tmp_path}/a,{tmp_path}/c")
    with pytest.raises(FileNotFoundError, match="/nowhere is not a folder"):
        datasets.open_test(f"{tmp_path}/a,{tmp_path}/nowhere", "birds")
    assert datasets.open_retrieval(f"{tmp_path}/a") is None


def test_results_files(evaluated, data_dir, tmp_path):
    provenance = {"model": "runs/x", "step": 5, "versions": {"tensorflow": "2.20.0"}}
    content = report.write(evaluated[0], str(tmp_path), provenance)
    first = (tmp_path / "results.json").read_bytes()
    assert json.loads(first) == content
    entry = content["zero_shot"]["openmoji"]
    assert set(entry) == {"top1", "top5", "mean_per_class", "standard_error", "examples", "classes"}
    assert (entry["top1"], entry["examples"], entry["classes"]) == (pytest.approx(5 / 7), 7, 7)
    assert content["provenance"]["templates"] == ["{}", "a picture of a {}"]
    text = (tmp_path / "results.md").read_text()
    assert "**71.4 %**" in text and "| image to text | 100.0 | 100.0 | 100.0 | 7 | 21 |" in text
    for name in ("accuracy.png", "predictions.png"):
        with Image.open(tmp_path / name) as figure:
            assert min(figure.size) > 400
            assert np.asarray(figure.convert("L")).std() > 10
        assert f"({name})" in text
    report.write(suite.run(ColourEncoder(), data_dir, ("{}", "a picture of a {}")), str(tmp_path), provenance)
    assert (tmp_path / "results.json").read_bytes() == first  # nothing in it depends on the clock


def test_chosen_tests_and_subsets(data_dir):
    subset = np.array([True] * 7)
    result = suite.run(ColourEncoder(), data_dir, ("{}",), tests=["sketch"], subsets={"sketch": subset})
    assert list(result.zero_shot) == ["sketch"] and result.summary() == {}
    with pytest.raises(
        FileNotFoundError, match="there are: emojione-v1, fxemoji, held_out_concepts, in_dist"
    ):
        suite.run(ColourEncoder(), data_dir, ("{}",), tests=["imagenet"])


def test_folders_without_tests(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no test"):
        suite.run(ColourEncoder(), str(tmp_path), ("{}",))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        suite.run(ColourEncoder(), str(tmp_path / "none"), ("{}",))


def write_retrieval(folder, records):
    """records: (encoded picture, captions)."""
    with RecordWriter(str(folder), "retrieval") as writer:
        for image, captions in records:
            writer.write(serialize_example(image, captions))
        writer.finish(source="made up")


def test_a_folder_with_retrieval_alone(tmp_path):
    write_retrieval(tmp_path, [(picture(COLOURS[name]), [name]) for name in NAMES])
    result = suite.run(ColourEncoder(), str(tmp_path), ("{}",))
    assert result.retrieval["image_to_text"]["R@1"] == 1.0 and not result.zero_shot
    report.write(result, str(tmp_path / "out"), {})
    text = (tmp_path / "out" / "results.md").read_text()
    assert "## Retrieval" in text and "Zero-shot" not in text and "top-1" not in text
    with pytest.raises(FileNotFoundError, match="holds retrieval alone, and that is switched off"):
        suite.run(ColourEncoder(), str(tmp_path), ("{}",), with_retrieval=False)
    with pytest.raises(FileNotFoundError, match=r"no test 'x' .* there are: none"):
        suite.run(ColourEncoder(), str(tmp_path), ("{}",), tests=["x"])


def test_retrieval_names_the_record_that_is_wrong(tmp_path, exported):
    good = picture(COLOURS["red"])
    write_retrieval(tmp_path / "bad", [(b"GIF8 junk" if i == 70 else good, ["a cat"]) for i in range(75)])
    with pytest.raises(
        ValueError, match=r"retrieval\.json: the picture of record 70 \(9 bytes\) cannot be decoded"
    ):
        suite.run(SavedModelEncoder(exported, 8), str(tmp_path / "bad"), ("{}",))
    write_retrieval(tmp_path / "bare", [(good, [] if i == 7 else ["a cat"]) for i in range(9)])
    with pytest.raises(ValueError, match=r"retrieval\.json: record 7 has no caption"):
        suite.run(ColourEncoder(), str(tmp_path / "bare"), ("{}",))


def test_labels_are_checked(tmp_path):
    with RecordWriter(str(tmp_path), "test_two") as writer:
        writer.write(serialize_example(picture((1, 2, 3)), [], [0, 1]))
        writer.finish(classes=["a", "b"])
    with pytest.raises(ValueError, match="record 0 has 2 labels"):
        suite.run(ColourEncoder(), str(tmp_path), ("{}",))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"classes": ["a", "b"]}, (("a", "b"), None)),
        ({"label_names": ["a", "b"]}, (("a", "b"), None)),
        ({"classes": [{"name": "a", "described": "x"}, {"name": "b"}]}, (("a", "b"), None)),
        ({"classes": [{"name": "a", "described": ["x", "y"]}]}, (("a",), (("x", "y"),))),
    ],
)
def test_class_texts(metadata, expected):
    assert datasets.class_texts(metadata, "test.json") == expected


@pytest.mark.parametrize("classes", [None, [], "cat", [{"label": "a"}], [""], [3]])
def test_wrong_class_texts(classes):
    with pytest.raises(ValueError, match=r"test\.json"):
        datasets.class_texts({"classes": classes}, "test.json")


def test_damaged_records_are_left_out(tmp_path):
    write_test(tmp_path, "x", [(0, "red"), (1, "green"), (2, "blue")])
    shard = tmp_path / "test_x-00000-of-00001.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255  # inside the second record
    shard.write_bytes(bytes(data))
    result = suite.run(ColourEncoder(), str(tmp_path), ("{}",)).zero_shot["x"]
    assert result.examples == 2
    assert result.kept_records.tolist() == [0, 2]


def test_long_names_are_shortened():
    assert pictures.shortened("a very long name", 8) == "a very…"
    assert pictures.shortened("short", 8) == "short"


def test_the_binary_on_a_saved_model(data_dir, exported, tmp_path):
    """The numbers of the binary are those of the suite; missing things are one line and the exit code 2."""

    def evaluate(*arguments):
        command = [sys.executable, "-m", "basic_tf.evaluate", *arguments]
        return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = evaluate(f"--saved_model={exported}", f"--data_dir={data_dir}", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    encoder = SavedModelEncoder(exported)
    expected = suite.run(encoder, data_dir, encoder.metadata["templates"])
    assert content["zero_shot"] == {name: entry.summary() for name, entry in expected.zero_shot.items()}
    assert content["retrieval"] == expected.retrieval and content["summary"] == expected.summary()
    assert content["provenance"]["step"] == 7 and content["provenance"]["versions"]["tensorflow"]
    missing = evaluate(f"--saved_model={exported}", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}")
    assert missing.returncode == 2 and "holds no test" in missing.stderr and "Traceback" not in missing.stderr


def test_analysis_of_an_evaluation(data_dir, tmp_path):
    templates = ("{}", "a picture of a {}")
    result = suite.run(
        ColourEncoder(), data_dir, templates, with_retrieval=False, keep_embeddings=True, keep=10**9
    )
    content = analysis_report.write(result, ColourEncoder(), str(tmp_path))
    assert json.loads((tmp_path / "analysis.json").read_text()) == content
    # "emojione-v1" shows three colours under the name of the one before.
    entry = content["emojione-v1"]
    pairs = {(pair["class"], pair["taken_for"]) for pair in entry["confused"]}
    assert pairs == {(NAMES[i], NAMES[i + 1]) for i in range(3)}
    assert [row["top1"] for row in entry["per_class"]] == [0.0] * 3 + [1.0] * 4
    assert entry["templates"]["ensemble"]["value"] == pytest.approx(4 / 7)
    assert [effect["ensemble_gain"]["value"] for effect in entry["templates"]["templates"]] == [0.0, 0.0]
    # Examples come from the other tests of the same seven colours.
    assert [point["shots"] for point in entry["few_shot"]] == [1, 2, 4]
    # The canonicalisation of the evaluation is that of its analysis.
    with pytest.raises(ValueError, match="loud"):
        analysis_report.collect(dataclasses.replace(result, canonicalisation="loud"), ColourEncoder())
    assert "few_shot" not in content["held_out_concepts"] and "confused" in content["held_out_concepts"]
    text = (tmp_path / "analysis.md").read_text()
    assert "## emojione-v1" in text and f"| {NAMES[0]} | {NAMES[1]} | 1 of 1 |" in text
    with Image.open(tmp_path / "confusions.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 10


def test_few_shot_curves_know_the_classes_that_other_tests_show(tmp_path):
    """Three of seven: pictures of the others could be called nothing but wrong."""
    write_test(tmp_path, "whole", [(label, NAMES[label]) for label in range(7)])
    write_test(tmp_path, "part", [(label, NAMES[label]) for label in (1, 2, 4)])
    result = suite.run(ColourEncoder(), str(tmp_path), ("{}",), keep_embeddings=True, keep=10**9)
    content = analysis_report.collect(result, ColourEncoder())
    assert content["whole"]["few_shot_classes"] == 3 and content["part"]["few_shot_classes"] == 7
    assert content["whole"]["few_shot"][0]["accuracy"] == 1.0
    assert "Few-shot, over the 3 classes that other tests show:" in analysis_report.markdown(content)


def test_class_names_cannot_break_tables():
    row = {"class": "a|b", "examples": 2, "top1": 0.5, "top5": 1.0}
    pair = {"class": "a|b", "taken_for": "|", "count": 1, "examples": 2, "records": [0]}
    text = analysis_report.markdown({"t": {"confused": [pair], "per_class": [row]}})
    assert "| a\\|b | \\| | 1 of 2 |" in text and "| a\\|b | 2 | 50.0 | 100.0 |" in text
