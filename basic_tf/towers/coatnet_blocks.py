"""The blocks of CoAtNet: stem, MBConv, relative attention, pooled head (arXiv 2106.04803, appendix A.1).

Each block also counts its multiply-adds from the size of the map it receives (SE and bias look-ups not
counted, as in the published figures).
"""

import numpy as np
import tensorflow as tf

from basic_tf.precision import wide
from basic_tf.towers import ops
from basic_tf.towers.layers import BatchNorm, Block, Dense, LayerNorm, stochastic_depth

POOLS = {"max": ops.max_pool, "average": ops.average_pool}


class Size(tuple):
    """Height and width of a map."""

    def halved(self) -> "Size":
        """After stride 2 with padding 'SAME'."""
        return Size(-(-side // 2) for side in self)

    @property
    def area(self) -> int:
        """Positions."""
        return self[0] * self[1]


class NormPolicy:
    """Which normalisation the convolutions use, chosen once for a tower.

    name: 'frozen' or 'ghost' BatchNorm, or 'layer' (LayerNorm over channels).
    """

    NAMES = ("frozen", "ghost", "layer")

    def __init__(
        self, name: str, ghost_size: int, momentum: float, epsilon: float, layer_norm_epsilon: float
    ):
        if name not in self.NAMES:
            raise ValueError(f"batch_norm is {name!r}; expected one of {', '.join(self.NAMES)}")
        if name == "ghost" and (not isinstance(ghost_size, int) or ghost_size < 1):
            raise ValueError(f"ghost_size is {ghost_size!r}; ghost BatchNorm needs a positive number of rows")
        self.name, self.ghost_size = name, ghost_size
        self.momentum, self.epsilon, self.layer_norm_epsilon = momentum, epsilon, layer_norm_epsilon

    def layer(self, path: str, width: int, dtype) -> Block:
        """A normalisation layer."""
        if self.name == "layer":
            return LayerNorm(path, width, self.layer_norm_epsilon, dtype)
        return BatchNorm(path, width, self.name, self.ghost_size, self.momentum, self.epsilon, dtype)


def _is_affine(norm: Block, training: bool) -> bool:
    return isinstance(norm, BatchNorm) and norm.is_affine(training)


class Conv(Block):
    """A 3 x 3 convolution, padding 'SAME'; depthwise kernels are [3, 3, C, 1]."""

    def __init__(self, path, inputs, outputs, use_bias=True, stride=1, depthwise=False, dtype=None):
        super().__init__(path, dtype)
        self.inputs, self.outputs, self.use_bias, self.stride = inputs, outputs, use_bias, stride
        self.declare("kernel", (3, 3, inputs, 1) if depthwise else (3, 3, inputs, outputs))
        if use_bias:
            self.declare("bias", (outputs,), "zeros")

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        y = tf.nn.conv2d(state, self.weight("kernel"), self.stride, "SAME")
        return (ops.add_bias(y, self.weight("bias")) if self.use_bias else y), []


def _melted(dense_or_conv: Block, norm: BatchNorm):
    """(kernel, bias) of a bias-free product followed by an affine norm: one product, no pass over the map."""
    multiplier, offset = norm.affine()
    kernel = tf.cast(dense_or_conv.weight("kernel"), multiplier.dtype)
    if kernel.shape.rank == 4:  # depthwise [3, 3, C, 1]
        kernel = kernel * tf.reshape(multiplier, (1, 1, -1, 1))
    else:
        kernel = kernel * multiplier
    return kernel, offset


class Stem(Block):
    """S0: 3 x 3 convolution with stride 2, then (norm, GELU, 3 x 3 convolution) for each further one."""

    def __init__(self, path: str, convolutions: int, width: int, norms: NormPolicy, dtype=None, remat="none"):
        super().__init__(path, dtype, remat)
        self.width = width
        self.convolutions = [self.child(Conv(f"{path}/conv0", 3, width, stride=2, dtype=dtype))]
        self.norms = []
        for i in range(1, convolutions):
            self.norms.append(self.child(norms.layer(f"{path}/norm{i}", width, dtype)))
            self.convolutions.append(self.child(Conv(f"{path}/conv{i}", width, width, dtype=dtype)))

    def apply(self, state, training=False, noise=None):
        """Pictures [B, H, W, 3], uint8 or float in [-1, 1] -> [B, H/2, W/2, D]."""
        x, statistics = self.convolutions[0].apply(scaled_pictures(state, self.compute_dtype))[0], []
        for norm, convolution in zip(self.norms, self.convolutions[1:]):

            def recomputed(x, norm=norm, convolution=convolution):
                y, found = norm.apply(x, training, noise)
                return (convolution.apply(ops.gelu(y))[0], *found)

            x, *found = self.region(recomputed, x)
            statistics += found
        return x, statistics

    def multiply_adds(self, size: Size) -> tuple[int, Size]:
        """(multiply-adds of one example, output size)."""
        out = size.halved()
        return out.area * 9 * self.width * (3 + self.width * len(self.norms)), out


def scaled_pictures(pictures: tf.Tensor, dtype) -> tf.Tensor:
    """uint8 [0, 255] -> [-1, 1] in the computation dtype; floats are taken as scaled already."""
    if pictures.dtype == tf.uint8:
        return tf.cast(tf.cast(pictures, wide(dtype)) * (1.0 / 127.5) - 1.0, dtype)
    if not pictures.dtype.is_floating:
        raise ValueError(
            f"pictures are {pictures.dtype.name}; expected uint8, or a float type scaled to [-1, 1]"
        )
    return tf.cast(pictures, dtype)


class MBConv(Block):
    """norm, 1 x 1 expand, norm, GELU, 3 x 3 depthwise, norm, GELU, SE, 1 x 1 shrink; added to the shortcut.

    downsample: where a stride of 2 sits: 'expand' (the paper's main results) or 'depthwise'. The shortcut is
    pooled, and projected when the width changes. Inner width 4 D, SE width 0.25 D with D the block's own
    width: what the published parameter counts need (basic_paper 8.2).
    """

    def __init__(
        self, path, inputs, width, stride, norms, *, expansion=4, se_ratio=0.25, downsample="expand",
        shortcut_pool="average", drop_rate=0.0, dtype=None, remat="none",
    ):  # fmt: skip
        super().__init__(path, dtype, remat)
        if downsample not in ("expand", "depthwise"):
            raise ValueError(f"downsample is {downsample!r}; expected 'expand' or 'depthwise'")
        inner = expansion * width
        self.inputs, self.width, self.inner, self.stride, self.drop_rate = (
            inputs,
            width,
            inner,
            stride,
            drop_rate,
        )
        self.expand_stride = stride if downsample == "expand" else 1
        self.depthwise_stride = stride if downsample == "depthwise" else 1
        self.pool = POOLS[shortcut_pool]
        self.shortcut = (
            self.child(Dense(f"{path}/shortcut", inputs, width, dtype=dtype)) if inputs != width else None
        )
        self.pre_norm = self.child(norms.layer(f"{path}/pre_norm", inputs, dtype))
        self.expand = self.child(Dense(f"{path}/expand", inputs, inner, use_bias=False, dtype=dtype))
        self.expand_norm = self.child(norms.layer(f"{path}/expand_norm", inner, dtype))
        self.depthwise = self.child(
            Conv(f"{path}/depthwise", inner, inner, use_bias=False, depthwise=True, dtype=dtype)
        )
        self.depthwise_norm = self.child(norms.layer(f"{path}/depthwise_norm", inner, dtype))
        self.squeeze = self.excite = None
        if se_ratio > 0:
            squeezed = max(1, int(se_ratio * width))
            self.squeeze = self.child(Dense(f"{path}/squeeze", inner, squeezed, dtype=dtype))
            self.excite = self.child(Dense(f"{path}/excite", squeezed, inner, dtype=dtype))
        self.shrink = self.child(Dense(f"{path}/shrink", inner, width, dtype=dtype))

    def apply(self, state, training=False, noise=None):
        """[B, H, W, C] -> [B, H/stride, W/stride, D]."""
        statistics = []
        y = state
        for step in (self._expanded, self._convolved, self._shrunk):
            y, *found = self.region(lambda y, step=step: step(y, training), y)
            statistics += found
        y = stochastic_depth(y, self.drop_rate, self.block_path, training, noise)
        shortcut = self.pool(state) if self.stride == 2 else state
        if self.shortcut is not None:
            shortcut = self.shortcut.project(shortcut)
        return shortcut + y, statistics

    # The three steps end in a product each. When the norms are affine (frozen, or inference) they melt into
    # the kernels: (a x + b) W a' + b' = x (a W a') + (b W a' + b'), so the maps are passed over once less
    # for each norm.

    def _expanded(self, x, training):
        if isinstance(self.pre_norm, LayerNorm):
            y = ops.subsample(self.pre_norm.standardize(x), self.expand_stride)
            return (self.expand.project(y, after=self.pre_norm),)
        if not _is_affine(self.pre_norm, training):
            y, found = self.pre_norm.apply(x, training)
            return (self.expand.project(ops.subsample(y, self.expand_stride)), *found)
        kernel, bias = _melted(self.expand, self.expand_norm)
        multiplier, offset = self.pre_norm.affine()
        bias = bias + tf.linalg.matvec(kernel, offset, transpose_a=True)
        kernel = tf.expand_dims(multiplier, 1) * kernel
        return (
            ops.dense(ops.subsample(x, self.expand_stride), tf.cast(kernel, x.dtype), tf.cast(bias, x.dtype)),
        )

    def _convolved(self, x, training):
        convolve = ops.sharded_depthwise_conv if self.depthwise.on_mesh else ops.depthwise_conv
        if _is_affine(self.expand_norm, training):
            kernel, bias = _melted(self.depthwise, self.depthwise_norm)
            y = convolve(ops.gelu(x), tf.cast(kernel, x.dtype), self.depthwise_stride)
            return (ops.add_bias(y, tf.cast(bias, x.dtype)),)
        y, found = self.expand_norm.apply(x, training)
        return (
            convolve(ops.gelu(y), self.depthwise.weight("kernel"), self.depthwise_stride),
            *found,
        )

    def _shrunk(self, x, training):
        found = []
        if not _is_affine(self.depthwise_norm, training):
            x, found = self.depthwise_norm.apply(x, training)
        x = ops.gelu(x)
        if self.squeeze is not None:
            means = tf.cast(tf.reduce_mean(tf.cast(x, wide(x.dtype)), (1, 2)), x.dtype)
            silu = ops.sharded_silu if self.squeeze.on_mesh else tf.nn.silu
            gate = tf.sigmoid(self.excite.project(silu(self.squeeze.project(means))))
            x = x * tf.reshape(gate, (-1, 1, 1, self.inner))
        return (self.shrink.project(x), *found)

    def multiply_adds(self, size: Size) -> tuple[int, Size]:
        """(multiply-adds of one example, output size)."""
        out = size.halved() if self.stride == 2 else size
        expanded = out if self.expand_stride == 2 else size
        count = expanded.area * self.inputs * self.inner + out.area * self.inner * (9 + self.width)
        if self.shortcut is not None:
            count += out.area * self.inputs * self.width
        return count, out


def relative_positions(height: int, width: int) -> np.ndarray:
    """int32 [HW, HW]: place in a flattened [2H-1, 2W-1] table of query i and key i', i - i' + (H-1, W-1)."""
    rows, columns = np.divmod(np.arange(height * width), width)
    down = rows[:, None] - rows[None, :] + height - 1
    right = columns[:, None] - columns[None, :] + width - 1
    return (down * (2 * width - 1) + right).astype(np.int32)


def resized_relative_bias(table: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A table for a map of another size, by bilinear interpolation (CoAtNet A.1).

    table: [heads, 2H-1, 2W-1]. size: the new (H', W'). Returns [heads, 2H'-1, 2W'-1]. The grid is stretched
    about its centre (half-pixel centres), so that the bias of offset zero stays where it is.
    """
    resized = tf.image.resize(
        tf.transpose(tf.constant(table), (1, 2, 0)), (2 * size[0] - 1, 2 * size[1] - 1), "bilinear"
    )
    return tf.transpose(resized, (2, 0, 1)).numpy().astype(table.dtype)


class RelativeAttention(Block):
    """Multi-head attention over a map, with a learned bias for each head and offset."""

    def __init__(self, path, inputs, width, head_dim, size: Size, dtype=None):
        super().__init__(path, dtype)
        self.heads, self.size, self.width = width // head_dim, size, width
        self.declare("relative_bias", (self.heads, 2 * size[0] - 1, 2 * size[1] - 1))
        self.positions = relative_positions(*size)
        self.query = self.child(Dense(f"{path}/query", inputs, width, dtype=dtype))
        self.key = self.child(Dense(f"{path}/key", inputs, width, dtype=dtype))
        self.value = self.child(Dense(f"{path}/value", inputs, width, dtype=dtype))
        self.output_projection = self.child(Dense(f"{path}/output", width, width, dtype=dtype))

    def bias(self) -> tf.Tensor:
        """[heads, HW, HW], from the table by constant indices."""
        table = tf.reshape(self.weight("relative_bias", self.wide_dtype), (self.heads, -1))
        area = self.size.area
        found = tf.gather(
            tf.transpose(table), self.positions.reshape(-1)
        )  # rows: the gradient is one scatter-add
        return tf.reshape(tf.transpose(found), (self.heads, area, area))

    def projections(self, x: tf.Tensor, after: LayerNorm | None = None) -> tuple:
        """[B, H, W, C] -> query, key, value, each [B, HW, D]; `after` as in `Dense.project`."""
        rows = tf.reshape(x, (-1, self.size.area, x.shape[-1]))
        return tuple(part.project(rows, after) for part in (self.query, self.key, self.value))

    def mix(self, query, key, value) -> tf.Tensor:
        """Softmax attention and the output projection: [B, H, W, D]."""
        y = ops.attend(query, key, value, self.heads, self.bias())
        return tf.reshape(self.output_projection.project(y), (-1, *self.size, self.width))


class RelativeTransformer(Block):
    """x <- Proj(Pool(x)) + Attention(Pool(LN(x))), then x <- x + FFN(LN(x))."""

    def __init__(
        self, path, inputs, width, stride, head_dim, size: Size, *, expansion=4, pool="max", drop_rate=0.0,
        layer_norm_epsilon=1e-5, dtype=None, remat="none",
    ):  # fmt: skip
        super().__init__(path, dtype, remat)
        self.inputs, self.width, self.inner, self.stride = inputs, width, expansion * width, stride
        self.size, self.drop_rate, self.pool = size, drop_rate, POOLS[pool]
        self.shortcut = (
            self.child(Dense(f"{path}/shortcut", inputs, width, dtype=dtype)) if inputs != width else None
        )
        self.attention_norm = self.child(
            LayerNorm(f"{path}/attention_norm", inputs, layer_norm_epsilon, dtype)
        )
        self.attention = self.child(
            RelativeAttention(f"{path}/attention", inputs, width, head_dim, size, dtype)
        )
        self.ffn_norm = self.child(LayerNorm(f"{path}/ffn_norm", width, layer_norm_epsilon, dtype))
        self.ffn_in = self.child(Dense(f"{path}/ffn_in", width, self.inner, dtype=dtype))
        self.ffn_out = self.child(Dense(f"{path}/ffn_out", self.inner, width, dtype=dtype))

    def _pooled(self, x):
        return self.pool(x) if self.stride == 2 else x

    def _projections(self, x):
        if self.stride == 2:  # a pool sits between the norm and the product
            return self.attention.projections(self.pool(self.attention_norm.normalize(x)))
        return self.attention.projections(self.attention_norm.standardize(x), after=self.attention_norm)

    def apply(self, state, training=False, noise=None):
        """[B, H, W, C] -> [B, H/stride, W/stride, D]."""
        shortcut = self._pooled(state)
        if tuple(shortcut.shape[1:3]) != tuple(self.size):
            raise ValueError(
                f"{self.block_path}: the map is {tuple(shortcut.shape[1:3])}, the relative bias is for "
                f"{tuple(self.size)}; build the tower with the image_size it receives "
                f"(resized_relative_bias converts the tables)"
            )
        if self.shortcut is not None:
            shortcut = self.shortcut.project(shortcut)
        projected = self.region(self._projections, state)
        y = self.region(self.attention.mix, *projected)
        x = shortcut + stochastic_depth(y, self.drop_rate, f"{self.block_path}/attention", training, noise)
        y = self.region(lambda x: self.ffn_in.project(self.ffn_norm.standardize(x), after=self.ffn_norm), x)
        y = self.region(lambda y: self.ffn_out.project(ops.gelu(y)), y)
        return x + stochastic_depth(y, self.drop_rate, f"{self.block_path}/ffn", training, noise), []

    def multiply_adds(self, size: Size) -> tuple[int, Size]:
        """(multiply-adds of one example, output size)."""
        out = size.halved() if self.stride == 2 else size
        tokens = out.area
        count = tokens * self.width * (3 * self.inputs + self.width + 2 * tokens + 2 * self.inner)
        if self.shortcut is not None:
            count += tokens * self.inputs * self.width
        return count, out


class PooledFeatures(Block):
    """Mean over the map, then LayerNorm: [B, H, W, D] -> [B, D] in at least float32."""

    def __init__(self, path, width, epsilon=1e-5, dtype=None, remat="none"):
        super().__init__(path, dtype, remat)
        self.norm = self.child(LayerNorm(f"{path}/norm", width, epsilon, dtype))

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        return self.norm.normalize(tf.reduce_mean(tf.cast(state, self.wide_dtype), (1, 2))), []

    def multiply_adds(self, size: Size) -> tuple[int, Size]:
        """Nothing that is counted."""
        return 0, Size((1, 1))


class Classifier(Block):
    """Dense(D) with tanh ('pre-logits', optional), then Dense(classes): CoAtNet's classification head."""

    def __init__(self, path, width, classes, pre_logits=True, dtype=None):
        super().__init__(path, dtype)
        self.pre_logits = None
        if pre_logits:
            self.pre_logits = self.child(Dense(f"{path}/pre_logits", width, width, dtype=dtype))
        self.classifier = self.child(Dense(f"{path}/classifier", width, classes, dtype=dtype))

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        hidden = tf.cast(state, self.compute_dtype)
        if self.pre_logits is not None:
            hidden = tf.tanh(self.pre_logits.project(hidden))
        return tf.cast(self.classifier.project(hidden), self.wide_dtype), []
