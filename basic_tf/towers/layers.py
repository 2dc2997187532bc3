"""Weights declared before they exist, and the layers that both towers are made of.

A `Block` declares its weights in its constructor (`specs()` needs no build), creates exactly those in
`create`, and computes with the plain method `apply(state, training, noise) -> (state, statistics)`. Keras
tracks the variables; Keras' `__call__` is not used between blocks (no autocasting, shorter traces).
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from basic_tf.parallel.weights import gathered, layout_of
from basic_tf.precision import wide
from basic_tf.randomness import Noise, uniform
from basic_tf.towers import ops

INITIALIZER_DEVIATION = 0.02
REMATERIALISATIONS = ("none", "blocks", "norms_and_activations")


class WeightSpec(NamedTuple):
    """One weight, declared: where it is, how large, how it starts, whether gradients train it.

    initializer: 'normal' (N(0, 0.02), CoAtNet and BASIC section 8.3), 'zeros' or 'ones'. trainable=False
    marks BatchNorm's moving statistics; freezing is a matter of the optimizer's rule table.
    """

    path: str
    shape: tuple[int, ...]
    initializer: str
    trainable: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def stored_dtype(self, variable_dtype) -> str:
        """The type it is kept in where weights are of `variable_dtype`.

        Moving statistics are kept in at least float32: a hundredth of what is left to go is less than bfloat16's last
        bit long before they arrive.
        """
        return (tf.as_dtype(variable_dtype) if self.trainable else wide(variable_dtype)).name


INITIALIZERS = ("normal", "fan_in")


def initial_value(spec: WeightSpec, seed: int, scheme: str = "normal") -> np.ndarray:
    """The first value of a weight, float32: a function of (seed, path, shape, scheme) alone.

    scheme: 'normal' draws every kernel from N(0, 0.02), as CoAtNet does; 'fan_in' from N(0, 1 / fan in):
    it keeps the variance of what flows through and lets narrow towers learn from the first step.
    """
    if spec.initializer == "zeros":
        return np.zeros(spec.shape, np.float32)
    if spec.initializer == "ones":
        return np.ones(spec.shape, np.float32)
    if spec.initializer != "normal":
        raise ValueError(
            f"weight {spec.path}: initializer {spec.initializer!r}; expected 'normal', 'zeros' or 'ones'"
        )
    key = np.array([seed % (1 << 64), zlib.crc32(spec.path.encode())], np.uint64)
    draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(spec.shape, np.float32)
    deviation = INITIALIZER_DEVIATION
    if scheme == "fan_in" and spec.path.endswith("/kernel"):
        depthwise = len(spec.shape) == 4 and spec.shape[-1] == 1
        deviation = float(np.prod(spec.shape[:2] if depthwise else spec.shape[:-1])) ** -0.5
    draw *= np.float32(deviation)
    return draw


class Block(keras.layers.Layer):
    """A piece of a tower that owns declared weights and other blocks.

    path: the place in the tower, e.g. 'stage1/block0/expand'; weight paths and noise streams start with it.
    remat: 'none', 'blocks' (the tower recomputes whole blocks) or 'norms_and_activations' (see `region`).
    """

    def __init__(self, path: str, dtype=None, remat: str = "none"):
        super().__init__(name=path.replace("/", "_") or None, dtype=dtype, autocast=False)
        if remat not in REMATERIALISATIONS:
            raise ValueError(f"remat is {remat!r}; expected one of {', '.join(REMATERIALISATIONS)}")
        self.block_path = path
        self.remat = remat
        self._declared: list[WeightSpec] = []
        self._created: dict = {}
        self._children: list[Block] = []

    def declare(
        self, name: str, shape: tuple[int, ...], initializer: str = "normal", trainable: bool = True
    ) -> None:
        """Declares one weight of this block."""
        self._declared.append(WeightSpec(f"{self.block_path}/{name}", tuple(shape), initializer, trainable))

    def child(self, block: "Block") -> "Block":
        """Adds a block inside this one; its weights follow, in the order of the calls."""
        self._children.append(block)
        return block

    def specs(self) -> list[WeightSpec]:
        """All weights of this block, own first, then its children's. Nothing is allocated."""
        return self._declared + [spec for block in self._children for spec in block.specs()]

    def create(self, seed: int, scheme: str = "normal") -> None:
        """Creates the declared weights that do not exist yet; see `initial_value`."""
        for spec in self._declared:
            name = spec.path.rsplit("/", 1)[-1]
            if name not in self._created:
                self._created[name] = self.add_weight(
                    shape=spec.shape,
                    initializer=lambda shape, dtype, spec=spec: tf.cast(
                        initial_value(spec, seed, scheme), dtype
                    ),
                    dtype=spec.stored_dtype(self.variable_dtype),
                    trainable=spec.trainable,
                    autocast=False,
                    name=name,
                )
        for block in self._children:
            block.create(seed, scheme)
        self.built = True

    def stand_in(self, make: Callable[[WeightSpec], tf.Variable]) -> None:
        """Puts `make(spec)` where each declared weight would be: the planner traces with weights that hold nothing."""
        for spec in self._declared:
            self._created[spec.path.rsplit("/", 1)[-1]] = make(spec)
        for block in self._children:
            block.stand_in(make)

    def build(self, input_shape=None) -> None:
        """Keras' hook: creates the weights with seed 0."""
        self.create(0)

    def parameters(self) -> dict:
        """path -> Keras variable, in the order of `specs`."""
        found = {}
        for spec in self._declared:
            name = spec.path.rsplit("/", 1)[-1]
            if name not in self._created:
                raise RuntimeError(
                    f"{spec.path} does not exist yet: build the tower before asking for its parameters"
                )
            found[spec.path] = self._created[name]
        for block in self._children:
            found.update(block.parameters())
        return found

    def weight(self, name: str, dtype=None) -> tf.Tensor:
        """The whole weight `name` of this block, in the computation dtype or the given one."""
        return gathered(self._created[name], dtype or self.compute_dtype)

    @property
    def on_mesh(self) -> bool:
        """Whether this block's own weights are DTensor variables, for which some operations need another form."""
        return any(layout_of(variable) is not None for variable in self._created.values())

    @property
    def wide_dtype(self) -> tf.DType:
        """The type of statistics: float32, or float64 in a float64 run."""
        return wide(self.compute_dtype)

    def normalizations(self) -> Iterator["BatchNorm"]:
        """The BatchNorms inside, in the order of their statistics."""
        for block in self._children:
            yield from block.normalizations()

    def region(self, function: Callable, *tensors: tf.Tensor):
        """Runs `function(*tensors)`; under 'norms_and_activations' only its inputs are kept.

        A region starts at a matrix product's output and ends at the next one's, so that what is kept are the
        outputs of products, and normalisation, activation, SE gate and softmax are recomputed (BASIC section
        on rematerialisation). `function` must be deterministic, change no variable, and take every tensor
        that needs a gradient as an argument.
        """
        if self.remat == "norms_and_activations":
            return tf.recompute_grad(function)(*tensors)
        return function(*tensors)

    def apply(self, state, training: bool, noise: Noise | None):
        """state -> (state, list of BatchNorm statistics)."""
        raise NotImplementedError(f"{type(self).__name__} computes nothing by itself")


class Dense(Block):
    """x [..., C] -> [..., D], with or without bias."""

    def __init__(self, path: str, inputs: int, outputs: int, use_bias: bool = True, dtype=None):
        super().__init__(path, dtype)
        self.inputs, self.outputs, self.use_bias = inputs, outputs, use_bias
        self.declare("kernel", (inputs, outputs))
        if use_bias:
            self.declare("bias", (outputs,), "zeros")

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        return self.project(state), []

    def project(self, x: tf.Tensor, after: "LayerNorm | None" = None) -> tf.Tensor:
        """The product alone, with the scale and bias of a LayerNorm `after` which it comes, if given.

        x is then the standardised rows: (x s + b) W = x (s W) + b W, which saves two passes over the rows and
        two reductions.
        """
        kernel, bias = self.weight("kernel"), self.weight("bias") if self.use_bias else None
        if after is None:
            return ops.dense(x, kernel, bias)
        scale, offset = after.weight("scale", after.wide_dtype), after.weight("bias", after.wide_dtype)
        kernel = tf.cast(kernel, scale.dtype)
        shift = tf.linalg.matvec(kernel, offset, transpose_a=True)
        if bias is not None:
            shift = shift + tf.cast(bias, shift.dtype)
        return ops.dense(x, tf.cast(tf.expand_dims(scale, 1) * kernel, x.dtype), tf.cast(shift, x.dtype))


class LayerNorm(Block):
    """LayerNorm over the last dimension."""

    def __init__(self, path: str, width: int, epsilon: float = 1e-5, dtype=None):
        super().__init__(path, dtype)
        self.width, self.epsilon = width, epsilon
        self.declare("scale", (width,), "ones")
        self.declare("bias", (width,), "zeros")

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        return self.normalize(state), []

    def normalize(self, x: tf.Tensor) -> tf.Tensor:
        """[..., C] -> [..., C]."""
        y = tf.cast(self.standardize(x), self.wide_dtype)
        y = y * self.weight("scale", self.wide_dtype) + self.weight("bias", self.wide_dtype)
        return tf.cast(y, x.dtype)

    def standardize(self, x: tf.Tensor) -> tf.Tensor:
        """Without scale and bias: for a product that takes them into its kernel (`Dense.project`)."""
        return ops.standardize(x, self.epsilon)


class BatchNorm(Block):
    """BatchNorm with a declared policy (docs: design decision 7).

    policy 'frozen': the moving statistics, in training too. 'ghost': in training, the statistics of each
    group of `group` consecutive rows, so that they depend on neither microbatch nor replica; the moving
    statistics otherwise. The moving averages change only in the tower's `update_statistics`.
    """

    def __init__(
        self, path: str, width: int, policy: str, group: int, momentum=0.99, epsilon=1e-3, dtype=None
    ):
        super().__init__(path, dtype)
        self.width, self.policy, self.group = width, policy, group
        self.momentum, self.epsilon = momentum, epsilon
        self.declare("scale", (width,), "ones")
        self.declare("bias", (width,), "zeros")
        self.declare("moving_mean", (width,), "zeros", trainable=False)
        self.declare("moving_variance", (width,), "ones", trainable=False)

    def normalizations(self):
        """This one."""
        yield self

    @property
    def moving_statistics(self) -> list:
        """[moving mean, moving variance] as Keras variables."""
        return [self._created["moving_mean"], self._created["moving_variance"]]

    def is_affine(self, training: bool) -> bool:
        """Whether this call multiplies and adds constants per channel (and can melt into a product)."""
        return self.policy == "frozen" or not training

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """(multiplier [C], offset [C]) by the moving statistics, in `wide_dtype`."""
        multiplier = tf.math.rsqrt(self.weight("moving_variance", self.wide_dtype) + self.epsilon)
        multiplier *= self.weight("scale", self.wide_dtype)
        mean = self.weight("moving_mean", self.wide_dtype)
        return multiplier, self.weight("bias", self.wide_dtype) - mean * multiplier

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        if self.is_affine(training):
            multiplier, offset = self.affine()
            return tf.cast(tf.cast(state, multiplier.dtype) * multiplier + offset, state.dtype), []
        return self._normalize_groups(state)

    def _normalize_groups(self, x: tf.Tensor):
        rows = x.shape[0]
        if rows is not None and rows % self.group:
            raise ValueError(
                f"{self.block_path}: {rows} rows cannot be cut into ghost BatchNorm groups of "
                f"{self.group}; choose a microbatch that is a multiple of {self.group}, or another ghost_size"
            )
        scale, bias = self.weight("scale", self.wide_dtype), self.weight("bias", self.wide_dtype)
        if self._may_fuse(x):
            y, *statistics = ops.fused_batch_norm(x, scale, bias, self.epsilon, rows // self.group)
        else:
            positions = self.group * int(np.prod(x.shape[1:-1], dtype=np.int64))
            groups = tf.reshape(x, (-1, positions, self.width))
            y, *statistics = ops.batch_moments_norm(groups, scale, bias, self.epsilon)
            y = tf.reshape(y, (*ops.leading_shape(x), self.width))
        return y, [tf.stop_gradient(value) for value in statistics]

    def _may_fuse(self, x: tf.Tensor) -> bool:
        few = x.shape[0] is not None and x.shape[0] // self.group <= 64
        return few and x.dtype != tf.float64 and not self.on_mesh


def stochastic_depth(
    branch: tf.Tensor, rate: float, stream: str, training: bool, noise: Noise | None
) -> tf.Tensor:
    """Drops whole rows of a branch with probability `rate` and scales the others by 1 / (1 - rate)."""
    if not training or noise is None or rate <= 0.0:
        return branch
    kept = tf.cast(uniform(noise, f"{stream}/stochastic_depth") >= rate, branch.dtype) / (1.0 - rate)
    return branch * tf.reshape(kept, (-1,) + (1,) * (branch.shape.rank - 1))


def dropout(x: tf.Tensor, rate: float, stream: str, training: bool, noise: Noise | None) -> tf.Tensor:
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate)."""
    if not training or noise is None or rate <= 0.0:
        return x
    return x * (
        tf.cast(uniform(noise, f"{stream}/dropout", tuple(x.shape[1:])) >= rate, x.dtype) / (1.0 - rate)
    )
