"""The tiles of the contrastive loss: the two passes over s F G^T that never hold it (see `loss.py` for the formulas)."""

from typing import Any, NamedTuple

import tensorflow as tf

from basic_tf.contrastive.loops import one_after_the_other

# 16 MiB in float32: below the size at which malloc maps fresh, zeroed pages each time.
_TILE_ELEMENTS = 1 << 22


class Blocks(NamedTuple):
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
        """Whether no block shares rows with its neighbour, as far as it is known before running."""
        return isinstance(self.total, int) and self.size * self.count == self.total

    def start(self, block) -> Any:
        """The block's first row."""
        return block * self.size if self.even else tf.minimum(block * self.size, self.total - self.size)

    def counted_once(self, x: tf.Tensor, block) -> tf.Tensor:
        """`x` [size, ...] with zeros in the rows that belong to the block before."""
        return x if self.even else x * self.fresh(block, x.dtype)[:, tf.newaxis]

    def fresh(self, block, dtype) -> tf.Tensor:
        """[size]: 1 for a row seen in this block for the first time, else 0."""
        if self.even:
            return tf.ones([self.size], dtype)
        return tf.cast(self.start(block) + tf.range(self.size) >= block * self.size, dtype)

    def rows(self, x: tf.Tensor, block) -> tf.Tensor:
        """[total, ...] -> [size, ...]: the block's rows of `x`."""
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


def split(total, tile: int) -> Blocks:
    """Blocks of at most `tile` rows, as equal as they come, so that little is computed twice."""
    if isinstance(total, int):
        tile = max(1, min(tile, total))
        size = -(-total // -(-total // tile))
        return Blocks(total, size, -(-total // size))
    tile = tf.maximum(1, tf.minimum(tile, total))
    size = -(-total // -(-total // tile))
    return Blocks(total, size, -(-total // size))


def rows_of(x: tf.Tensor):
    """The number of rows: an int, or a scalar tensor where the shape is dynamic."""
    return x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]


class Tiles:
    """The tiles of A = s F G^T: own image rows [L, D] against all text columns [B, D]."""

    def __init__(self, images, texts, scale, first_row, tile, accumulation, product):
        self.images, self.texts, self.scale, self.first_row = images, texts, scale, first_row
        self.accumulation, self.product = accumulation, product
        row_tile, column_tile = tile if isinstance(tile, tuple) else (tile, max(tile, _TILE_ELEMENTS // tile))
        self.rows, self.columns = split(rows_of(images), row_tile), split(rows_of(texts), column_tile)

    def image_rows(self, i, dtype=None) -> tf.Tensor:
        """[rows, D]: images of row block i."""
        return tf.cast(self.rows.rows(self.images, i), dtype or self.accumulation)

    def text_rows(self, j, dtype=None) -> tf.Tensor:
        """[columns, D]: texts of column block j."""
        return tf.cast(self.columns.rows(self.texts, j), dtype or self.accumulation)

    def multiply(self, a, b, **transpose) -> tf.Tensor:
        """The product of two matrices, in the type of the sums."""
        return tf.cast(tf.matmul(a, b, **transpose), self.accumulation)

    def logits(self, scaled_rows, j) -> tf.Tensor:
        """[rows, columns]: the tile of A for rows already scaled by s."""
        return self.multiply(scaled_rows, self.text_rows(j, self.product), transpose_b=True)

    def diagonal(self, i, j) -> tuple[tf.Tensor, tf.Tensor]:
        """Where the positives of row block i lie in column block j: ([rows, 2] indices clipped into the
        tile, [rows] bool)."""
        column = self.first_row + self.rows.start(i) - self.columns.start(j) + tf.range(self.rows.size)
        inside = tf.logical_and(column >= 0, column < self.columns.size)
        column = tf.clip_by_value(column, 0, self.columns.size - 1)
        return tf.stack([tf.range(self.rows.size), column], 1), inside

    def array(self, blocks: Blocks) -> tf.TensorArray:
        """Empty, with one element per block."""
        return tf.TensorArray(self.accumulation, blocks.count, clear_after_read=False)

    def filled(self, blocks: Blocks, value, *shape) -> tf.TensorArray:
        """One array element [*shape] per block; -1 stands for the block's size."""
        shape = [blocks.count, *(blocks.size if isinstance(n, int) and n == -1 else n for n in shape)]
        return self.array(blocks).unstack(tf.fill(shape, tf.cast(value, self.accumulation)))


class Statistics(NamedTuple):
    """What pass A leaves: log-sum-exp and maximum of each own row [L] and (over own rows only) each column
    [B]; A_ii [L]."""

    row_logsumexp: tf.Tensor
    row_maximum: tf.Tensor
    column_logsumexp: tf.Tensor
    column_maximum: tf.Tensor
    positives: tf.Tensor


def pass_a(tiles: Tiles, shift) -> Statistics:
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
        sums, maxima, positive, column_sums, column_maxima = one_after_the_other(
            tiles.columns.count, tile, state
        )
        written = row_sums.write(i, sums), row_maxima.write(i, maxima), positives.write(i, positive)
        return *written, column_sums, column_maxima

    row_arrays = [tiles.array(tiles.rows) for _ in range(3)]
    state = *row_arrays, tiles.filled(tiles.columns, 0, -1), tiles.filled(tiles.columns, lowest, -1)
    sums, maxima, positives, column_sums, column_maxima = one_after_the_other(
        tiles.rows.count, row_block, state
    )
    row_sums, row_maxima, positives = (tiles.rows.assemble(x.stack()) for x in (sums, maxima, positives))
    column_sums, column_maxima = (tiles.columns.assemble(x.stack()) for x in (column_sums, column_maxima))
    return Statistics(
        (row_maxima if shift is None else shift) + tf.math.log(row_sums),
        row_maxima,
        (column_maxima if shift is None else shift) + tf.math.log(column_sums),
        column_maxima,
        positives,
    )


def pass_b(
    tiles: Tiles, rows, columns, shift, positive_weight, factor, offsets
) -> tuple[tf.Tensor, tf.Tensor]:
    """Three products per tile: with E = P + Q - 2 positive_weight I, returns factor (E G - first offset) [L, D]
    and factor (E^T F - second offset) [B, D] (own rows only). offsets: two rows [D], or None for zero.

    The column gradients of a row block are collected in an array, all of it freed before the next: were the
    sums themselves an array, each tile would replace a block of it, and malloc's heap would be full of holes.
    """
    dtype, product = tiles.accumulation, tiles.product

    def finished(gradient, offset):
        return factor * (gradient if offset is None else gradient - offset)

    def row_block(i, row_gradients, column_gradients):
        images = tiles.image_rows(i)
        scaled = tf.cast(images * tiles.scale, product)
        counted = tf.cast(tiles.rows.counted_once(images, i), product)
        r = tiles.rows.rows(rows, i)[:, tf.newaxis]

        def tile(j, gradient, parts):
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
            texts = tiles.columns.counted_once(tiles.text_rows(j), j)
            gradient += tiles.multiply(e, tf.cast(texts, product))
            # (F^T E)^T: transposing the small operand and the small result is far cheaper than transposing the tile.
            part = tf.transpose(tiles.multiply(counted, e, transpose_a=True))
            return gradient, parts.write(j, part)

        state = tf.zeros_like(images, dtype), tiles.array(tiles.columns)
        gradient, parts = one_after_the_other(tiles.columns.count, tile, state)
        column_gradients += tiles.columns.assemble(parts.stack())
        return row_gradients.write(i, finished(gradient, offsets[0])), column_gradients

    state = tiles.array(tiles.rows), tf.zeros_like(tiles.texts, dtype)
    row_gradients, column_gradients = one_after_the_other(tiles.rows.count, row_block, state)
    return tiles.rows.assemble(row_gradients.stack()), finished(column_gradients, offsets[1])
