"""MBConv and relative attention against the layers of tf-models-official's MaxViT, which are CoAtNet's authors' own."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.towers.coatnet_blocks import MBConv, NormPolicy, RelativeTransformer, Size

RNG = np.random.default_rng()
EPSILON = 1e-3
RENAMED = {
    "kernel": "kernel", "bias": "bias", "depthwise_kernel": "kernel", "gamma": "scale", "beta": "bias",
    "moving_mean": "moving_mean", "moving_variance": "moving_variance", "weight": "kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def layers():
    return pytest.importorskip("official.projects.maxvit.modeling.layers")


def value_like(name: str, shape) -> np.ndarray:
    if name in ("moving_variance", "gamma", "scale"):
        return RNG.uniform(0.5, 1.5, shape).astype(np.float32)
    return (RNG.normal(size=shape) / max(1, np.prod(shape[:-1])) ** 0.5).astype(np.float32)


def give(ours, theirs, places: dict[str, str]) -> None:
    """Random values into both. places: part of the name of their layer -> the path of ours; every weight is met once."""
    parameters, met = ours.parameters(), set()
    for weight in theirs.weights:
        *_, layer, name = weight.name.split(":")[0].split("/")
        value = value_like(name, tuple(weight.shape))
        if name == "relative_bias":
            path, own = "block/attention/relative_bias", value[:, ::-1, ::-1]  # theirs: key minus query
        else:
            path, own = f"block/{places[layer]}/{RENAMED[name]}", value
        target = parameters[path]
        weight.assign(value)
        target.assign(own.reshape(target.shape))
        met.add(path)
    assert met == set(parameters)


def same(ours, theirs, x: np.ndarray) -> None:
    """Outputs, and gradients of a random sum of them with respect to the input."""
    found = []
    upstream = None
    for block in (lambda x: ours.apply(x)[0], lambda x: theirs(x, training=False)):
        with tf.GradientTape() as tape:
            tape.watch(given := tf.constant(x))
            y = block(given)
            y = tf.reshape(y, (len(x), -1))
            upstream = RNG.normal(size=y.shape).astype(np.float32) if upstream is None else upstream
            total = tf.reduce_sum(y * upstream)
        found.append((y.numpy(), tape.gradient(total, given).numpy()))
    for own, other in zip(*found):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("inputs, width, stride", [(24, 24, 1), (16, 24, 2), (24, 24, 2)])
@pytest.mark.parametrize("downsample", ["expand", "depthwise"])
@pytest.mark.parametrize("pool", ["average", "max"])
def test_mbconv(layers, inputs, width, stride, downsample, pool):
    theirs = layers.MBConvBlock(
        width, downsample_loc={"expand": "expand_conv", "depthwise": "depth_conv"}[downsample], pool_stride=stride,
        pool_type={"average": "avg", "max": "max"}[pool], norm_type="batch_norm", bn_epsilon=EPSILON,
    )  # fmt: skip
    norms = NormPolicy("frozen", 1, 0.99, EPSILON, 1e-5)
    ours = MBConv("block", inputs, width, stride, norms, downsample=downsample, shortcut_pool=pool)
    ours.create(0)
    x = RNG.normal(size=(3, *RNG.integers(5, 12, 2), inputs)).astype(np.float32)
    theirs(x, training=False)
    names = ("pre_norm", "expand_norm", "depthwise_norm")
    places = {name: name for name in names} | {
        "shortcut_conv": "shortcut", "expand_conv": "expand", "depthwise_conv": "depthwise", "shrink_conv": "shrink",
        "reduce_conv2d": "squeeze", "expand_conv2d": "excite",
    }  # fmt: skip
    give(ours, theirs, places)
    same(ours, theirs, x)


@pytest.mark.parametrize("inputs, stride", [(32, 1), (16, 2), (32, 2)])
def test_relative_transformer(layers, inputs, stride):
    height, width = (int(side) * stride for side in RNG.integers(2, 6, 2))
    theirs = layers.TransformerBlock(
        32, 16, height, width, pool_type="2d:max", pool_stride=stride, rel_attn_type="2d_multi_head"
    )
    size = Size((height // stride, width // stride))
    ours = RelativeTransformer("block", inputs, 32, stride, 16, size)
    ours.create(0)
    x = RNG.normal(size=(2, height, width, inputs)).astype(np.float32)
    theirs(x, training=False)
    places = {
        "shortcut_proj": "shortcut", "attn_layer_norm": "attention_norm", "q": "attention/query", "k": "attention/key",
        "v": "attention/value", "o": "attention/output", "ffn_layer_norm": "ffn_norm", "expand_dense": "ffn_in",
        "shrink_dense": "ffn_out",
    }  # fmt: skip
    give(ours, theirs, places)
    same(ours, theirs, x)
