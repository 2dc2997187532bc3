"""The contrastive loss of a very large batch, tile by tile (BASIC, arXiv 2111.10050, sections 3 and 5).

With unit rows F (images) and G (texts), s the inverse temperature and A = s F G^T,

    loss = (1 / 2B) sum_i [(r_i - A_ii) + (c_i - A_ii)]
    r_i = log sum_j exp A_ij,   c_j = log sum_i exp A_ij

The B x B matrix A never exists: pass A walks over tiles of it and keeps r and c; pass B computes each tile
again and turns it into its share of both gradients. With P = exp(A - r), Q = exp(A - c^T) and
dA = (P + Q - 2I) / 2B,

    dF = s dA G,   dG = s dA^T F,   dloss / dlog s = sum dA * A = sum_i <F_i, dF_i>

so the temperature is free. That is four products of B x B x D against three of the dense form, and memory
O(B D + tile) against O(B^2).

Under data parallelism each replica holds L = B / replicas rows of both embeddings. It sets its own image rows
against the gathered text columns; the column sums of the replicas are added up between the passes, the
partial dG after them. Every collective is called here by hand, outside loops, and none is ever
differentiated.
"""

import math
from typing import NamedTuple, Protocol

import tensorflow as tf

from basic_tf.contrastive.tiles import Tiles, pass_a, pass_b, rows_of
from basic_tf.precision import wide

DEFAULT_TILE = 2048


class Collectives(Protocol):
    """What a data-parallel runtime offers. None of it may be called inside a loop."""

    replicas: int

    def replica_index(self) -> tf.Tensor:
        """int32 scalar: which replica this is."""

    def all_gather(self, x: tf.Tensor) -> tf.Tensor:
        """The rows of all replicas, [replicas * n, ...], in the order of the replicas."""

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        """The sum over replicas, the same tensor on each."""


class OneReplica:
    """The collectives of a single replica."""

    replicas = 1

    def replica_index(self) -> tf.Tensor:
        """int32 scalar 0."""
        return tf.constant(0, tf.int32)

    def all_gather(self, x: tf.Tensor) -> tf.Tensor:
        """`x` itself, under another name: a tape that watches both must not count twice."""
        return tf.identity(x)

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        """`x` itself."""
        return tf.identity(x)


class LossAndGradients(NamedTuple):
    """The loss over the global batch and what flows back into this replica's rows.

    loss: scalar, equal on all replicas. image_embeddings, text_embeddings: [L, D], d loss / d own rows.
    log_inverse_temperature: scalar, this replica's share: the sum over replicas is the gradient.
    metrics: scalars over the global batch, equal on all replicas: image_to_text_accuracy and
    text_to_image_accuracy (is no other of the batch nearer than the own partner? Equal captions tie, and count
    for it; so all count where every embedding is the same, and the loss, log B, tells) and positive_similarity
    (mean cosine of the pairs).
    """

    loss: tf.Tensor
    image_embeddings: tf.Tensor
    text_embeddings: tf.Tensor
    log_inverse_temperature: tf.Tensor
    metrics: dict[str, tf.Tensor]


class _Problem:
    """One evaluation of the loss: pass A at once, pass B when the gradient is asked for."""

    def __init__(self, images, texts, log_scale, tile, label_smoothing, max_scale, precision, collectives):
        self.collectives = collectives = collectives or OneReplica()
        self.images = images
        self.dtype = dtype = wide(images.dtype, texts.dtype)
        product = tf.bfloat16 if precision == "bfloat16" else dtype
        log_scale = tf.cast(log_scale, dtype)
        self.below_bound = tf.constant(True)
        if max_scale is not None:
            bound = tf.constant(math.log(max_scale), dtype)
            self.below_bound = log_scale <= bound
            log_scale = tf.minimum(log_scale, bound)
        self.scale = tf.exp(log_scale)
        self.all_texts = collectives.all_gather(texts) if collectives.replicas > 1 else texts
        self.local = rows_of(images)
        first_row = collectives.replica_index() * self.local if collectives.replicas > 1 else 0
        self.first_row = first_row
        self.batch = tf.cast(rows_of(self.all_texts), dtype)
        self.smooth = label_smoothing > 0  # without smoothing its terms are left out: two copies [B, D] less
        self.smoothing = tf.constant(label_smoothing, dtype)
        self.tiles = Tiles(images, self.all_texts, self.scale, first_row, tile, dtype, product)
        self._choose_shift(texts)
        self._forward()

    def _own(self, x: tf.Tensor) -> tf.Tensor:
        """This replica's rows of a tensor over the global batch."""
        return x[self.first_row : self.first_row + self.local] if self.collectives.replicas > 1 else x

    def _choose_shift(self, texts) -> None:
        """One offset K for every exp(A_ij - K) of the batch, and whether it is provably safe.

        Every row and column holds its positive, so every log-sum-exp is at least d = min_i A_ii; by
        Cauchy-Schwarz no logit exceeds b = s max|F_i| max|G_j|. With M the logarithm of the largest float
        (88.7 in float32) and K = min(b, d + 0.62 M): no sum is below exp(-0.62 M), beside which all that
        underflows is less than one rounding, and nothing overflows if b - K + log B < M - 2. In float32
        that covers any batch of unit rows up to s = 64, and s = 100 unless a pair has a cosine below
        about -0.28. Otherwise the maxima are streamed.
        """
        images = tf.cast(self.images, self.dtype)
        texts = tf.cast(texts, self.dtype)
        positives = tf.reduce_sum(images * texts, 1)
        mine = tf.stack(
            [
                -tf.reduce_min(positives),
                tf.reduce_max(tf.norm(images, axis=1)),
                tf.reduce_max(tf.norm(texts, axis=1)),
            ]
        )
        if self.collectives.replicas > 1:
            mine = tf.reduce_max(self.collectives.all_gather(mine[tf.newaxis]), 0)
        largest = math.log(self.dtype.max)
        self.similarities = positives
        slack = tf.constant(1.01, self.dtype)  # for products rounded to bfloat16
        lowest, bound = (
            -mine[0] * self.scale - (slack - 1) * self.scale,
            slack * self.scale * mine[1] * mine[2],
        )
        self.shift = tf.minimum(bound, lowest + 0.62 * largest)
        self.safe = bound - self.shift + tf.math.log(self.batch) < largest - 2

    def _forward(self) -> None:
        collectives, tiles = self.collectives, self.tiles
        found = tf.cond(self.safe, lambda: pass_a(tiles, self.shift), lambda: pass_a(tiles, None))
        rows, columns, positives = found.row_logsumexp, found.column_logsumexp, found.positives
        i2t = found.positives >= found.row_maximum
        if collectives.replicas > 1:
            all_positives = collectives.all_gather(positives)
            beaten = collectives.sum(tf.cast(found.column_maximum > all_positives, self.dtype))
            t2i = self._own(beaten) == 0
            # log-sum-exp over replicas by sums alone: in float64 exp(c - top) reaches down to c = top - 700.
            top = tf.reduce_max(collectives.all_gather(tf.reduce_max(columns)[tf.newaxis]))
            total = collectives.sum(tf.exp(tf.cast(columns, tf.float64) - tf.cast(top, tf.float64)))
            columns = tf.cast(tf.math.log(total) + tf.cast(top, tf.float64), self.dtype)
        else:
            t2i = positives >= found.column_maximum
        self.rows, self.columns = rows, columns
        loss = tf.reduce_sum(rows) + tf.reduce_sum(self._own(columns))
        loss -= 2 * (1 - self.smoothing) * tf.reduce_sum(positives)
        if self.smooth:
            # Label smoothing puts a / B on every pair of a row or column: the sum of all logits
            # is s <sum F, sum G>.
            self.image_sum = tf.reduce_sum(tf.cast(self.images, self.dtype), 0)
            self.text_sum = tf.reduce_sum(tf.cast(self.all_texts, self.dtype), 0)
            all_logits = self.scale * tf.reduce_sum(self.image_sum * self.text_sum)
            loss -= 2 * self.smoothing / self.batch * all_logits
        counts = [tf.reduce_sum(tf.cast(x, self.dtype)) for x in (i2t, t2i)]
        values = tf.stack([loss / 2, *counts, tf.reduce_sum(self.similarities)]) / self.batch
        values = collectives.sum(values) if collectives.replicas > 1 else values
        self.loss = values[0]
        names = ("image_to_text_accuracy", "text_to_image_accuracy", "positive_similarity")
        self.metrics = dict(zip(names, tf.unstack(values[1:])))

    def gradients(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """d loss / d (own image rows, own text rows, log inverse temperature: this replica's share)."""
        factor, offsets = self.scale / (2 * self.batch), (None, None)
        if self.smooth:
            share = 2 * self.smoothing / self.batch
            offsets = share * self.text_sum, share * self.image_sum

        def run(shift):
            return pass_b(self.tiles, self.rows, self.columns, shift, 1 - self.smoothing, factor, offsets)

        images, texts = tf.cond(self.safe, lambda: run(self.shift), lambda: run(None))
        if self.collectives.replicas > 1:
            texts = self._own(self.collectives.sum(texts))
        log_scale = tf.reduce_sum(tf.cast(self.images, self.dtype) * images)
        return images, texts, tf.where(self.below_bound, log_scale, tf.zeros_like(log_scale))


def _check(images, texts, *options):
    if images.shape.rank != 2 or texts.shape.rank != 2 or not images.shape.is_compatible_with(texts.shape):
        raise ValueError(
            f"contrastive_loss expects image and text embeddings of one shape [B, D]; received "
            f"{images.shape} and {texts.shape}. Row i of both must belong to the same pair."
        )
    if images.shape[0] == 0:
        raise ValueError("contrastive_loss received an empty batch; it needs at least one pair.")
    check_options(*options)


def check_options(tile, label_smoothing, max_inverse_temperature, precision="float32") -> None:
    """Raises ValueError for options of `contrastive_loss` that make no sense, whatever the batch."""
    sizes = tile if isinstance(tile, tuple) else (tile, 1)
    if len(sizes) != 2 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(
            f"tile must be a positive integer, or two of them (rows, columns); received {tile!r}."
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1); received {label_smoothing}.")
    if max_inverse_temperature is not None and max_inverse_temperature <= 0:
        raise ValueError(
            f"max_inverse_temperature must be positive, or None; received {max_inverse_temperature}."
        )
    if precision not in ("float32", "bfloat16"):
        raise ValueError(
            f'precision of the products must be "float32" or "bfloat16"; received {precision!r}.'
        )


def contrastive_loss(
    image_embeddings,
    text_embeddings,
    log_inverse_temperature,
    tile: int | tuple[int, int] = DEFAULT_TILE,
    label_smoothing: float = 0.0,
    max_inverse_temperature: float | None = 100.0,
    precision: str = "float32",
    collectives: Collectives | None = None,
) -> tf.Tensor:
    """Two-direction softmax cross-entropy as in BASIC, the mean over the global batch.

    Differentiable in its first three arguments. Saves O(B x D + B) numbers for the gradient, never B x B.

    Args:
      image_embeddings: [L, D] unit rows, this replica's pairs. float64 stays float64 throughout; bfloat16 is
        summed in float32.
      text_embeddings: [L, D] unit rows; row i belongs to row i of the images.
      log_inverse_temperature: scalar log(1 / tau): a tensor or a variable.
      tile: rows of the logits computed at once; columns follow so that a tile stays near 16 MiB. Or (rows,
        columns). Neither has to divide the batch.
      label_smoothing: the share a of each target spread evenly over the batch: (1 - a) I + a / B.
      max_inverse_temperature: 1 / tau is cut off here (CLIP's bound), with the derivative of min: nothing
        above the bound. So clip the variable itself after each update, else it stays where it is. None: no
        bound.
      precision: "bfloat16" multiplies in bfloat16 and does the rest in float32.
      collectives: the runtime's data-parallel operations; None for a single replica.

    Returns:
      A scalar, equal on all replicas. Its gradient is d loss / d own rows, and for the temperature this
      replica's
      share: sum parameter gradients over replicas, with no other factor.

    Raises:
      ValueError: for shapes or options that make no sense.
    """
    image_embeddings, text_embeddings = (
        tf.convert_to_tensor(image_embeddings),
        tf.convert_to_tensor(text_embeddings),
    )
    log_inverse_temperature = tf.convert_to_tensor(log_inverse_temperature)
    options = tile, label_smoothing, max_inverse_temperature, precision
    _check(image_embeddings, text_embeddings, *options)

    @tf.custom_gradient
    def loss(images, texts, log_scale):
        problem = _Problem(images, texts, log_scale, *options, collectives)

        def gradient(upstream):
            inputs = images, texts, log_scale
            upstream = tf.cast(upstream, problem.dtype)
            return [tf.cast(upstream * g, x.dtype) for g, x in zip(problem.gradients(), inputs)]

        return problem.loss, gradient

    return loss(image_embeddings, text_embeddings, log_inverse_temperature)


def contrastive_loss_value_and_gradients(
    image_embeddings,
    text_embeddings,
    log_inverse_temperature,
    tile: int | tuple[int, int] = DEFAULT_TILE,
    label_smoothing: float = 0.0,
    max_inverse_temperature: float | None = 100.0,
    precision: str = "float32",
    collectives: Collectives | None = None,
) -> LossAndGradients:
    """`contrastive_loss` and its three gradients in one call, without a tape; the arguments are the same.

    Gradients come in the type of the sums: float64 for float64 embeddings, float32 otherwise.
    """
    images, texts = tf.convert_to_tensor(image_embeddings), tf.convert_to_tensor(text_embeddings)
    log_scale = tf.convert_to_tensor(log_inverse_temperature)
    options = tile, label_smoothing, max_inverse_temperature, precision
    _check(images, texts, *options)
    problem = _Problem(images, texts, log_scale, *options, collectives)
    return LossAndGradients(problem.loss, *problem.gradients(), problem.metrics)
