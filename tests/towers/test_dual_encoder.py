import math

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_table import CoAtNetTable
from basic_tf.towers.dual_encoder import DualEncoder
from basic_tf.towers.text_transformer import TextTransformer
from tests.towers.tower_contract import noise_for, randomize, relative_difference

TABLE = CoAtNetTable((1, 8), (("mbconv", 1, 8), ("attention", 1, 16)), 8)


def build(dtype="float64", batch_norm="ghost", **arguments):
    image = CoAtNet(
        TABLE, image_size=16, batch_norm=batch_norm, ghost_size=2, stochastic_depth=0.3, dtype=dtype
    )
    text = TextTransformer(
        vocabulary_size=20, length=6, width=12, layers=1, heads=2, dropout=0.1, dtype=dtype, seed=1
    )
    return DualEncoder(image, text, **{"embedding_dim": 10, **arguments})


def pairs(rows=4):
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8)
    return pictures, generator.integers(0, 20, (rows, 6)).astype(np.int32)


def test_specs_parameters_and_variables_are_one():
    model = build()
    specs = model.specs()
    assert not model.weights
    parameters = model.parameters()
    assert list(parameters) == [s.path for s in specs]
    assert {"image_projection/kernel", "text_projection/kernel", "log_inverse_temperature"} < set(parameters)
    for spec in specs:
        assert tuple(parameters[spec.path].shape) == spec.shape
    assert {id(v) for v in model.variables} == {id(v) for v in parameters.values()}
    assert {id(v) for v in model.trainable_variables} == {
        id(parameters[s.path]) for s in specs if s.trainable
    }
    assert [id(v) for v in model.statistic_variables] == [
        id(parameters[s.path]) for s in specs if not s.trainable
    ]
    assert float(model.log_inverse_temperature.value) == pytest.approx(-math.log(0.07))


def test_embeddings_are_projected_unit_rows():
    model = build()
    randomize(model)
    pictures, ids = pairs()
    features = model.text_tower(ids).numpy() @ model.parameters()["text_projection/kernel"].numpy()
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_text(ids).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(model.encode_image(pictures).numpy(), axis=1), 1.0, rtol=1e-12)
    images, texts = model((pictures, ids))
    np.testing.assert_array_equal(images.numpy(), model.encode_image(pictures).numpy())
    np.testing.assert_array_equal(texts.numpy(), model.encode_text(ids).numpy())


def test_a_microbatch_gives_the_rows_of_the_batch():
    model = build()
    randomize(model)
    pictures, ids = pairs()
    images, statistics = model.image_embeddings(pictures, True, noise_for(4))
    texts, none = model.text_embeddings(ids, True, noise_for(4))
    assert none == [] and len(statistics) == len(model.statistic_variables) == 6
    part = model.image_embeddings(pictures[2:], True, noise_for(2, first=2))[0]  # ghost groups of 2
    assert relative_difference(part.numpy(), images.numpy()[2:]) < 1e-12
    part = model.text_embeddings(ids[1:], True, noise_for(3, first=1))[0]
    assert relative_difference(part.numpy(), texts.numpy()[1:]) < 1e-12


def test_align_style_projects_the_text_alone():
    model = build(image_projection=False, embedding_dim=16)
    assert "image_projection/kernel" not in model.parameters()
    assert model.parameters()["text_projection/kernel"].shape == (12, 16)
    assert model.encode_image(pairs()[0]).shape == (4, 16)
    with pytest.raises(ValueError, match="set embedding_dim to 16"):
        build(image_projection=False)
    with pytest.raises(ValueError, match="initial_temperature"):
        build(initial_temperature=0.0)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_low_precision_still_gives_float32_unit_rows_and_temperature(dtype):
    model = build(dtype)
    pictures, ids = pairs()
    for rows in (model.encode_image(pictures), model.encode_text(ids)):
        assert rows.dtype == tf.float32
        np.testing.assert_allclose(np.linalg.norm(rows.numpy(), axis=1), 1.0, rtol=1e-5)
    assert model.log_inverse_temperature.dtype == "float32"


def test_frozen_keras_layers_leave_the_trainable_variables():
    model = build()
    model.build()
    model.image_tower.trainable = False
    assert all("coatnet" not in v.path for v in model.trainable_variables)
