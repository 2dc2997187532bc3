"""The primitive operations of the towers, as functions of tensors.

Every function computes in the type of its input, except statistics (means, variances, softmax), which are
taken in at
least float32: bfloat16 and float16 inputs are widened for them, float64 stays float64.
"""

import math

import numpy as np
import tensorflow as tf

from basic_tf.precision import wide

_GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """x [..., C] times kernel [C, D], plus bias [D]: one matrix product over all leading dimensions."""
    shape = x.shape
    rows = x if shape.rank == 2 else tf.reshape(x, (-1, shape[-1]))
    y = tf.matmul(rows, kernel)
    if bias is not None:
        y = add_bias(y, bias)
    return y if shape.rank == 2 else tf.reshape(y, (*leading_shape(x), kernel.shape[-1]))


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x [..., D] plus bias [D]; the gradient of the bias is summed in at least float32."""
    return tf.nn.bias_add(x, bias) if x.dtype == wide(x.dtype) else _add_narrow_bias(x, bias)


@tf.custom_gradient
def _add_narrow_bias(x, bias):
    # BiasAddGrad of bfloat16 on a CPU sums in bfloat16, which stands still after some hundred rows.
    def gradient(dy):
        sums = tf.reduce_sum(tf.cast(dy, wide(dy.dtype)), list(range(dy.shape.rank - 1)))
        return dy, tf.cast(sums, bias.dtype)

    return tf.nn.bias_add(x, bias), gradient


def leading_shape(x: tf.Tensor) -> tuple:
    """All dimensions but the last; the first may be unknown until run time (then -1)."""
    return tuple(-1 if size is None else size for size in x.shape[:-1])


@tf.custom_gradient
def gelu(x):
    """GELU, tanh form: 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    # TensorFlow's own approximate GELU keeps most of its ten element-wise results for the gradient. Here one
    # tensor is kept, the slope, in place of x, and the backward pass is one product. Without a tape the
    # slope is never computed (graph pruning).
    z = x * (tf.square(x) * (_GELU_SLOPE * _GELU_CUBIC) + _GELU_SLOPE)  # 2u
    gate = tf.sigmoid(z)
    # d/dx [x sigmoid(z)] = sigmoid(z) + sigmoid'(z) x dz/dx, and x dz/dx = 3 z - 2 sqrt(2/pi) 2 x.
    slope = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=z * 3.0 - x * (2.0 * _GELU_SLOPE))
    return x * gate, lambda dy: dy * slope


def standardize(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the last dimension: what LayerNorm scales and shifts."""
    return _standardize(x, epsilon)


def _standardize(x, epsilon):
    @tf.custom_gradient
    def computed(x):
        values = tf.cast(x, wide(x.dtype))
        centred = values - tf.reduce_mean(values, -1, keepdims=True)
        inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
        y = tf.cast(centred * inverse, x.dtype)

        def gradient(dy):
            # Keeps the result (which the next product keeps anyway) and one number for each row.
            g, h = tf.cast(dy, inverse.dtype), tf.cast(y, inverse.dtype)
            along = tf.reduce_mean(g * h, -1, keepdims=True)
            return tf.cast((g - h * along - tf.reduce_mean(g, -1, keepdims=True)) * inverse, x.dtype)

        return y, gradient

    return computed(x)


def batch_moments_norm(x, scale, bias, epsilon: float):
    """Normalises each group of a batch by its own mean and variance for each channel.

    x: [groups, rows, C]; scale, bias [C] in `wide`. Returns (y like x, mean [C], variance [C]: means over
    the groups). The variance is the biased one.
    """
    values = tf.cast(x, scale.dtype)
    mean = tf.reduce_mean(values, 1, keepdims=True)
    centred = values - mean
    variance = tf.reduce_mean(tf.square(centred), 1, keepdims=True)
    y = tf.cast(centred * (tf.math.rsqrt(variance + epsilon) * scale) + bias, x.dtype)
    return y, tf.reduce_mean(mean, (0, 1)), tf.reduce_mean(variance, (0, 1))


def fused_batch_norm(x, scale, bias, epsilon: float, groups: int):
    """`batch_moments_norm` of x [B, H, W, C] by the fused kernel: 2.5 times as fast on a CPU.

    Not for float64, nor under DTensor (no layout rule). Splitting along the rows copies nothing.
    """
    count = x.shape[0] // groups * x.shape[1] * x.shape[2]
    pieces, means, variances = [], [], []
    for piece in tf.split(x, groups) if groups > 1 else [x]:
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=piece, scale=scale, offset=bias, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        pieces.append(y)
        means.append(mean)
        variances.append(variance * ((count - 1) / count))  # the kernel reports the unbiased variance
    y = tf.concat(pieces, 0) if groups > 1 else pieces[0]
    return y, tf.add_n(means) / groups, tf.add_n(variances) / groups


def depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """x [B, H, W, C], kernel [k, k, C, 1], padding 'SAME' -> [B, ceil(H / stride), ceil(W / stride), C]."""
    return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")


def sharded_depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """`depthwise_conv` with gradients written out: the native ones have no DTensor layout rule.

    With p rows of padding before the picture, y[o] = sum_t x[o s + t - p] w[t], so
    dx[h] = sum_t dy[(h + p - t) / s] w[t]: a convolution of dy, spread out with zeros, by the turned kernel; and
    dw[t] = sum_o x[o s + t - p] dy[o]: one product with shifted rows for each t. Columns alike.
    """

    @tf.custom_gradient
    def computed(x, kernel):
        side = kernel.shape[0]
        outputs = [-(-size // stride) for size in x.shape[1:3]]
        total = [max((o - 1) * stride + side - h, 0) for o, h in zip(outputs, x.shape[1:3])]
        before = [n // 2 for n in total]

        def gradient(dy):
            spread, pads = dy, []
            for axis, (o, h, p) in enumerate(zip(outputs, x.shape[1:3], before), 1):
                shape = list(spread.shape)
                if stride > 1:
                    spread = tf.reshape(spread, (-1, *shape[1 : axis + 1], 1, *shape[axis + 1 :]))
                    spread = tf.pad(spread, [(0, stride - 1 if a == axis + 1 else 0) for a in range(5)])
                    shape[axis] *= stride
                    spread = tf.reshape(spread, (-1, *shape[1:]))
                left = side - 1 - p
                pads.append((left, h + side - 1 - left - ((o - 1) * stride + 1)))
            spread = spread[:, : (outputs[0] - 1) * stride + 1, : (outputs[1] - 1) * stride + 1, :]
            spread = tf.pad(spread, [(0, 0), *pads, (0, 0)])
            turned = tf.gather(
                tf.gather(kernel, np.arange(side)[::-1], axis=0), np.arange(side)[::-1], axis=1
            )
            dx = tf.nn.depthwise_conv2d(spread, turned, (1, 1, 1, 1), "VALID")

            padded = tf.pad(x, [(0, 0), *((p, t - p) for p, t in zip(before, total)), (0, 0)])
            ends = [(o - 1) * stride + 1 for o in outputs]
            parts = []
            for i, j in np.ndindex(side, side):
                rows = padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride, :]
                product = tf.cast(rows, wide(x.dtype)) * tf.cast(dy, wide(x.dtype))
                parts.append(tf.reduce_sum(product, (0, 1, 2)))
            dw = tf.reshape(tf.concat(parts, 0), kernel.shape)
            return dx, tf.cast(dw, kernel.dtype)

        return depthwise_conv(x, kernel, stride), gradient

    return computed(x, kernel)


def sharded_silu(x: tf.Tensor) -> tf.Tensor:
    """x sigmoid(x). tf.nn.silu carries a scalar through a custom gradient, which DTensor misplaces in a loop."""
    return x * tf.sigmoid(x)


def max_pool(x: tf.Tensor) -> tf.Tensor:
    """2 x 2 maximum, stride 2, padding 'SAME': [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return tf.nn.max_pool2d(x, 2, 2, "SAME")


def average_pool(x: tf.Tensor) -> tf.Tensor:
    """2 x 2 mean, stride 2, padding 'SAME' (the mean is over the positions inside the picture)."""
    return _average_pool(x)


@tf.custom_gradient
def _average_pool(x):
    height, width, channels = x.shape[1:]
    pooled_height, pooled_width = -(-height // 2), -(-width // 2)

    def gradient(dy):
        # Each position of a window receives dy / (positions inside the picture). Written with reshape and
        # broadcast: AvgPoolGrad has no DTensor layout rule.
        counts = _window_counts(height)[:, None, None] * _window_counts(width)[None, :, None]
        shares = dy * tf.constant(1.0 / counts, dy.dtype)
        shares = tf.reshape(shares, (-1, pooled_height, 1, pooled_width, 1, channels))
        spread = tf.tile(shares, (1, 1, 2, 1, 2, 1))
        spread = tf.reshape(spread, (-1, 2 * pooled_height, 2 * pooled_width, channels))
        return spread[:, :height, :width]

    return tf.nn.avg_pool2d(x, 2, 2, "SAME"), gradient


def _window_counts(size: int) -> np.ndarray:
    counts = np.full(-(-size // 2), 2.0)
    counts[-1] -= size % 2
    return counts


def subsample(x: tf.Tensor, stride: int) -> tf.Tensor:
    """Every stride-th row and column: what a strided 1 x 1 convolution reads."""
    return x if stride == 1 else x[:, ::stride, ::stride, :]


def unit_rows(x: tf.Tensor, epsilon: float = 1e-24) -> tf.Tensor:
    """Rows divided by their 2-norm, in at least float32. A row of zeros stays zero."""
    x = tf.cast(x, wide(x.dtype))
    return x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(x), -1, keepdims=True), epsilon))


@tf.custom_gradient
def embed(table, ids):
    """Rows of table [V, D] by integer ids [B, T] -> [B, T, D]. The table's gradient is dense, [V, D]."""

    def gradient(dy):
        # Summed in at least float32: sums of a frequent token's rows stand still in bfloat16.
        rows = tf.cast(tf.reshape(dy, (-1, table.shape[1])), wide(dy.dtype))
        sums = tf.math.unsorted_segment_sum(rows, tf.reshape(ids, (-1,)), table.shape[0])
        return tf.cast(sums, table.dtype), None

    return tf.gather(table, ids), gradient


def attend(query, key, value, heads: int, bias: tf.Tensor | None) -> tf.Tensor:
    """Multi-head attention of rows that are already projected.

    query, key, value: [B, T, heads x d]. bias: added to the logits, broadcastable to [B, heads, T, T], or
    None. Returns [B, T, heads x d]. The softmax is taken in at least float32.
    """
    length, width = query.shape[1], query.shape[2]
    depth = width // heads

    def split(x):
        return tf.transpose(tf.reshape(x, (-1, length, heads, depth)), (0, 2, 1, 3))

    logits = tf.matmul(split(query * depth**-0.5), split(key), transpose_b=True)
    logits = tf.cast(logits, wide(logits.dtype))
    if bias is not None:
        logits = logits + tf.cast(bias, logits.dtype)
    weights = tf.cast(tf.nn.softmax(logits), value.dtype)
    mixed = tf.transpose(tf.matmul(weights, split(value)), (0, 2, 1, 3))
    return tf.reshape(mixed, (-1, length, width))
