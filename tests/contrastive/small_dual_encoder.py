"""A dual encoder small enough for any test, with every hazard of the real one: dropout, ghost BatchNorm,
embeddings."""

import numpy as np
import tensorflow as tf

from basic_tf import randomness

SIDE, CHANNELS, TOKENS, VOCABULARY, WIDTH, EMBEDDING = 4, 3, 5, 11, 7, 6


def dropped(x, rate, noise, stream):
    """Inverted dropout whose mask depends on the example's index in the global batch alone."""
    if noise is None or not rate:
        return x
    keep = randomness.uniform(noise, stream, tuple(x.shape[1:])) >= rate
    return tf.where(keep, x / tf.cast(1 - rate, x.dtype), tf.zeros([], x.dtype))


class SmallModel:
    """The methods of `DualEncoder` over two hidden layers per side.

    normalization: "ghost" (groups of `group` consecutive rows), "frozen" (moving statistics) or "none".
    """

    def __init__(self, dtype=tf.float64, normalization="ghost", group=2, rate=0.3, seed=0):
        rng = np.random.default_rng(seed)

        def weight(*shape):
            return tf.Variable(rng.normal(0, 0.5, shape), dtype=dtype)

        self.dtype, self.normalization, self.group, self.rate = dtype, normalization, group, rate
        self._parameters = {
            "image_tower/first": weight(SIDE * SIDE * CHANNELS, WIDTH),
            "image_tower/scale": weight(WIDTH),
            "image_tower/mean": tf.Variable(tf.zeros([WIDTH], dtype), trainable=False),
            "image_tower/variance": tf.Variable(tf.ones([WIDTH], dtype), trainable=False),
            "image_tower/second": weight(WIDTH, WIDTH),
            "text_tower/table": weight(VOCABULARY, WIDTH),
            "text_tower/second": weight(WIDTH, WIDTH),
            "image_projection/kernel": weight(WIDTH, EMBEDDING),
            "text_projection/kernel": weight(WIDTH, EMBEDDING),
            "log_inverse_temperature": tf.Variable(1.7, dtype=dtype),
        }
        self.calls = {"image": 0, "text": 0}

    def parameters(self):
        return dict(self._parameters)

    @property
    def trainable_variables(self):
        return [v for v in self._parameters.values() if v.trainable]

    @property
    def log_inverse_temperature(self):
        return self._parameters["log_inverse_temperature"]

    @property
    def statistic_variables(self):
        return [self._parameters["image_tower/mean"], self._parameters["image_tower/variance"]]

    def update_statistics(self, statistics):
        for variable, statistic in zip(self.statistic_variables, statistics, strict=bool(statistics)):
            variable.assign(0.9 * variable + 0.1 * statistic)

    def _normalized(self, x, training):
        if self.normalization == "none":
            return x, []
        if self.normalization == "ghost" and training:
            groups = tf.reshape(x, [-1, self.group, WIDTH])
            mean, variance = tf.nn.moments(groups, [1], keepdims=True)
            x = tf.reshape((groups - mean) / tf.sqrt(variance + 1e-3), [-1, WIDTH])
            return x, [tf.reduce_mean(mean, [0, 1]), tf.reduce_mean(variance, [0, 1])]
        mean, variance = self.statistic_variables
        return (x - mean) / tf.sqrt(variance + 1e-3), []

    def image_features(self, images, training=False, noise=None):
        self.calls["image"] += 1
        p = self._parameters
        x = tf.cast(images, self.dtype)
        x = x / 127.5 - 1 if images.dtype == tf.uint8 else x
        x = tf.reshape(x, [-1, SIDE * SIDE * CHANNELS]) @ p["image_tower/first"]
        x, statistics = self._normalized(x, training)
        x = dropped(tf.nn.gelu(x * p["image_tower/scale"]), self.rate, noise, "image_tower/dropout")
        return x + tf.tanh(x @ p["image_tower/second"]), statistics

    def text_features(self, token_ids, training=False, noise=None):
        self.calls["text"] += 1
        p = self._parameters
        x = tf.reduce_mean(tf.gather(p["text_tower/table"], token_ids), 1)
        x = dropped(tf.nn.gelu(x @ p["text_tower/second"]), self.rate, noise, "text_tower/dropout")
        return x, []

    def project_image(self, features):
        return self._unit(features @ self._parameters["image_projection/kernel"])

    def project_text(self, features):
        return self._unit(features @ self._parameters["text_projection/kernel"])

    @staticmethod
    def _unit(x):
        return x / tf.sqrt(tf.reduce_sum(x * x, 1, keepdims=True) + 1e-12)

    def image_embeddings(self, images, training=False, noise=None):
        features, statistics = self.image_features(images, training, noise)
        return self.project_image(features), statistics

    def text_embeddings(self, token_ids, training=False, noise=None):
        features, statistics = self.text_features(token_ids, training, noise)
        return self.project_text(features), statistics


def random_batch(pairs, seed=0):
    """(images uint8 [B, 4, 4, 3], token ids int32 [B, 5])."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (pairs, SIDE, SIDE, CHANNELS), np.uint8)
    return tf.constant(images), tf.constant(rng.integers(0, VOCABULARY, (pairs, TOKENS)), tf.int32)
