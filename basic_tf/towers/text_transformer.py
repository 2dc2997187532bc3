"""The text tower of BASIC: a pre-LN bidirectional Transformer with a masked mean over its top layer."""

import tensorflow as tf

from basic_tf.towers import ops
from basic_tf.towers.layers import Block, Dense, LayerNorm, dropout, stochastic_depth
from basic_tf.towers.tower import Tower

# Layers, width and head width of the paper's text towers (basic_paper 1.1; confidence medium to high).
VARIANTS = {
    "basic_s": {"layers": 6, "width": 1024, "heads": 16},
    "basic_m": {"layers": 12, "width": 1024, "heads": 8},
    "basic_l": {"layers": 12, "width": 2048, "heads": 16},
}


class Embedding(Block):
    """Token ids [B, T] -> (vectors [B, T, D], mask [B, T]); token plus learned position."""

    def __init__(self, path, vocabulary_size, length, width, rate=0.0, dtype=None, remat="none"):
        super().__init__(path, dtype, remat)
        self.length, self.rate = length, rate
        self.declare("tokens", (vocabulary_size, width))
        self.declare("positions", (length, width))

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        x = ops.embed(self.weight("tokens"), state) + self.weight("positions")[: state.shape[1]]
        mask = tf.cast(tf.not_equal(state, 0), self.wide_dtype)
        return (dropout(x, self.rate, self.block_path, training, noise), mask), []

    def multiply_adds(self, length: int) -> int:
        """Look-ups are not counted."""
        return 0


class TextBlock(Block):
    """x <- x + Attention(LN(x)), then x <- x + FFN(LN(x)); padding is never attended to."""

    def __init__(
        self, path, width, heads, *, expansion=4, dropout_rate=0.0, drop_rate=0.0, layer_norm_epsilon=1e-5,
        dtype=None, remat="none",
    ):  # fmt: skip
        super().__init__(path, dtype, remat)
        self.width, self.inner, self.heads = width, expansion * width, heads
        self.dropout_rate, self.drop_rate = dropout_rate, drop_rate
        self.attention_norm = self.child(
            LayerNorm(f"{path}/attention_norm", width, layer_norm_epsilon, dtype)
        )
        self.query = self.child(Dense(f"{path}/attention/query", width, width, dtype=dtype))
        self.key = self.child(Dense(f"{path}/attention/key", width, width, dtype=dtype))
        self.value = self.child(Dense(f"{path}/attention/value", width, width, dtype=dtype))
        self.output_projection = self.child(Dense(f"{path}/attention/output", width, width, dtype=dtype))
        self.ffn_norm = self.child(LayerNorm(f"{path}/ffn_norm", width, layer_norm_epsilon, dtype))
        self.ffn_in = self.child(Dense(f"{path}/ffn_in", width, self.inner, dtype=dtype))
        self.ffn_out = self.child(Dense(f"{path}/ffn_out", self.inner, width, dtype=dtype))

    def apply(self, state, training=False, noise=None):
        """(x [B, T, D], mask [B, T]) -> the same."""
        x, mask = state
        # A row of padding alone attends evenly to its padding: finite, and the masked mean drops it.
        bias = tf.expand_dims(tf.expand_dims((mask - 1.0) * 1e9, 1), 1)  # [B, 1, 1, T]
        attention, ffn = f"{self.block_path}/attention", f"{self.block_path}/ffn"

        def projections(x):
            y = self.attention_norm.standardize(x)
            return tuple(part.project(y, self.attention_norm) for part in (self.query, self.key, self.value))

        def mix(query, key, value):
            return self.output_projection.project(ops.attend(query, key, value, self.heads, bias))

        y = self.region(mix, *self.region(projections, x))
        y = dropout(y, self.dropout_rate, attention, training, noise)
        x = x + stochastic_depth(y, self.drop_rate, attention, training, noise)
        y = self.region(lambda x: self.ffn_in.project(self.ffn_norm.standardize(x), after=self.ffn_norm), x)
        y = self.region(lambda y: self.ffn_out.project(ops.gelu(y)), y)
        y = dropout(y, self.dropout_rate, ffn, training, noise)
        return (x + stochastic_depth(y, self.drop_rate, ffn, training, noise), mask), []

    def multiply_adds(self, length: int) -> int:
        """Multiply-adds of one example."""
        return length * self.width * (4 * self.width + 2 * length + 2 * self.inner)


class MaskedMean(Block):
    """Final LN, then the mean over the positions that are not padding: [B, D] in at least float32."""

    def __init__(self, path, width, epsilon=1e-5, dtype=None, remat="none"):
        super().__init__(path, dtype, remat)
        self.norm = self.child(LayerNorm(f"{path}/norm", width, epsilon, dtype))

    def apply(self, state, training=False, noise=None):
        """See `Block.apply`."""
        x, mask = state
        y = self.norm.normalize(tf.cast(x, self.wide_dtype))
        count = tf.maximum(tf.reduce_sum(mask, 1, keepdims=True), 1.0)
        return tf.reduce_sum(y * tf.expand_dims(mask, 2), 1) / count, []

    def multiply_adds(self, length: int) -> int:
        """Nothing that is counted."""
        return 0


class TextTransformer(Tower):
    """Token ids [B, T] int32, 0 = padding, T <= length -> features [B, width].

    Args:
      variant: 'basic_s', 'basic_m' or 'basic_l' gives layers, width and heads where they are not given
        themselves.
      vocabulary_size: rows of the token table.
      length: the most tokens a text may have.
      width, layers, heads: the Transformer; `head_dim` may be given instead of `heads`.
      expansion: FFN width in units of `width`.
      dropout: rate after the embedding, the attention and the FFN.
      stochastic_depth: block i of n drops its branches at rate * i / n.
      remat, dtype, seed, initializer: as for `CoAtNet`.
    """

    def __init__(
        self,
        variant: str = "basic_s",
        vocabulary_size: int = 32000,
        length: int = 64,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        head_dim: int | None = None,
        expansion: int = 4,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_norm_epsilon: float = 1e-5,
        remat: str = "none",
        dtype: str | None = None,
        seed: int = 0,
        initializer: str = "normal",
        name: str = "text_transformer",
    ):
        super().__init__(dtype=dtype, seed=seed, initializer=initializer, remat=remat, name=name)
        if variant not in VARIANTS:
            raise ValueError(f"text variant {variant!r} is unknown; expected one of {', '.join(VARIANTS)}")
        chosen = VARIANTS[variant]
        width = chosen["width"] if width is None else width
        layers = chosen["layers"] if layers is None else layers
        if heads is None:
            heads = width // head_dim if head_dim else max(1, width // (chosen["width"] // chosen["heads"]))
        if width % heads:
            raise ValueError(
                f"width {width} is no multiple of {heads} heads; choose heads or head_dim that divide it"
            )
        for option, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{option} is {rate}; expected a rate in [0, 1)")
        self.length, self.vocabulary_size, self.output_width = length, vocabulary_size, width
        policy = self.dtype_policy
        self.blocks = [
            Embedding("embedding", vocabulary_size, length, width, dropout, dtype=policy, remat=remat),
            *[
                TextBlock(
                    f"block{i}",
                    width,
                    heads,
                    expansion=expansion,
                    dropout_rate=dropout,
                    drop_rate=stochastic_depth * i / layers,
                    layer_norm_epsilon=layer_norm_epsilon,
                    dtype=policy,
                    remat=remat,
                )
                for i in range(layers)
            ],
            MaskedMean("features", width, layer_norm_epsilon, dtype=policy, remat=remat),
        ]

    def encode_inputs(self, inputs):
        """Checks the token ids."""
        ids = tf.convert_to_tensor(inputs)
        if (
            not ids.dtype.is_integer
            or ids.shape.rank != 2
            or ids.shape[1] is None
            or ids.shape[1] > self.length
        ):
            raise ValueError(
                f"token ids are {ids.dtype.name} {tuple(ids.shape)}; expected integers [B, T] with T at most "
                f"{self.length}"
            )
        return ids

    def multiply_adds(self, length: int | None = None) -> dict[str, int]:
        """Multiply-adds of one example's forward pass: block path -> count (times 2 for FLOPs)."""
        return {block.block_path: block.multiply_adds(length or self.length) for block in self.blocks}
