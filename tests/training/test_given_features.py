"""Stage 2 on features of the frozen image tower, and the loss over each microbatch by itself."""

import json

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import configurables, runs
from basic_tf.contrastive.gradients import contrastive_gradients
from basic_tf.data.records import RecordSource, parse_example
from basic_tf.parallel import strategies
from basic_tf.randomness import step_key
from basic_tf.training import loop, preemption, stage_run
from basic_tf.training.checkpoints import CheckpointError
from basic_tf.training.stages import ConfigurationError
from basic_tf.training.tasks import Contrastive
from tests import tiny_data
from tests.contrastive.tiny_dual_encoder import random_batch, tiny_model
from tools import prepare_features


def trained_variables(model):
    return [v for path, v in model.parameters().items() if not path.startswith("image_tower/")]


def test_features_give_the_gradients_of_their_pictures():
    model = tiny_model(batch_norm="frozen", seed=int(np.random.default_rng().integers(100)))
    images, ids = random_batch(6)
    options = {"noise_key": step_key(3, 1), "variables": trained_variables(model)}
    features, _ = model.image_features(images)
    for microbatch in (None, 2):
        live = contrastive_gradients(model, images, ids, microbatch, **options)
        given = contrastive_gradients(model, features, ids, microbatch, **options)
        assert float(given.loss) == pytest.approx(float(live.loss), rel=1e-12)
        for one, other in zip(given.gradients, live.gradients):
            np.testing.assert_allclose(
                tf.convert_to_tensor(one), tf.convert_to_tensor(other), rtol=1e-9, atol=1e-13
            )
    with pytest.raises(ValueError, match="another tower's"):
        model.image_embeddings(features[:, 1:])


def test_a_loss_over_each_microbatch_is_the_mean_of_small_batches():
    model = tiny_model(batch_norm="frozen", seed=int(np.random.default_rng().integers(100)))
    images, ids = random_batch(6)
    variables, key = trained_variables(model), step_key(3, 1)
    batch = {"images": images, "token_ids": ids, "examples": tf.range(6)}
    task = Contrastive(None, lambda: model, microbatch=2, negatives="microbatch")
    found = tf.function(lambda: task.step(batch, key, variables, None), autograph=False)()
    parts = [
        contrastive_gradients(
            model,
            images[i : i + 2],
            ids[i : i + 2],
            noise_key=key,
            examples=tf.range(i, i + 2),
            variables=variables,
        )
        for i in (0, 2, 4)
    ]
    assert float(found.metrics["loss"]) == pytest.approx(np.mean([float(p.loss) for p in parts]), rel=1e-12)
    for index, gradient in enumerate(found.gradients):
        mean = np.mean([tf.convert_to_tensor(p.gradients[index]).numpy() for p in parts], 0)
        np.testing.assert_allclose(gradient, mean, rtol=1e-9, atol=1e-13)
    whole = contrastive_gradients(model, images, ids, noise_key=key, variables=variables)
    assert abs(float(whole.loss) - float(found.metrics["loss"])) > 0.1
    with pytest.raises(ValueError, match=r"needs Contrastive\.microbatch"):
        Contrastive(None, lambda: model, negatives="microbatch")


def test_features_of_a_trained_tower_train_stage_two(tmp_path):
    """Pictures -> stage 1 -> prepare_features -> stage 2 on features, through gin and the real stages."""
    data = tiny_data.make(str(tmp_path))
    bindings = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", "Duration.steps = 2"]
    runtime, options = strategies.create("one_device"), stage_run.Options(seed=1)

    def train(names, *extra):
        configurables.parse(["tests/training/tiny.gin"], [*bindings, *extra])
        runs.describe(str(tmp_path / "run"), configurables.config_text(), options)
        for stage in configurables.recipe().stages:
            if stage.name in names:
                loop.run_stage(stage, str(tmp_path / "run"), runtime, options, preemption.StopRequest())

    train(["pretrain"])
    figures = prepare_features.run(
        str(tmp_path / "run/pretrain"), f"{data}/train.json", str(tmp_path / "features"), views=3
    )
    made = RecordSource.open(figures["path"])
    assert made.count == 48 and made.metadata["label_names"] == [*tiny_data.SHAPES, *tiny_data.COLOURS]
    tower, _, _ = runs.load_image_tower(str(tmp_path / "run/pretrain"))
    first = parse_example(made.read(np.array([5]))[0])
    original = parse_example(RecordSource.open(f"{data}/train.json").read(np.array([5]))[0])
    assert (first.captions, first.id) == (original.captions, original.id)
    rows = np.frombuffer(first.image, np.float16).reshape(3, tower.output_width)
    assert not np.array_equal(rows[0], rows[1])
    extra = (
        "contrastive/Stage.batches = @FeatureBatches",
        f"FeatureBatches.source = @features/Records()\nfeatures/Records.path = '{figures['path']}'",
        "FeatureBatches.augmentation = @ImageAugmentation()",
        "FeatureBatches.tokenizer = @Tokenizer()",
    )
    (tmp_path / "run/config.gin").unlink()
    train(["contrastive"], *extra)
    line = json.loads((tmp_path / "run/contrastive/metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(line["loss"]) and line["false_negatives_per_pair"] > 0
    loaded = runs.load(str(tmp_path / "run"), "contrastive")  # a whole model: its image tower is stage 1's
    for path, variable in loaded.model.image_tower.parameters().items():
        np.testing.assert_array_equal(variable, tower.parameters()[path])
    with pytest.raises(ConfigurationError, match="need a frozen image tower"):
        configurables.parse(
            ["tests/training/tiny.gin"], [*bindings, *extra, "finetune/Stage.batches = @FeatureBatches"]
        )
        stage = configurables.recipe().stage("finetune")
        stage_run.built(stage, str(tmp_path / "x"), runtime, options)


def test_what_is_no_stage_folder_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no stage folder with a checkpoint"):
        prepare_features.run(str(tmp_path), "x.json", str(tmp_path / "out"))
