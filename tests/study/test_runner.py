"""The runner on tiny runs: through the real stages, passed over when finished, gone on with when cut short."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from basic_tf.data.examples import serialize_example
from basic_tf.data.features import FeatureBatches
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.memory import InMemorySource
from basic_tf.data.subset import Subset
from basic_tf.monitoring.metrics_log import read_metrics
from basic_tf.parallel import strategies
from basic_tf.training import preemption
from tests import tiny_data
from tests.contrastive.tiny_dual_encoder import TOKENS, VOCABULARY, tiny_model
from tools.study import gaps, plan, runner, store

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_runs_are_made_once_and_described(tmp_path, monkeypatch):
    data, folder = tiny_data.make(str(tmp_path / "data")), str(tmp_path / "study")
    bindings = (
        f"TRAIN = '{data}/train.json'", f"MODEL = '{data}/tokenizer.model'", f"EVAL = '{data}'",
        "Recipe.stages = [@contrastive/Stage()]", "contrastive/Stage.warm_start = None",
    )  # fmt: skip
    specs = [
        plan.RunSpec(f"x/seed{seed}", ("a",), 1.0, "tests/training/tiny.gin", bindings, seed)
        for seed in (0, 1)
    ]
    specs.append(plan.RunSpec("later", ("a",), 1.0, "tests/training/tiny.gin", bindings, needs="never"))
    monkeypatch.setattr(plan, "runs", lambda found, folder: (specs, 3))
    monkeypatch.chdir(ROOT)
    lines = []
    runtime = strategies.create("one_device")
    assert runner.run_all(folder, runtime, 60.0, "x/seed0", lines.append)
    assert list(store.finished(folder)) == ["x/seed0"]
    assert runner.run_all(folder, runtime, 60.0, None, lines.append)
    found = store.finished(folder)
    assert found.keys() == {"x/seed0", "x/seed1"}
    assert "left out: later (it needs never)" in lines
    for name, one in found.items():
        metrics = read_metrics(f"{folder}/{name}/contrastive/metrics.jsonl")
        evaluation = next(line for line in metrics if line["kind"] == "evaluation")
        assert (
            one["figures"]["zero_shot/in_distribution/top1"] == evaluation["zero_shot/in_distribution/top1"]
        )
        assert one["bindings"] == list(bindings) and one["seed"] == int(name[-1])
        assert one["stages"]["contrastive"]["losses"]["6"] == one["figures"]["loss"]
    assert found["x/seed0"]["figures"]["loss"] != found["x/seed1"]["figures"]["loss"]
    before = {name: os.stat(f"{folder}/{name}/study.json").st_mtime_ns for name in found}
    assert runner.run_all(folder, runtime, 60.0, None, lines.append)
    assert before == {name: os.stat(f"{folder}/{name}/study.json").st_mtime_ns for name in found}
    # Another process, with train.py itself, gives the same losses.
    flags = [f"--gin_param={binding}" for binding in bindings]
    done = subprocess.run(
        [sys.executable, "-m", "basic_tf.train", "--gin_file=tests/training/tiny.gin", "--mode=train", "--seed=1",
         f"--model_dir={tmp_path}/alone", *flags],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = read_metrics(f"{tmp_path}/alone/contrastive/metrics.jsonl")
    losses = {str(line["step"]): line["loss"] for line in alone if line["kind"] == "train"}
    assert losses == found["x/seed1"]["stages"]["contrastive"]["losses"]


def test_processes_share_the_runs(tmp_path):
    folder = str(tmp_path)
    specs = [plan.RunSpec(name, ("a",), 1.0) for name in ("x/one", "x/two")]
    with runner._claimed(specs, folder) as first:
        assert first.name == "x/one"
        with runner._claimed(specs, folder) as second:
            assert second.name == "x/two"
            with runner._claimed(specs, folder) as third:
                assert third is None
        with runner._claimed(specs, folder) as again:  # its process has left it unfinished
            assert again.name == "x/two"
    (tmp_path / "x" / "one" / store.STUDY).write_text("{}")  # finished since `specs` were listed
    with runner._claimed(specs, folder) as left:
        assert left.name == "x/two"


def test_a_piece_ends_by_its_own_time():
    """Suspended time would be one long tick: it counts as a short one."""
    piece = runner.Piece(0.05, tick=0.01)
    piece.stop = preemption.StopRequest()
    piece.start()
    deadline = time.monotonic() + 20
    while piece.stop.requested is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert piece.stop.requested == runner._TIME_IS_UP and piece.seconds > 0.05


class Ids:
    """A tokenizer: token ids out of the text's own letters."""

    length = TOKENS

    def __call__(self, texts):
        import tensorflow as tf

        rows = [
            [1 + ord(letter) % (VOCABULARY - 1) for letter in text.ljust(TOKENS)[:TOKENS]] for text in texts
        ]
        return tf.constant(rows, tf.int32)


def test_gaps_are_those_of_held_out_records(monkeypatch):
    monkeypatch.setattr(gaps, "PAIRS", 24)
    monkeypatch.setattr(gaps, "POOL", 12)
    rng = np.random.default_rng()
    model = tiny_model(dtype="float32")
    model.build()
    width, facts = (
        model.image_tower.output_width,
        {"features": {"views": 2, "width": model.image_tower.output_width}},
    )
    examples = [
        serialize_example(
            rng.normal(size=(2, width)).astype(np.float16).tobytes(), [f"{i} b", f"{i}"], [], str(i)
        )
        for i in range(60)
    ]
    source = InMemorySource(examples, facts)

    def batches(stop):
        return FeatureBatches(Subset(source, 0.0, stop), Ids(), ImageAugmentation(8), 6, 0)

    figures = gaps.gap_figures(model, batches(plan.TRAINED))
    assert figures["gap/reference_pool"] == pytest.approx(
        figures["gap/test_pool"] - figures["gap/train_pool"]
    )
    assert figures["gap/same_estimator"] == pytest.approx(
        figures["gap/test_batch"] - figures["gap/train_batch"]
    )
    assert figures["gap/train_objective"] == pytest.approx(
        figures["gap/test_pool"] - figures["gap/train_batch"]
    )
    read = {
        int(example) for example in np.concatenate([s.records for s in (Subset(source, plan.TRAINED, 1.0),)])
    }
    assert set(source.reads) >= read
    images, texts = gaps.embedded(model, batches(0.5), 9, np.random.default_rng(3))
    again = np.random.default_rng(3)
    usable = Subset(source, 0.0, 0.5)
    rows = again.choice(np.arange(usable.count), 9)
    by_hand = batches(0.5).features[rows, 0].astype(np.float32)
    np.testing.assert_allclose(images, model.project_image(by_hand).numpy(), rtol=1e-6)
    chosen = [batches(0.5).record_texts[r].captions[again.integers(2)] for r in rows]
    np.testing.assert_allclose(texts, model.encode_text(Ids()(chosen)).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="held out"):
        gaps.gap_figures(model, batches(0.9))


def test_a_study_json_that_is_being_written_is_none(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.json.new").write_text("{")
    assert store.finished(str(tmp_path)) == {}
    (tmp_path / "a" / "study.json").write_text(json.dumps({"name": "a"}))
    assert store.figures_of(store.finished(str(tmp_path))) == {"a": {}}
