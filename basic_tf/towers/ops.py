"""The primitive operations of the towers, as functions of tensors.

Every function computes in the type of its input, except statistics (means, variances, softmax), which are taken in at
least float32: bfloat16 and float16 inputs are widened for them, float64 stays float64.
"""

import math

import numpy as np
import tensorflow as tf

_GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def wide(dtype) -> tf.DType:
    """The type for statistics: at least float32."""
    dtype = tf.as_dtype(dtype)
    return dtype if dtype == tf.float64 else tf.float32


def dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """x [..., C] times kernel [C, D], plus bias [D]: one matrix product over all leading dimensions together."""
    shape = x.shape
    rows = x if shape.rank == 2 else tf.reshape(x, (-1, shape[-1]))
    y = tf.matmul(rows, kernel)
    if bias is not None:
        y = tf.nn.bias_add(y, bias)
    return y if shape.rank == 2 else tf.reshape(y, (*leading_shape(x), kernel.shape[-1]))


def leading_shape(x: tf.Tensor) -> tuple:
    """All dimensions but the last; the first may be unknown until run time (then -1)."""
    return tuple(-1 if size is None else size for size in x.shape[:-1])


def gelu(x: tf.Tensor) -> tf.Tensor:
    """GELU by its tanh approximation, 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    return _gelu(x)


@tf.custom_gradient
def _gelu(x):
    # TensorFlow's own approximate GELU is a chain of ten element-wise kernels whose gradient keeps most of them. Here the
    # gradient keeps x alone; the rest is recomputed.
    square = tf.square(x)
    gate = tf.sigmoid(x * (square * (_GELU_SLOPE * _GELU_CUBIC) + _GELU_SLOPE))

    def gradient(dy):
        square = tf.square(x)
        gate = tf.sigmoid(x * (square * (_GELU_SLOPE * _GELU_CUBIC) + _GELU_SLOPE))
        slope = square * (3.0 * _GELU_SLOPE * _GELU_CUBIC) + _GELU_SLOPE
        return dy * (gate + x * slope * gate * (1.0 - gate))

    return x * gate, gradient


def layer_norm(x: tf.Tensor, scale: tf.Tensor, bias: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last dimension; scale and bias [C] in `wide`."""
    values = tf.cast(x, wide(x.dtype))
    mean = tf.reduce_mean(values, -1, keepdims=True)
    centred = values - mean
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return tf.cast(centred * tf.math.rsqrt(variance + epsilon) * scale + bias, x.dtype)


def depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """x [B, H, W, C], kernel [k, k, C, 1], padding 'SAME' -> [B, ceil(H / stride), ceil(W / stride), C]."""
    return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")


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
        # Each position of a window receives dy / (positions inside the picture). Written with reshape and broadcast:
        # AvgPoolGrad has no DTensor layout rule.
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
        rows = tf.reshape(dy, (-1, table.shape[1]))
        return tf.math.unsorted_segment_sum(rows, tf.reshape(ids, (-1,)), table.shape[0]), None

    return tf.gather(table, ids), gradient


def attend(query, key, value, heads: int, bias: tf.Tensor | None) -> tf.Tensor:
    """Multi-head attention of rows that are already projected.

    query, key, value: [B, T, heads x d]. bias: added to the logits, broadcastable to [B, heads, T, T], or None.
    Returns [B, T, heads x d]. The softmax is taken in at least float32.
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
