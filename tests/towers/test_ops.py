import numpy as np
import pytest
import tensorflow as tf

from basic_tf.towers import ops
from tests.towers import tower_oracle as oracle


def numeric_gradient(function, x, cotangent, step=1e-5):
    """d sum(function(x) cotangent) / dx, element by element."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        gradient[index] = np.sum((function(high) - function(low)) * cotangent) / (2 * step)
    return gradient


def check(operation, reference, x, tolerance=1e-8):
    """Value against the oracle and gradient against its central differences, float64."""
    x = x.astype(np.float64)
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = operation(tensor)
    np.testing.assert_allclose(y.numpy(), reference(x), rtol=1e-12, atol=1e-12)
    cotangent = np.random.default_rng(7).normal(size=y.shape)
    found = tape.gradient(y, tensor, tf.constant(cotangent))
    np.testing.assert_allclose(
        found.numpy(), numeric_gradient(reference, x, cotangent), rtol=tolerance, atol=tolerance
    )


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_gelu():
    check(ops.gelu, oracle.gelu, 3 * random(5, 7))
    far = tf.constant([-1e4, -30.0, 0.0, 30.0, 1e4])
    with tf.GradientTape() as tape:
        tape.watch(far)
        y = ops.gelu(far)
    np.testing.assert_allclose(y, [0, 0, 0, 30, 1e4])
    np.testing.assert_allclose(tape.gradient(y, far), [0, 0, 0.5, 1, 1], atol=1e-6)
    x = tf.constant(random(64), tf.float32)
    np.testing.assert_allclose(ops.gelu(x), tf.nn.gelu(x, approximate=True), rtol=1e-5, atol=1e-6)


def test_standardize():
    check(
        lambda x: ops.standardize(x, 1e-5),
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
        random(3, 5, 7) + 4,
        1e-7,
    )


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2), (3, 1)])
def test_pools(size):
    x = random(2, *size, 3)
    check(ops.average_pool, oracle.average_pool, x)
    check(ops.max_pool, oracle.max_pool, x)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(stride):
    x, kernel = random(2, 5, 4, 3), random(3, 3, 3, 1, seed=1)
    check(
        lambda x: ops.depthwise_conv(x, tf.constant(kernel), stride),
        lambda x: oracle.depthwise(x, kernel, stride),
        x,
    )


@pytest.mark.parametrize("size", [(5, 4), (6, 7), (1, 2), (8, 8)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_gradients_written_out(stride, size):
    x, kernel = (
        tf.constant(random(2, *size, 3)),
        tf.constant(random(3, 3, 3, 1, seed=1)),
    )
    found = []
    for operation in (ops.depthwise_conv, ops.sharded_depthwise_conv):
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = operation(x, kernel, stride)
        cotangent = tf.constant(random(*y.shape, seed=2))
        found.append([y, *tape.gradient(y, (x, kernel), cotangent)])
    for own, native in zip(*found):
        np.testing.assert_allclose(own, native, rtol=1e-12, atol=1e-12)


def test_unit_rows_and_a_row_of_zeros():
    check(ops.unit_rows, lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True), random(4, 5), 1e-7)
    zeros = tf.zeros((2, 3))
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        y = ops.unit_rows(zeros)
    assert np.isfinite(y.numpy()).all() and np.isfinite(tape.gradient(y, zeros).numpy()).all()


def test_embedding_gradient_is_dense_and_adds_repeated_rows():
    ids = tf.constant([[1, 4, 1], [0, 1, 3]])
    table = tf.Variable(random(6, 4))
    cotangent = random(2, 3, 4, seed=2)
    with tf.GradientTape() as tape:
        y = ops.embed(tf.convert_to_tensor(table), ids)
    gradient = tape.gradient(y, table, tf.constant(cotangent))
    expected = np.zeros((6, 4))
    np.add.at(expected, ids.numpy(), cotangent)
    assert isinstance(gradient, tf.Tensor)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("groups", [1, 3])
def test_fused_batch_norm_equals_moments(groups):
    x = (random(6, 3, 5, 4) * 2 + 1).astype(np.float32)
    scale, bias = (1 + 0.3 * random(4, seed=1)).astype(np.float32), random(4, seed=2).astype(np.float32)
    cotangent = random(6, 3, 5, 4, seed=3).astype(np.float32)

    def run(function, *inputs):
        inputs = [tf.constant(value) for value in inputs]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y, *statistics = function(*inputs)
        return [y, *statistics, *tape.gradient(y, inputs, tf.constant(cotangent, y.dtype))]

    def moments(x, scale, bias):
        y, mean, variance = ops.batch_moments_norm(tf.reshape(x, (groups, -1, 4)), scale, bias, 1e-3)
        return tf.reshape(y, x.shape), mean, variance

    fused = run(lambda *v: ops.fused_batch_norm(*v, 1e-3, groups), x, scale, bias)
    for found, expected in zip(fused, run(moments, *(v.astype(np.float64) for v in (x, scale, bias)))):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=2e-5, atol=2e-5)


def test_gradients_of_bfloat16_stay_bfloat16():
    x = tf.constant(random(4, 8), tf.bfloat16)
    for operation in (ops.gelu, lambda x: ops.standardize(x, 1e-5)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = operation(x)
        assert y.dtype == tf.bfloat16 and tape.gradient(y, x).dtype == tf.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_of_many_narrow_rows_are_summed_in_float32(dtype, recomputed):
    """Summed in 16 bits, they would stand still at 4 (bfloat16) or 32 (float16)."""
    rows, width = 8192, 3
    dy = tf.fill((rows, width), tf.constant(0.01, dtype))
    expected = rows * float(dy[0, 0])
    zeros, bias, table = tf.zeros((rows, width), dtype), tf.zeros(width, dtype), tf.zeros((5, width), dtype)
    ids = tf.fill((64, rows // 64), 2)
    maps = (rows // 64, 8, 8, width)
    for function, variable in (
        (lambda b: ops.dense(zeros, tf.zeros((width, width), dtype), b), bias),
        (lambda b: tf.reshape(ops.add_bias(tf.reshape(zeros, maps), b), (rows, width)), bias),
        (lambda t: tf.reshape(ops.embed(t, ids), (rows, width)), table),
    ):
        function = tf.recompute_grad(function) if recomputed else function
        with tf.GradientTape() as tape:
            tape.watch(variable)
            y = function(variable)
        gradient = tape.gradient(y, variable, dy)
        assert y.dtype == gradient.dtype == variable.dtype
        np.testing.assert_allclose(np.max(gradient.numpy().astype(np.float64), 0), expected, rtol=2**-8)


def test_biases_and_tables_of_wider_types_take_the_native_operations():
    """What a custom gradient would do to float32's order of sums is not wanted."""
    for dtype in (tf.float32, tf.float64):
        graph = tf.Graph()
        with graph.as_default():
            x, bias, table = tf.zeros((4, 3), dtype), tf.zeros(3, dtype), tf.zeros((5, 3), dtype)
            tf.gradients([ops.add_bias(x, bias), ops.embed(table, tf.zeros((2, 2), tf.int32))], [bias, table])
        types = [op.type for op in graph.get_operations()]
        assert "BiasAddGrad" in types and "UnsortedSegmentSum" in types and "Cast" not in types
