"""The dense forms: what the tiled loss and Algorithm 1 must equal. They exist in tests alone."""

import numpy as np
import tensorflow as tf

from basic_tf.randomness import Noise


def numpy_loss_and_gradients(images, texts, log_scale, label_smoothing=0.0):
    """float64 oracle from the formulas alone: (loss, dF, dG, d log scale)."""
    images, texts = np.asarray(images, np.float64), np.asarray(texts, np.float64)
    batch, scale = len(images), np.exp(np.float64(log_scale))
    logits = scale * images @ texts.T

    def logsumexp(x, axis):
        top = x.max(axis, keepdims=True)
        return top + np.log(np.exp(x - top).sum(axis, keepdims=True))

    rows, columns = logsumexp(logits, 1), logsumexp(logits, 0)
    targets = (1 - label_smoothing) * np.eye(batch) + label_smoothing / batch
    loss = (targets * (rows - logits)).sum() + (targets * (columns - logits)).sum()
    d_logits = (np.exp(logits - rows) + np.exp(logits - columns) - 2 * targets) / (2 * batch)
    d_images, d_texts = scale * d_logits @ texts, scale * d_logits.T @ images
    return loss / (2 * batch), d_images, d_texts, (d_logits * logits).sum()


def dense_loss(images, texts, log_scale, label_smoothing=0.0):
    """The B x B form in TensorFlow's own ops."""
    logits = tf.exp(log_scale) * tf.matmul(images, texts, transpose_b=True)
    batch = tf.shape(logits)[0]
    targets = (1 - label_smoothing) * tf.eye(batch, dtype=logits.dtype)
    targets += label_smoothing / tf.cast(batch, logits.dtype)
    rows = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    columns = tf.nn.softmax_cross_entropy_with_logits(targets, tf.transpose(logits))
    return (tf.reduce_mean(rows) + tf.reduce_mean(columns)) / 2


def full_batch_gradients(model, images, token_ids, noise_key=None, variables=None, label_smoothing=0.0):
    """(loss, gradients, statistics) of the whole batch under one tape with the dense loss.

    A tower of which no weight is among `variables` runs in inference mode, as Algorithm 1 runs it.
    """
    paths = {
        id(getattr(v, "value", v)) if hasattr(v, "path") else id(v): p for p, v in model.parameters().items()
    }
    variables = list(model.trainable_variables if variables is None else variables)
    tensors = [v.value if hasattr(v, "path") else v for v in variables]
    trained = [paths[id(t)].split("/")[0] for t in tensors]
    noise = None if noise_key is None else Noise(noise_key, tf.range(images.shape[0]))
    with tf.GradientTape() as tape:
        train = "image_tower" in trained
        image_rows, statistics = model.image_embeddings(images, train, noise if train else None)
        train = "text_tower" in trained
        text_rows, more = model.text_embeddings(token_ids, train, noise if train else None)
        log_scale = tf.convert_to_tensor(model.log_inverse_temperature)
        loss = dense_loss(image_rows, text_rows, log_scale, label_smoothing)
    gradients = tape.gradient(loss, tensors, unconnected_gradients="zero")
    return loss, [tf.convert_to_tensor(g) for g in gradients], [*statistics, *more]


def errors(found, expected) -> list[float]:
    """For each variable |difference| / max(|gradient|, 1e-3 x global norm), in 2-norms.

    Some gradients are exactly zero (a key's bias); the second term keeps them from being divided by nothing.
    """
    found, expected = [[np.asarray(x, np.float64) for x in xs] for xs in (found, expected)]
    overall = np.sqrt(sum((x**2).sum() for x in expected))
    assert overall > 0
    return [
        float(np.linalg.norm(f - e) / max(np.linalg.norm(e), 1e-3 * overall))
        for f, e in zip(found, expected, strict=True)
    ]


def exactness(found, expected) -> float:
    """The largest of the `errors`; NaN stays NaN."""
    return float(np.max(errors(found, expected)))
