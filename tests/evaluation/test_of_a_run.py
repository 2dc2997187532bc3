"""A run folder through evaluate and export: both, and the evaluation while training, see pictures as the run's gin says."""

import io
import json
import os
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_tf import configurables, runs
from basic_tf.data.records import RecordWriter, serialize_example
from basic_tf.evaluation import prompts, suite
from basic_tf.evaluation.encoder import ModelEncoder, SavedModelEncoder
from basic_tf.serving import saved_model
from basic_tf.training import checkpoints, stage_run
from tests.evaluation import binary_process

ROOT = Path(__file__).resolve().parents[2]
SIZE = 24
VIEW = {"output_size": SIZE, "fit": "pad", "window": 0.9, "border": "reflect"}
BINDINGS = (
    "ImageAugmentation.fit = 'pad'",
    "ImageAugmentation.border = 'reflect'",
    "contrastive/ImageAugmentation.scale = (0.8, 0.9)",
    "Evaluation.templates = 'emoji'",
)


def wide_picture(rng):
    blocks = rng.integers(0, 256, (2, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(blocks, np.ones((10, 10, 1), np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    rng = np.random.default_rng(4)
    words = ["red apple", "cat", "blue house", "fish", "moon", "tree", "green car", "sun"]
    with RecordWriter(folder, "test_wide") as writer:
        for index in range(40):
            writer.write(serialize_example(wide_picture(rng), [], [index % len(words)]))
        writer.finish(classes=words)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tokenizer_file):
    """As train.py would leave it, with weights that tell pictures apart; two of its stages have checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        bindings = [f"MODEL = '{tokenizer_file}'", "TextTransformer.vocabulary_size = 96", *BINDINGS]
        configurables.parse(["tests/training/tiny.gin"], bindings)
        stage = configurables.recipe().stage("contrastive")
    finally:
        os.chdir(before)
    model = stage.task(metadata=None).model
    model.build()
    rng = np.random.default_rng(1)
    arrays = {
        f"parameters/{path}": rng.normal(0, 0.3, weight.shape).astype(np.float32)
        if len(weight.shape) > 1
        else weight.numpy()
        for path, weight in model.parameters().items()
    }
    for name in ("pretrain", "contrastive"):
        checkpoints.save(
            stage_run.checkpoint_folder(str(folder / name)), 6, arrays, {"stage": name, "seed": 0}
        )
    (folder / runs.CONFIG).write_text(configurables.config_text())
    (folder / runs.TOKENIZER).write_bytes(Path(tokenizer_file).read_bytes())
    return str(folder)


@pytest.fixture(scope="module")
def evaluated(run_folder, data_dir, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("out"))
    (tmp_path_factory.getbasetemp() / "file").touch()
    flags = [f"--model_dir={run_folder}", f"--data_dir={data_dir}", f"--output_dir={out}"]
    nowhere = [*flags[:2], f"--output_dir={tmp_path_factory.getbasetemp()}/file/x"]
    (code, _, error), failed = binary_process.run("basic_tf.evaluate", [flags, nowhere])
    assert code == 0, error
    return out, failed


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("exported") / "saved_model")
    (tmp_path_factory.getbasetemp() / "file").touch()
    nowhere = f"--output_dir={tmp_path_factory.getbasetemp()}/file/x/saved_model"
    run = f"--model_dir={run_folder}"
    (code, _, error), *failed = binary_process.run(
        "basic_tf.export", [[run, f"--output_dir={out}"], [run, nowhere], [run, "--stage=pretrain"]]
    )
    assert code == 0, error
    return out, failed


def test_a_run_knows_its_view(run_folder):
    loaded = runs.load(run_folder)
    assert (loaded.stage, loaded.image_size) == ("contrastive", SIZE)
    assert (loaded.view.fit, loaded.view.border) == ("pad", "reflect")
    assert loaded.view == loaded.view.evaluation() and loaded.view.scale == (0.9, 0.9)


def test_evaluation_sees_pictures_as_the_run_does(run_folder, data_dir, evaluated):
    evaluated, _ = evaluated
    content = json.loads((Path(evaluated) / "results.json").read_text())
    assert content["provenance"]["view"] == VIEW
    assert content["provenance"]["templates"] == list(prompts.EMOJI_TEMPLATES)
    assert "- view: output_size 24, fit pad, window 0.9" in (Path(evaluated) / "results.md").read_text()
    loaded, templates = runs.load(run_folder), content["provenance"]["templates"]

    def figures(view):
        encoder = ModelEncoder(loaded.model, loaded.tokenizer, view)
        return suite.run(encoder, data_dir, templates).zero_shot["wide"].summary()

    assert content["zero_shot"]["wide"] == figures(loaded.view) != figures(SIZE)


def test_an_export_sees_pictures_as_the_run_does(run_folder, exported):
    exported, _ = exported
    metadata = saved_model.load_metadata(exported)
    assert metadata["view"] == VIEW and metadata["templates"] == list(prompts.EMOJI_TEMPLATES)
    loaded = runs.load(run_folder)
    pictures = [wide_picture(np.random.default_rng(seed)) for seed in range(3)]
    served = SavedModelEncoder(exported, 4).encode_image_bytes(pictures)
    own, whole = (
        ModelEncoder(loaded.model, loaded.tokenizer, view, 4).encode_image_bytes(pictures)
        for view in (loaded.view, SIZE)
    )
    np.testing.assert_allclose(served, own, atol=1e-5)
    assert np.abs(served - whole).max() > 0.01


def test_evaluation_while_training_sees_pictures_as_the_run_does(run_folder, data_dir):
    loaded = runs.load(run_folder)
    run = types.SimpleNamespace(
        stage=configurables.recipe().stage("contrastive"),
        task=types.SimpleNamespace(model=loaded.model),
        batches=types.SimpleNamespace(
            tokenizer=loaded.tokenizer, augmentation=configurables.augmentation("contrastive")
        ),
        global_step=None,
        averaged_weights=None,
    )
    evaluator = configurables.Evaluation(data_dir).of(run, None)
    pictures = [wide_picture(np.random.default_rng(seed)) for seed in range(2)]
    expected = ModelEncoder(loaded.model, loaded.tokenizer, loaded.view).encode_image_bytes(pictures)
    np.testing.assert_array_equal(evaluator._encoder.encode_image_bytes(pictures), expected)


def test_folders_that_cannot_be_written_are_one_line_before_the_work(evaluated, exported):
    """TensorFlow's errors are neither ValueError nor OSError."""
    for code, out, error in (evaluated[1], exported[1][0]):
        assert code == 2 and "is not a directory" in error and error.count("\n") == 1 and out == ""


def test_a_stage_that_is_not_contrastive(exported):
    code, _, error = exported[1][1]
    assert code == 2 and "stage pretrain of" in error and "trains no text tower" in error
    assert "contrastive stages are contrastive, finetune" in error


def test_templates_are_bare_names_unless_the_run_says_so(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path, expected in (
        ("tests/training/tiny", "bare"),
        ("gin/runs/demo", "emoji"),
        ("gin/runs/pictures", "emoji"),
    ):
        configurables.parse([f"{path}.gin"], [])
        assert configurables.Evaluation().templates == expected, path
