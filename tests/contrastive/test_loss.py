import math

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.contrastive import loss as loss_module
from basic_tf.contrastive.loss import contrastive_loss, contrastive_loss_value_and_gradients
from tests.contrastive import dense_reference


def unit_rows(pairs, width, seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    images, texts = rng.normal(size=(2, pairs, width))
    texts = 0.4 * images + texts  # partners are closer than chance, as in training
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    return [tf.constant(x, dtype) for x in rows]


def in_mode(mode, function):
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def taped(function, *inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
    return [value, *tape.gradient(value, inputs)]


def assert_close(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-12)


@pytest.mark.parametrize(
    ("mode", "pairs", "tile", "scale", "smoothing"),
    [
        ("eager", 37, 5, 14.3, 0.0),
        ("eager", 37, (5, 7), 14.3, 0.1),
        ("eager", 24, (6, 8), 40.0, 0.0),
        ("eager", 1, 4, 14.3, 0.0),
        ("eager", 13, 2048, 1.0, 0.2),
        ("eager", 19, (19, 3), 99.0, 0.05),
        ("graph", 37, (5, 7), 14.3, 0.1),
        ("graph", 24, (6, 8), 40.0, 0.0),
        ("xla", 37, (5, 7), 99.0, 0.1),
    ],
)
def test_float64_equals_the_oracle(mode, pairs, tile, scale, smoothing):
    images, texts = unit_rows(pairs, 6, seed=pairs)
    log_scale = tf.constant(math.log(scale), tf.float64)

    def run():
        return taped(
            lambda *x: contrastive_loss(*x, tile=tile, label_smoothing=smoothing), images, texts, log_scale
        )

    found = in_mode(mode, run)()
    expected = dense_reference.numpy_loss_and_gradients(images, texts, log_scale, smoothing)
    assert all(x.dtype == tf.float64 for x in found)
    if pairs == 1 and not smoothing:
        assert all(np.abs(np.asarray(x)).max() < 1e-15 for x in found)
    else:
        assert_close(found, expected, 1e-13)


@pytest.mark.parametrize("scale", [1.0, 14.3, 60.0, 100.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_and_bfloat16_inputs(dtype, scale):
    images, texts = unit_rows(67, 9, seed=1, dtype=dtype)
    log_scale = tf.constant(math.log(scale), tf.float32)
    found = taped(lambda *x: contrastive_loss(*x, tile=(16, 20)), images, texts, log_scale)
    assert [x.dtype for x in found] == [tf.float32, dtype, dtype, tf.float32]
    expected = dense_reference.numpy_loss_and_gradients(
        *(tf.cast(x, tf.float64) for x in (images, texts, log_scale))
    )
    assert_close([found[0], found[3]], [expected[0], expected[3]], 2e-5)
    assert_close(
        found[1:3], expected[1:3], 2e-5 if dtype == "float32" else 4e-3
    )  # 8 bits in the result itself


def test_dense_oracles_agree():
    images, texts = unit_rows(11, 4, seed=2)
    log_scale = tf.constant(1.1, tf.float64)
    found = taped(lambda *x: dense_reference.dense_loss(*x, label_smoothing=0.1), images, texts, log_scale)
    assert_close(found, dense_reference.numpy_loss_and_gradients(images, texts, log_scale, 0.1), 1e-13)


@pytest.mark.parametrize("worst_cosine", [-1.0, 0.0])
def test_both_exponent_paths_are_exact(worst_cosine, monkeypatch):
    """At s = 100 a pair that points apart leaves the range of one offset: the maxima must be streamed."""
    images, texts = unit_rows(41, 64, seed=3, dtype="float32")
    texts = texts.numpy()
    texts[::5] = -images.numpy()[::5] if worst_cosine < 0 else texts[::5]
    log_scale = tf.constant(math.log(100.0), tf.float32)
    taken = []
    for name in ("pass_a", "pass_b"):
        original = getattr(loss_module, name)

        def spy(tiles, *arguments, original=original):
            shift = arguments[0] if len(arguments) == 1 else arguments[2]
            taken.append("stream" if shift is None else "offset")
            return original(tiles, *arguments)

        monkeypatch.setattr(loss_module, name, spy)
    found = contrastive_loss_value_and_gradients(images, texts, log_scale, tile=(7, 9))
    assert taken == (["stream"] if worst_cosine < 0 else ["offset"]) * 2
    expected = dense_reference.numpy_loss_and_gradients(images, texts, np.float64(log_scale.numpy()))
    assert_close(found[:4], expected, 2e-5)


def test_offset_is_safe_at_its_limits():
    """Sums as small and logits as large as the offset path admits: nothing underflows, nothing overflows."""
    images, texts = unit_rows(50, 8, seed=4, dtype="float32")
    texts = tf.concat([-images[:1], images[1:2], texts[2:]], 0)
    log_scale = tf.constant(math.log(62.0), tf.float32)
    found = contrastive_loss_value_and_gradients(images, texts, log_scale, tile=8)
    expected = dense_reference.numpy_loss_and_gradients(images, texts, np.float64(log_scale.numpy()))
    assert_close(found[:4], expected, 2e-5)


def test_rows_that_are_not_unit_stay_right():
    images, texts = (30.0 * x for x in unit_rows(20, 5, seed=5, dtype="float32"))
    log_scale = tf.constant(0.5, tf.float32)
    found = contrastive_loss_value_and_gradients(images, texts, log_scale, tile=6)
    expected = dense_reference.numpy_loss_and_gradients(images, texts, np.float64(log_scale.numpy()))
    assert_close(found[:4], expected, 1e-4)


def test_unknown_shapes_in_a_graph():
    spec = tf.TensorSpec([None, None], tf.float64)
    traced = tf.function(
        lambda f, g, s: contrastive_loss_value_and_gradients(f, g, s, tile=(4, 6))[:4],
        input_signature=[spec, spec, tf.TensorSpec([], tf.float64)],
    )
    for pairs in (3, 8, 17):
        images, texts = unit_rows(pairs, 5, seed=pairs)
        found = traced(images, texts, tf.constant(2.0, tf.float64))
        assert_close(found, dense_reference.numpy_loss_and_gradients(images, texts, 2.0), 1e-13)


def test_upstream_gradient_multiplies():
    images, texts = unit_rows(9, 4, seed=6)
    log_scale = tf.constant(1.0, tf.float64)
    once = taped(lambda *x: contrastive_loss(*x, tile=4), images, texts, log_scale)
    thrice = taped(lambda *x: -3.0 * contrastive_loss(*x, tile=4), images, texts, log_scale)
    assert_close(thrice, [-3.0 * x for x in once], 1e-15)


@pytest.mark.parametrize(("scale", "gradient"), [(9.99, True), (10.0, True), (10.1, False)])
def test_bound_on_the_inverse_temperature(scale, gradient):
    images, texts = unit_rows(9, 4, seed=7)
    log_scale = tf.constant(math.log(scale), tf.float64)
    found = taped(lambda *x: contrastive_loss(*x, max_inverse_temperature=10.0), images, texts, log_scale)
    bounded = min(float(log_scale), math.log(10.0))
    expected = list(dense_reference.numpy_loss_and_gradients(images, texts, bounded))
    if not gradient:
        assert float(found[3]) == 0.0
        expected[3] = found[3]
    assert_close(found, expected, 1e-13)


def test_metrics():
    images, texts = unit_rows(31, 6, seed=8)
    found = contrastive_loss_value_and_gradients(
        images, texts, tf.constant(2.0, tf.float64), tile=(4, 9)
    ).metrics
    similarity = images.numpy() @ texts.numpy().T
    own = np.arange(31)
    assert float(found["image_to_text_accuracy"]) == pytest.approx((similarity.argmax(1) == own).mean())
    assert float(found["text_to_image_accuracy"]) == pytest.approx((similarity.argmax(0) == own).mean())
    assert float(found["positive_similarity"]) == pytest.approx(np.trace(similarity) / 31)
    assert 0 < float(found["image_to_text_accuracy"]) < 1


def test_bfloat16_products_are_close():
    images, texts = unit_rows(64, 32, seed=9, dtype="float32")
    log_scale = tf.constant(math.log(1 / 0.07), tf.float32)
    found = contrastive_loss_value_and_gradients(
        images, texts, log_scale, tile=(16, 24), precision="bfloat16"
    )
    expected = dense_reference.numpy_loss_and_gradients(images, texts, np.float64(log_scale.numpy()))
    assert_close(found[:4], expected, 2e-2)
    assert np.linalg.norm(np.asarray(found[1]) - expected[1]) > 1e-5 * np.linalg.norm(expected[1])


def live_floats(pairs, width=8, tile=(16, 64)):
    """The numbers in all tensors of the graph outside its loops: all that pass A can leave for pass B."""
    spec = tf.TensorSpec([pairs, width], tf.float32)

    def differentiated(images, texts, log_scale):
        return taped(lambda *x: contrastive_loss(*x, tile=tile), images, texts, log_scale)

    scalar = tf.TensorSpec([], tf.float32)
    function = tf.function(differentiated, input_signature=[spec, spec, scalar])
    graph = function.get_concrete_function().graph
    shapes = [t.shape for op in graph.get_operations() for t in op.outputs if t.dtype == tf.float32]
    return sum(shape.num_elements() for shape in shapes if shape.is_fully_defined())


def test_saved_numbers_grow_with_b_not_with_b_squared():
    small, large = live_floats(512), live_floats(1024)
    assert small > 512 * 8
    assert large <= 2.1 * small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeddings": np.zeros([3, 4], np.float32)}, r"\(5, 4\) and \(3, 4\)"),
        ({"tile": 0}, "positive integer"),
        ({"tile": (4, -1)}, "positive integer"),
        ({"tile": (4,)}, "two of them"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"max_inverse_temperature": 0.0}, "max_inverse_temperature"),
        ({"precision": "float16"}, "float16"),
    ],
)
def test_errors_say_what_was_received(change, message):
    rows = np.eye(5, 4, dtype=np.float32)
    arguments = {"image_embeddings": rows, "text_embeddings": rows, "log_inverse_temperature": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**arguments)
