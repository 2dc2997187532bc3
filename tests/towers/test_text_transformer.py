import numpy as np
import pytest

from basic_tf.towers.text_transformer import TextTransformer
from tests.towers import tower_oracle as oracle
from tests.towers.tower_contract import assert_tower_contract, randomize, value_and_gradients


def small(**changes):
    arguments = {"vocabulary_size": 23, "length": 9, "width": 12, "layers": 2, "heads": 3, **changes}
    return TextTransformer(**arguments)


def texts(rows=6, length=7, seed=0):
    ids = np.random.default_rng(seed).integers(1, 23, (rows, length)).astype(np.int32)
    for row in range(rows):
        ids[row, 1 + row % length :] = 0
    return ids


@pytest.mark.parametrize(
    "variant, parameters, gmacs",
    [("basic_s", 108.41, 4.9), ("basic_m", 183.99, 9.8), ("basic_l", 669.97, 38.9)],
)
def test_counts_of_the_paper(variant, parameters, gmacs):
    tower = TextTransformer(variant)
    assert round(sum(s.size for s in tower.specs()) / 1e6, 2) == parameters and not tower.weights
    assert round(sum(tower.multiply_adds().values()) / 1e9, 1) == gmacs


def test_contract():
    def make(dtype, remat):
        return small(dropout=0.1, stochastic_depth=0.5, dtype=dtype, remat=remat)

    unreached = {f"block{i}/attention/key/bias" for i in range(2)}  # softmax is blind to it
    assert_tower_contract(make, texts(), unreached=unreached)


def test_against_numpy():
    tower = small(dtype="float64")
    p = randomize(tower)
    ids = texts()
    np.testing.assert_allclose(tower(ids).numpy(), oracle.text_tower(ids, p, 2, 3), rtol=1e-10, atol=1e-11)


def test_padding_changes_nothing():
    tower = small(dtype="float64")
    randomize(tower)
    ids = texts(4, 5)
    padded = np.pad(ids, ((0, 0), (0, 3)))
    np.testing.assert_allclose(tower(ids).numpy(), tower(padded).numpy(), rtol=1e-10)


def test_a_text_of_padding_alone_is_finite_forward_and_backward():
    for dtype in ("float32", "mixed_bfloat16"):
        tower = small(dtype=dtype)
        ids = texts(3)
        ids[1] = 0
        features, _, gradients = value_and_gradients(tower, ids, None)
        assert np.isfinite(features).all() and (features[1] == 0).all()
        assert all(np.isfinite(g.numpy()).all() for g in gradients.values())


def test_order_matters():
    tower = small()
    randomize(tower)
    assert np.abs(tower(np.array([[3, 5, 7]])).numpy() - tower(np.array([[7, 5, 3]])).numpy()).max() > 1e-3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"variant": "basic_xl"}, "basic_xl.*expected"),
        ({"heads": 5}, "no multiple of 5 heads"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize(
    "ids", [np.zeros((2, 10), np.int32), np.zeros((2, 5), np.float32), np.zeros(5, np.int32)]
)
def test_bad_ids_are_named(ids):
    with pytest.raises(ValueError, match="T at most 9"):
        small().forward(ids)


def test_keras_saves_weights_and_refuses_a_configuration(tmp_path):
    """What Keras would write down by itself are the defaults of the arguments: nobody could load the file."""
    tower, ids = small(), texts()
    features = tower(ids).numpy()
    tower.summary(print_fn=lambda *_, **__: None)
    tower.save_weights(tmp_path / "tower.weights.h5")
    other = small(seed=1)
    other.build()
    other.load_weights(tmp_path / "tower.weights.h5")
    np.testing.assert_array_equal(other(ids).numpy(), features)
    with pytest.raises(NotImplementedError, match=r"save_weights .* TextTransformer .* basic_tf\.export"):
        tower.save(tmp_path / "tower.keras")
