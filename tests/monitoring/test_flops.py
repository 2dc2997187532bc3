import json

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.monitoring import flops


def spec(*shape):
    return tf.TensorSpec(shape, tf.float32)


def test_products_are_counted_as_two_per_multiply_add():
    cases = [
        (tf.matmul, (spec(3, 5), spec(5, 7)), 2 * 3 * 5 * 7),
        (lambda a, b: tf.matmul(a, b, transpose_a=True), (spec(5, 3), spec(5, 7)), 2 * 3 * 5 * 7),
        (lambda a, b: tf.matmul(a, b, transpose_b=True), (spec(2, 3, 5), spec(2, 7, 5)), 2 * 2 * 3 * 5 * 7),
        (lambda a, b: tf.matmul(a, b, transpose_a=True), (spec(2, 5, 3), spec(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
        (
            lambda a, b: tf.einsum("bqhd,bkhd->bhqk", a, b),
            (spec(2, 3, 4, 5), spec(2, 7, 4, 5)),
            2 * 2 * 3 * 4 * 5 * 7,
        ),
        (
            lambda x, k: tf.nn.conv2d(x, k, 2, "SAME"),
            (spec(2, 9, 9, 4), spec(3, 3, 4, 6)),
            2 * 2 * 25 * 6 * 36,
        ),
        (
            lambda x, k: tf.nn.conv2d(x, k, 1, "VALID"),
            (spec(2, 9, 9, 4), spec(3, 3, 2, 6)),
            2 * 2 * 49 * 6 * 18,
        ),
        (
            lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, 1, 1, 1], "SAME"),
            (spec(2, 9, 9, 4), spec(3, 3, 4, 2)),
            2 * 2 * 81 * 8 * 9,
        ),
    ]
    for function, inputs, expected in cases:
        assert flops.forward_flops(function, *inputs) == expected


def test_inner_functions_and_branches_are_counted():
    inner = tf.function(lambda a: tf.matmul(a, a))

    def function(a):
        a = inner(a) + inner(a)
        return tf.cond(a[0, 0] > 0, lambda: tf.matmul(a, a), lambda: a)

    assert flops.forward_flops(function, spec(4, 4)) == 3 * 2 * 4**3


def test_recomputed_blocks_count_once_in_the_forward_pass():
    block = tf.recompute_grad(lambda a: tf.matmul(a, a))
    assert flops.forward_flops(block, spec(6, 6)) == 2 * 6**3


def test_what_cannot_be_counted_is_an_error():
    with pytest.raises(ValueError, match="static shapes"):
        flops.forward_flops(tf.matmul, spec(None, 4), spec(4, 4))
    with pytest.raises(ValueError, match="how often"):
        flops.forward_flops(
            lambda a: tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.matmul(x, x)), (0, a)),
            spec(4, 4),
        )


def test_gemm_rate_is_plausible_and_cached(tmp_path):
    cache = str(tmp_path / "run" / "machine.json")
    rate = flops.gemm_rate(cache, seconds=0.05)
    assert 1e8 < rate < 1e16
    assert flops.gemm_rate(cache, seconds=0.05) == rate
    content = json.loads((tmp_path / "run" / "machine.json").read_text())
    content["devices"] = "another machine"
    content["gemm_flops_per_second"] = 1.0
    (tmp_path / "run" / "machine.json").write_text(json.dumps(content))
    assert flops.gemm_rate(cache, seconds=0.05) > 1e8
    (tmp_path / "run" / "machine.json").write_text("{")
    assert np.isfinite(flops.gemm_rate(cache, seconds=0.05))
