"""The real towers at test size (about 0.5M parameters): every block type, dropout and stochastic depth on."""

import numpy as np
import tensorflow as tf

from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_table import CoAtNetTable
from basic_tf.towers.dual_encoder import DualEncoder
from basic_tf.towers.text_transformer import TextTransformer

TABLE = CoAtNetTable(
    (2, 8), (("mbconv", 1, 8), ("mbconv", 1, 16), ("attention", 1, 32), ("attention", 1, 32)), head_dim=16
)
SIDE, TOKENS, VOCABULARY = 32, 6, 50


def tiny_model(
    dtype="float64",
    batch_norm="ghost",
    remat="none",
    seed=0,
    ghost_size=2,
    table=TABLE,
    side=SIDE,
    initializer="normal",
) -> DualEncoder:
    """A built model; its biases, gates and statistics are moved off their initial zeros and ones."""
    image = CoAtNet(
        table,
        image_size=side,
        stochastic_depth=0.1,
        batch_norm=batch_norm,
        ghost_size=ghost_size,
        remat=remat,
        dtype=dtype,
        seed=seed,
        initializer=initializer,
    )
    text = TextTransformer(
        vocabulary_size=VOCABULARY,
        length=TOKENS,
        width=32,
        layers=2,
        heads=2,
        dropout=0.1,
        stochastic_depth=0.1,
        remat=remat,
        dtype=dtype,
        seed=seed,
        initializer=initializer,
    )
    model = DualEncoder(image, text, embedding_dim=16, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for variable in model.parameters().values():
        noise = rng.normal(0, 0.05, variable.shape)
        variable.assign(np.asarray(variable) + (np.abs(noise) if "variance" in variable.path else noise))
    return model


def random_batch(pairs: int, seed: int = 0, side: int = SIDE):
    """(images uint8 [B, side, side, 3], token ids int32 [B, 6] with padding)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (pairs, side, side, 3), np.uint8)
    ids = rng.integers(1, VOCABULARY, (pairs, TOKENS))
    ids[np.arange(TOKENS)[None] >= rng.integers(1, TOKENS + 1, pairs)[:, None]] = 0
    return tf.constant(images), tf.constant(ids, tf.int32)
