"""The towers' blocks in float64 NumPy, written from the formulas, window by window."""

import math

import numpy as np


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, p, path, epsilon=1e-5):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * p[f"{path}/scale"] + p[f"{path}/bias"]


def batch_norm(x, p, path, group=None, epsilon=1e-3):
    """group None: by the moving statistics; else by the statistics of each group of rows."""
    if group is None:
        mean, variance = p[f"{path}/moving_mean"], p[f"{path}/moving_variance"]
        return (x - mean) / np.sqrt(variance + epsilon) * p[f"{path}/scale"] + p[f"{path}/bias"]
    parts = []
    for start in range(0, len(x), group):
        part = x[start : start + group]
        mean, variance = part.mean((0, 1, 2)), part.var((0, 1, 2))
        parts.append((part - mean) / np.sqrt(variance + epsilon) * p[f"{path}/scale"] + p[f"{path}/bias"])
    return np.concatenate(parts)


def dense(x, p, path):
    y = x @ p[f"{path}/kernel"]
    return y + p[f"{path}/bias"] if f"{path}/bias" in p else y


def same_padding(size, kernel, stride):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def windows(x, kernel, stride, fill):
    """Every window of a map, padding 'SAME': yields (row, column, [B, kernel, kernel, C])."""
    top, bottom = same_padding(x.shape[1], kernel, stride)
    left, right = same_padding(x.shape[2], kernel, stride)
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    for i in range(-(-x.shape[1] // stride)):
        for j in range(-(-x.shape[2] // stride)):
            rows, columns = i * stride, j * stride
            yield i, j, padded[:, rows : rows + kernel, columns : columns + kernel]


def _assemble(x, kernel, stride, fill, channels, function):
    y = np.zeros((len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), channels))
    for i, j, window in windows(x, kernel, stride, fill):
        y[:, i, j] = function(window)
    return y


def conv(x, kernel, stride):
    return _assemble(x, 3, stride, 0.0, kernel.shape[3], lambda w: np.einsum("bhwc,hwcd->bd", w, kernel))


def depthwise(x, kernel, stride):
    k = kernel[..., 0]
    return _assemble(x, 3, stride, 0.0, x.shape[3], lambda w: np.einsum("bhwc,hwc->bc", w, k))


def max_pool(x):
    return _assemble(x, 2, 2, -np.inf, x.shape[3], lambda w: w.max((1, 2)))


def average_pool(x):
    return _assemble(x, 2, 2, np.nan, x.shape[3], lambda w: np.nanmean(w, (1, 2)))


def stem(x, p, path, norm):
    x = conv(x, p[f"{path}/conv0/kernel"], 2) + p[f"{path}/conv0/bias"]
    return conv(gelu(norm(x, p, f"{path}/norm1")), p[f"{path}/conv1/kernel"], 1) + p[f"{path}/conv1/bias"]


def mbconv(x, p, path, norm, stride, downsample="expand", pool=average_pool):
    first, second = (stride, 1) if downsample == "expand" else (1, stride)
    y = dense(norm(x, p, f"{path}/pre_norm")[:, ::first, ::first], p, f"{path}/expand")
    y = gelu(norm(y, p, f"{path}/expand_norm"))
    y = depthwise(y, p[f"{path}/depthwise/kernel"], second)
    y = gelu(norm(y, p, f"{path}/depthwise_norm"))
    hidden = dense(y.mean((1, 2)), p, f"{path}/squeeze")
    gate = sigmoid(dense(hidden * sigmoid(hidden), p, f"{path}/excite"))
    y = dense(y * gate[:, None, None], p, f"{path}/shrink")
    shortcut = pool(x) if stride == 2 else x
    if f"{path}/shortcut/kernel" in p:
        shortcut = dense(shortcut, p, f"{path}/shortcut")
    return shortcut + y


def attention(x, p, path, heads, bias):
    """x [B, T, C]; bias [B or 1, heads, T, T]; one head at a time."""
    q, k, v = (dense(x, p, f"{path}/{name}") for name in ("query", "key", "value"))
    depth = q.shape[-1] // heads
    mixed = np.zeros_like(v)
    for h in range(heads):
        part = slice(h * depth, (h + 1) * depth)
        logits = q[..., part] @ k[..., part].transpose(0, 2, 1) / math.sqrt(depth) + bias[:, h]
        mixed[..., part] = softmax(logits) @ v[..., part]
    return dense(mixed, p, f"{path}/output")


def relative_bias(table, height, width):
    """[heads, 2H-1, 2W-1] -> [1, heads, HW, HW], by four loops."""
    bias = np.zeros((1, len(table), height * width, height * width))
    for i in range(height):
        for j in range(width):
            for m in range(height):
                for n in range(width):
                    bias[0, :, i * width + j, m * width + n] = table[:, i - m + height - 1, j - n + width - 1]
    return bias


def relative_transformer(x, p, path, heads, stride, pool=max_pool):
    y, shortcut = layer_norm(x, p, f"{path}/attention_norm"), x
    if stride == 2:
        y, shortcut = pool(y), pool(shortcut)
    if f"{path}/shortcut/kernel" in p:
        shortcut = dense(shortcut, p, f"{path}/shortcut")
    rows, height, width, channels = y.shape
    bias = relative_bias(p[f"{path}/attention/relative_bias"], height, width)
    y = attention(y.reshape(rows, height * width, channels), p, f"{path}/attention", heads, bias)
    x = shortcut + y.reshape(rows, height, width, -1)
    return x + ffn(layer_norm(x, p, f"{path}/ffn_norm"), p, path)


def ffn(x, p, path):
    return dense(gelu(dense(x, p, f"{path}/ffn_in")), p, f"{path}/ffn_out")


def text_tower(ids, p, layers, heads):
    mask = (ids != 0).astype(np.float64)
    x = p["embedding/tokens"][ids] + p["embedding/positions"][: ids.shape[1]]
    bias = np.where(mask[:, None, None, :] > 0, 0.0, -1e9)
    bias = np.broadcast_to(bias, (len(ids), heads, 1, ids.shape[1]))
    for i in range(layers):
        path = f"block{i}"
        x = x + attention(layer_norm(x, p, f"{path}/attention_norm"), p, f"{path}/attention", heads, bias)
        x = x + ffn(layer_norm(x, p, f"{path}/ffn_norm"), p, path)
    y = layer_norm(x, p, "features/norm")
    return (y * mask[:, :, None]).sum(1) / np.maximum(mask.sum(1, keepdims=True), 1.0)
