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
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

DEFAULT_TILE = 2048
_TILE_ELEMENTS = (
    1 << 22
)  # 16 MiB in float32: below the size at which malloc maps fresh, zeroed pages each time


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
    text_to_image_accuracy (is the own partner the nearest of the batch?) and positive_similarity (mean
    cosine of the pairs).
    """

    loss: tf.Tensor
    image_embeddings: tf.Tensor
    text_embeddings: tf.Tensor
    log_inverse_temperature: tf.Tensor
    metrics: dict[str, tf.Tensor]


class _Blocks(NamedTuple):
    """A dimension cut into `count` blocks of one `size`; the last one starts early enough to fit.

    Rows that the last block shares with its neighbour are `fresh` in one of them only: sums over blocks
    weigh by that. One size for all keeps shapes static, which XLA needs. Python ints, or int32 tensors where
    the shape is dynamic.
    """

    total: Any
    size: Any
    count: Any

    @property
    def even(self) -> bool:
        return isinstance(self.total, int) and self.size * self.count == self.total

    def start(self, block) -> Any:
        return block * self.size if self.even else tf.minimum(block * self.size, self.total - self.size)

    def fresh(self, block, dtype) -> tf.Tensor:
        """[size]: 1 for a row seen in this block for the first time, else 0."""
        if self.even:
            return tf.ones([self.size], dtype)
        return tf.cast(self.start(block) + tf.range(self.size) >= block * self.size, dtype)

    def rows(self, x: tf.Tensor, block) -> tf.Tensor:
        start = tf.concat([[self.start(block)], tf.zeros([x.shape.rank - 1], tf.int32)], 0)
        return tf.slice(x, start, [self.size, *([-1] * (x.shape.rank - 1))])

    def assemble(self, blocks: tf.Tensor) -> tf.Tensor:
        """[count, size, ...] -> [total, ...], each row once."""
        tail = tf.shape(blocks)[2:]
        if self.even:
            return tf.reshape(blocks, tf.concat([[self.total], tail], 0))
        head = (self.count - 1) * self.size
        first = tf.reshape(blocks[:-1], tf.concat([[head], tail], 0))
        return tf.concat([first, blocks[-1][self.size - (self.total - head) :]], 0)


def _split(total, tile: int) -> _Blocks:
    """Blocks of at most `tile` rows, as equal as they come, so that little is computed twice."""
    if isinstance(total, int):
        tile = max(1, min(tile, total))
        size = -(-total // -(-total // tile))
        return _Blocks(total, size, -(-total // size))
    tile = tf.maximum(1, tf.minimum(tile, total))
    size = -(-total // -(-total // tile))
    return _Blocks(total, size, -(-total // size))


def _rows_of(x: tf.Tensor):
    return x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]


class _Tiles:
    """The tiles of A = s F G^T: own image rows [L, D] against all text columns [B, D]."""

    def __init__(self, images, texts, scale, first_row, tile, accumulation, product):
        self.images, self.texts, self.scale, self.first_row = images, texts, scale, first_row
        self.accumulation, self.product = accumulation, product
        row_tile, column_tile = tile if isinstance(tile, tuple) else (tile, max(tile, _TILE_ELEMENTS // tile))
        self.rows, self.columns = _split(_rows_of(images), row_tile), _split(_rows_of(texts), column_tile)

    def image_rows(self, i, dtype=None) -> tf.Tensor:
        return tf.cast(self.rows.rows(self.images, i), dtype or self.accumulation)

    def text_rows(self, j, dtype=None) -> tf.Tensor:
        return tf.cast(self.columns.rows(self.texts, j), dtype or self.accumulation)

    def multiply(self, a, b, **transpose) -> tf.Tensor:
        return tf.cast(tf.matmul(a, b, **transpose), self.accumulation)

    def logits(self, scaled_rows, j) -> tf.Tensor:
        return self.multiply(scaled_rows, self.text_rows(j, self.product), transpose_b=True)

    def diagonal(self, i, j) -> tuple[tf.Tensor, tf.Tensor]:
        """Where the positives of row block i lie in column block j: ([rows, 2] indices clipped into the
        tile, [rows] bool)."""
        column = self.first_row + self.rows.start(i) - self.columns.start(j) + tf.range(self.rows.size)
        inside = tf.logical_and(column >= 0, column < self.columns.size)
        column = tf.clip_by_value(column, 0, self.columns.size - 1)
        return tf.stack([tf.range(self.rows.size), column], 1), inside

    def array(self, blocks: _Blocks) -> tf.TensorArray:
        return tf.TensorArray(self.accumulation, blocks.count, clear_after_read=False)

    def filled(self, blocks: _Blocks, value, *shape) -> tf.TensorArray:
        """One array element [*shape] per block; -1 stands for the block's size."""
        shape = [blocks.count, *(blocks.size if isinstance(n, int) and n == -1 else n for n in shape)]
        return self.array(blocks).unstack(tf.fill(shape, tf.cast(value, self.accumulation)))


def _for(blocks: _Blocks, body, state):
    """Runs body(block, *state) -> state over all blocks, one at a time: two tiles in flight would double the
    memory."""
    return tf.while_loop(
        lambda block, *_: block < blocks.count,
        lambda block, *state: (block + 1, *body(block, *state)),
        (tf.constant(0), *state),
        parallel_iterations=1,
    )[1:]


class _Statistics(NamedTuple):
    """What pass A leaves: log-sum-exp and maximum of each own row [L] and (over own rows only) each column
    [B]; A_ii [L]."""

    row_logsumexp: tf.Tensor
    row_maximum: tf.Tensor
    column_logsumexp: tf.Tensor
    column_maximum: tf.Tensor
    positives: tf.Tensor


def _pass_a(tiles: _Tiles, shift) -> _Statistics:
    """One product per tile. shift: the one offset under which every exp is safe, or None: stream the maxima
    instead."""
    dtype = tiles.accumulation
    lowest = dtype.min

    def row_block(i, row_sums, row_maxima, positives, column_sums, column_maxima):
        scaled = tf.cast(tiles.image_rows(i) * tiles.scale, tiles.product)
        fresh_rows = tiles.rows.fresh(i, dtype)[tf.newaxis, :]

        def tile(j, sums, maxima, positive, column_sums, column_maxima):
            a = tiles.logits(scaled, j)  # [rows, columns]
            index, inside = tiles.diagonal(i, j)
            positive = tf.where(inside, tf.gather_nd(a, index), positive)
            new_maxima = tf.maximum(maxima, tf.reduce_max(a, 1))
            column_maximum = column_maxima.read(j)
            new_column_maximum = tf.maximum(column_maximum, tf.reduce_max(a, 0))
            fresh_columns = tiles.columns.fresh(j, dtype)[:, tf.newaxis]
            # Sums over a tile are products with the 0/1 weights: faster than reductions, and shared rows
            # count once.
            if shift is not None:
                e = tf.exp(a - shift)
                sums += tf.matmul(e, fresh_columns)[:, 0]
                column_sum = column_sums.read(j) + tf.matmul(fresh_rows, e)[0]
            else:
                e = tf.exp(a - new_maxima[:, tf.newaxis])
                sums = sums * tf.exp(maxima - new_maxima) + tf.matmul(e, fresh_columns)[:, 0]
                e = tf.exp(a - new_column_maximum[tf.newaxis, :])
                column_sum = column_sums.read(j) * tf.exp(column_maximum - new_column_maximum)
                column_sum += tf.matmul(fresh_rows, e)[0]
            column_sums = column_sums.write(j, column_sum)
            return sums, new_maxima, positive, column_sums, column_maxima.write(j, new_column_maximum)

        size = [tiles.rows.size]
        state = (
            tf.zeros(size, dtype),
            tf.fill(size, lowest),
            tf.zeros(size, dtype),
            column_sums,
            column_maxima,
        )
        sums, maxima, positive, column_sums, column_maxima = _for(tiles.columns, tile, state)
        written = row_sums.write(i, sums), row_maxima.write(i, maxima), positives.write(i, positive)
        return *written, column_sums, column_maxima

    row_arrays = [tiles.array(tiles.rows) for _ in range(3)]
    state = *row_arrays, tiles.filled(tiles.columns, 0, -1), tiles.filled(tiles.columns, lowest, -1)
    sums, maxima, positives, column_sums, column_maxima = _for(tiles.rows, row_block, state)
    row_sums, row_maxima, positives = (tiles.rows.assemble(x.stack()) for x in (sums, maxima, positives))
    column_sums, column_maxima = (tiles.columns.assemble(x.stack()) for x in (column_sums, column_maxima))
    return _Statistics(
        (row_maxima if shift is None else shift) + tf.math.log(row_sums),
        row_maxima,
        (column_maxima if shift is None else shift) + tf.math.log(column_sums),
        column_maxima,
        positives,
    )


def _pass_b(tiles: _Tiles, rows, columns, shift, positive_weight) -> tuple[tf.Tensor, tf.Tensor]:
    """Three products per tile: with E = P + Q - 2 positive_weight I, returns E G [L, D] and E^T F [B, D]
    (own rows only)."""
    dtype, product = tiles.accumulation, tiles.product
    width = tiles.images.shape[1] if tiles.images.shape[1] is not None else tf.shape(tiles.images)[1]

    def row_block(i, row_gradients, column_gradients):
        images = tiles.image_rows(i)
        scaled = tf.cast(images * tiles.scale, product)
        counted = tf.cast(images * tiles.rows.fresh(i, dtype)[:, tf.newaxis], product)
        r = tiles.rows.rows(rows, i)[:, tf.newaxis]

        def tile(j, gradient, column_gradients):
            a = tiles.logits(scaled, j)
            c = tiles.columns.rows(columns, j)[tf.newaxis, :]
            if shift is not None:  # one exp of the tile instead of two
                e = tf.exp(a - shift) * (tf.exp(shift - r) + tf.exp(shift - c))
            else:
                e = tf.exp(a - r) + tf.exp(a - c)
            # Subtracted here, not from the sums: where P_ii is nearly 1 the difference must survive bfloat16
            # products.
            index, inside = tiles.diagonal(i, j)
            e = tf.tensor_scatter_nd_sub(e, index, tf.where(inside, 2 * positive_weight, tf.zeros([], dtype)))
            e = tf.cast(e, product)
            texts = tiles.text_rows(j) * tiles.columns.fresh(j, dtype)[:, tf.newaxis]
            gradient += tiles.multiply(e, tf.cast(texts, product))
            # F^T E, [D, columns]: transposing the small operand is far cheaper than transposing the tile.
            column_gradient = column_gradients.read(j) + tiles.multiply(counted, e, transpose_a=True)
            return gradient, column_gradients.write(j, column_gradient)

        state = tf.zeros([tiles.rows.size, width], dtype), column_gradients
        gradient, column_gradients = _for(tiles.columns, tile, state)
        return row_gradients.write(i, gradient), column_gradients

    state = tiles.array(tiles.rows), tiles.filled(tiles.columns, 0, width, -1)
    row_gradients, column_gradients = _for(tiles.rows, row_block, state)
    column_gradients = tf.transpose(column_gradients.stack(), [0, 2, 1])
    return tiles.rows.assemble(row_gradients.stack()), tiles.columns.assemble(column_gradients)


class _Problem:
    """One evaluation of the loss: pass A at once, pass B when the gradient is asked for."""

    def __init__(self, images, texts, log_scale, tile, label_smoothing, max_scale, precision, collectives):
        self.collectives = collectives = collectives or OneReplica()
        self.images = images
        double = tf.float64 in (images.dtype, texts.dtype)
        self.dtype = dtype = tf.float64 if double else tf.float32
        product = tf.bfloat16 if precision == "bfloat16" else dtype
        log_scale = tf.cast(log_scale, dtype)
        self.below_bound = tf.constant(True)
        if max_scale is not None:
            bound = tf.constant(math.log(max_scale), dtype)
            self.below_bound = log_scale <= bound
            log_scale = tf.minimum(log_scale, bound)
        self.scale = tf.exp(log_scale)
        self.all_texts = collectives.all_gather(texts) if collectives.replicas > 1 else texts
        self.local = _rows_of(images)
        first_row = collectives.replica_index() * self.local if collectives.replicas > 1 else 0
        self.first_row = first_row
        self.batch = tf.cast(_rows_of(self.all_texts), dtype)
        self.smooth = label_smoothing > 0  # without smoothing its terms are left out: two copies [B, D] less
        self.smoothing = tf.constant(label_smoothing, dtype)
        self.tiles = _Tiles(images, self.all_texts, self.scale, first_row, tile, dtype, product)
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
        found = tf.cond(self.safe, lambda: _pass_a(tiles, self.shift), lambda: _pass_a(tiles, None))
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
        weight = 1 - self.smoothing

        def run(shift):
            return _pass_b(self.tiles, self.rows, self.columns, shift, weight)

        images, texts = tf.cond(self.safe, lambda: run(self.shift), lambda: run(None))
        if self.smooth:
            share = 2 * self.smoothing / self.batch
            images, texts = images - share * self.text_sum, texts - share * self.image_sum
        factor = self.scale / (2 * self.batch)
        images, texts = factor * images, factor * texts
        if self.collectives.replicas > 1:
            texts = self._own(self.collectives.sum(texts))
        log_scale = tf.reduce_sum(tf.cast(self.images, self.dtype) * images)
        return images, texts, tf.where(self.below_bound, log_scale, tf.zeros_like(log_scale))


def _check(images, texts, tile, label_smoothing, max_inverse_temperature, precision):
    if images.shape.rank != 2 or texts.shape.rank != 2 or not images.shape.is_compatible_with(texts.shape):
        raise ValueError(
            f"contrastive_loss expects image and text embeddings of one shape [B, D]; received "
            f"{images.shape} and {texts.shape}. Row i of both must belong to the same pair."
        )
    if images.shape[0] == 0:
        raise ValueError("contrastive_loss received an empty batch; it needs at least one pair.")
    for size in tile if isinstance(tile, tuple) else (tile,):
        if not isinstance(size, int) or size < 1:
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
