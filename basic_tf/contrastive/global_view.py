"""Algorithm 1 and its loss where one program sees the rows of the global batch as logical tensors: a DTensor mesh.

The mathematics is that of `gradients.py` and `loss.py`; what differs is what DTensor can lay out. No TensorArray: what
a loop collects is added into a tensor of zeros, each microbatch in its own rows. No tile over rows: every device holds
its own rows of the logits, against a block of columns at a time, [B / devices, columns]. Nothing is differentiated
through a loop or a relayout of embeddings; the loss gives its gradients in closed form.
"""

import math
from typing import Protocol

import tensorflow as tf

from basic_tf.contrastive.gradients import ContrastiveGradients
from basic_tf.contrastive.loops import one_after_the_other
from basic_tf.contrastive.loss import LossAndGradients, OneReplica, check_options
from basic_tf.contrastive.sides import (
    TEMPERATURE,
    Side,
    Statistics,
    check_reached,
    paths_of,
    projected,
    tensor_of,
)
from basic_tf.precision import wide
from basic_tf.randomness import Noise

# Logits that one device holds at a time: 16 MiB in float32, as in loss.py.
_BLOCK_ELEMENTS = 1 << 22
_FEWEST_COLUMNS = 256  # below, a product is slow


class Layouts(Protocol):
    """What a mesh offers (`parallel.mesh.MeshCollectives`)."""

    global_view: bool
    replicas: int

    def all_gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The same tensor, whole on every device."""

    def spread(self, rows: tf.Tensor) -> tf.Tensor:
        """The same tensor, its rows cut over the batch axis."""

    def like(self, value: tf.Tensor, variable) -> tf.Tensor:
        """The same tensor, cut as the variable is."""

    def microbatch(self, rows: tf.Tensor, index, count: int) -> tf.Tensor:
        """[B, ...] -> [B / count, ...], consecutive rows of each device."""

    def place_microbatch(self, part: tf.Tensor, index, count: int) -> tf.Tensor:
        """[B / count, ...] -> [B, ...], zero outside that microbatch."""


def column_block(batch: int, replicas: int, tile: int | tuple[int, int]) -> int:
    """Columns of the logits computed at once: a divisor of the batch, so that a device's block stays near 16 MiB.

    tile: (rows, columns) bounds the columns instead; one number is of rows, which a mesh does not cut.
    """
    wanted = max(_FEWEST_COLUMNS, _BLOCK_ELEMENTS // max(1, batch // replicas))
    if isinstance(tile, tuple):
        wanted = tile[1]
    return max(divisor for divisor in range(1, min(wanted, batch) + 1) if batch % divisor == 0)


def _for(count: int, body, state):
    """body(i, *state) -> state for i below count; a plain call where there is one."""
    if count == 1:
        return body(tf.constant(0), *state)
    return one_after_the_other(count, body, state)


def loss_value_and_gradients(
    images: tf.Tensor,
    texts: tf.Tensor,
    log_inverse_temperature: tf.Tensor,
    layouts: Layouts,
    *,
    tile: int | tuple[int, int],
    label_smoothing: float = 0.0,
    max_inverse_temperature: float | None = 100.0,
    precision: str = "float32",
) -> LossAndGradients:
    """The loss over the global batch and its gradients; the equations stand at the head of `loss.py`.

    images, texts: [B, D] unit rows, cut over the batch axis. Each device needs memory for [B / devices, columns]
    logits and for the texts of all devices, [B, D]. The other arguments are those of `contrastive_loss`.
    """
    check_options(tile, label_smoothing, max_inverse_temperature, precision)
    batch = images.shape[0]
    dtype = wide(images.dtype, texts.dtype)
    product = tf.bfloat16 if precision == "bfloat16" else dtype
    spread = layouts.spread
    size = column_block(batch, layouts.replicas, tile)
    count = batch // size
    log_scale = tf.cast(log_inverse_temperature, dtype)
    below_bound = tf.constant(True)
    if max_inverse_temperature is not None:
        bound = tf.constant(math.log(max_inverse_temperature), dtype)
        below_bound, log_scale = log_scale <= bound, tf.minimum(log_scale, bound)
    scale = tf.exp(log_scale)
    images, texts = spread(tf.cast(images, dtype)), spread(tf.cast(texts, dtype))
    own = tf.cast(images, product)
    scaled = tf.cast(images * scale, product)
    columns_of = tf.reshape(layouts.all_gather(texts), (count, size, texts.shape[1]))
    row_numbers = spread(tf.range(batch))

    def chosen(j, values: tf.Tensor) -> tf.Tensor:
        """[size, ...] -> [count, size, ...], zero outside block j."""
        mask = tf.reshape(
            tf.cast(tf.equal(tf.range(count), j), values.dtype), (-1,) + (1,) * values.shape.rank
        )
        return mask * tf.expand_dims(values, 0)

    def block(j):
        """(logits [B, size], which of them are positives, the columns' texts [size, D])."""
        columns = tf.gather(columns_of, j)
        logits = tf.cast(tf.matmul(scaled, tf.cast(columns, product), transpose_b=True), dtype)
        numbers = j * size + tf.range(size)
        return logits, tf.equal(tf.expand_dims(row_numbers, 1), tf.expand_dims(numbers, 0)), columns

    def forward(j, rows, row_maxima, positives, column_positives, column_maxima, columns):
        logits, own_pair, _ = block(j)
        row_maximum, column_maximum = tf.reduce_max(logits, 1), tf.reduce_max(logits, 0)
        new_maxima = tf.maximum(row_maxima, row_maximum)
        # rows holds sum_j exp(A_ij - maximum so far).
        rows = rows * tf.exp(row_maxima - new_maxima)
        rows += tf.reduce_sum(tf.exp(logits - tf.expand_dims(new_maxima, 1)), 1)
        column_sum = tf.reduce_sum(tf.exp(logits - tf.expand_dims(column_maximum, 0)), 0)
        only_positive = tf.where(own_pair, logits, tf.zeros_like(logits))
        return (
            spread(rows),
            spread(new_maxima),
            spread(positives + tf.reduce_sum(only_positive, 1)),
            column_positives + chosen(j, tf.reduce_sum(only_positive, 0)),
            column_maxima + chosen(j, column_maximum),
            columns + chosen(j, column_maximum + tf.math.log(column_sum)),
        )

    zeros, by_column = spread(tf.zeros([batch], dtype)), tf.zeros([count, size], dtype)
    lowest = spread(tf.fill([batch], tf.constant(dtype.min, dtype)))
    rows, row_maxima, positives, column_positives, column_maxima, columns = _for(
        count, forward, (zeros, lowest, zeros, by_column, by_column, by_column)
    )
    rows = row_maxima + tf.math.log(rows)

    smoothing = tf.constant(label_smoothing, dtype)
    image_sum, text_sum = tf.reduce_sum(images, 0), tf.reduce_sum(texts, 0)
    loss = tf.reduce_sum(rows) + tf.reduce_sum(columns) - 2 * (1 - smoothing) * tf.reduce_sum(positives)
    loss -= 2 * smoothing / batch * scale * tf.reduce_sum(image_sum * text_sum)
    metrics = {
        "image_to_text_accuracy": tf.reduce_sum(tf.cast(positives >= row_maxima, dtype)) / batch,
        "text_to_image_accuracy": tf.reduce_sum(tf.cast(column_positives >= column_maxima, dtype)) / batch,
        "positive_similarity": tf.reduce_sum(images * texts) / batch,
    }

    def backward(j, image_gradients, text_gradients):
        logits, own_pair, column_texts = block(j)
        e = tf.exp(logits - tf.expand_dims(rows, 1)) + tf.exp(
            logits - tf.expand_dims(tf.gather(columns, j), 0)
        )
        e = tf.cast(tf.where(own_pair, e - 2 * (1 - smoothing), e), product)
        along_rows = tf.cast(tf.matmul(e, tf.cast(column_texts, product)), dtype)
        along_columns = tf.cast(tf.matmul(e, own, transpose_a=True), dtype)
        return spread(image_gradients + along_rows), text_gradients + chosen(j, along_columns)

    width = images.shape[1]
    start = spread(tf.zeros([batch, width], dtype)), tf.zeros([count, size, width], dtype)
    image_gradients, text_gradients = _for(count, backward, start)
    text_gradients = spread(tf.reshape(text_gradients, (batch, width)))
    factor = scale / (2 * batch)
    image_gradients = factor * (image_gradients - 2 * smoothing / batch * text_sum)
    text_gradients = factor * (text_gradients - 2 * smoothing / batch * image_sum)
    log_scale_gradient = tf.reduce_sum(images * image_gradients)
    return LossAndGradients(
        loss / (2 * batch),
        image_gradients,
        text_gradients,
        tf.where(below_bound, log_scale_gradient, tf.zeros_like(log_scale_gradient)),
        metrics,
    )


def contrastive_gradients(
    model,
    images: tf.Tensor,
    token_ids: tf.Tensor,
    microbatch: int | None,
    layouts: Layouts,
    *,
    noise_key: tf.Tensor | None,
    examples: tf.Tensor,
    variables: list,
    training: bool = True,
    **loss_options,
) -> ContrastiveGradients:
    """`gradients.contrastive_gradients` on a mesh: the same passes over the global batch.

    images [B, H, W, 3], token_ids [B, T], examples [B]: the rows of the global batch, cut over the batch axis.
    microbatch: pairs that one device embeds at once. The gradients come laid out as their variables.
    """
    batch = images.shape[0]
    local = batch // layouts.replicas
    size = local if microbatch is None else microbatch
    if examples is None:
        raise ValueError("on a mesh `examples`, the index of every row in the global batch, must be given")
    if batch % layouts.replicas or size < 1 or local % size:
        raise ValueError(
            f"{batch} pairs on a batch axis of {layouts.replicas} devices cannot be cut into microbatches of {size}: "
            f"the microbatch must divide {local}, the pairs of one device"
        )
    count = local // size
    known = model.parameters()
    paths = paths_of(known, variables)
    sources = [tensor_of(v) for v in variables]
    log_scale = tf.convert_to_tensor(tensor_of(model.log_inverse_temperature))
    dtype = log_scale.dtype
    sides = [
        Side(model, "image", images, paths, training),
        Side(model, "text", token_ids, paths, training),
    ]
    statistics = Statistics(dtype)

    def cut(rows: tf.Tensor, i) -> tf.Tensor:
        return rows if count == 1 else layouts.microbatch(rows, i, count)

    def embed(side: Side, i):
        noise = None if noise_key is None else Noise(noise_key, cut(examples, i))
        rows, found = side.embed(cut(side.source, i), noise)
        return tf.cast(rows, dtype), found

    def place(part: tf.Tensor, i) -> tf.Tensor:
        return layouts.spread(part) if count == 1 else layouts.place_microbatch(part, i, count)

    # Pass 1. With one microbatch the tape stays open and pass 2 is its backward half.
    tapes: dict[Side, tuple[tf.GradientTape, tf.Tensor]] = {}
    if count == 1:
        tables, found_all = [], []
        for side in sides:
            with tf.GradientTape() as tape:
                rows, found = embed(side, 0)
            tables.append(layouts.spread(rows))
            found_all += found
            if side.twice:
                tapes[side] = tape, rows
        statistic_sum = statistics.pack(found_all)
    else:

        def outcome(i):
            outcomes = [embed(side, i) for side in sides]
            return [*(rows for rows, _ in outcomes), statistics.pack([s for _, f in outcomes for s in f])]

        def first_pass(i, *state):
            *rows, packed = outcome(i)
            additions = [*(place(part, i) for part in rows), packed / count]
            return [old + new for old, new in zip(state, additions)]

        # A loop must know its shapes before it runs. This trace tells them; it is never executed.
        *rows, packed = tf.function(outcome, autograph=False).get_concrete_function(0).structured_outputs
        start = [layouts.spread(tf.zeros([batch, part.shape[1]], dtype)) for part in rows]
        *tables, statistic_sum = _for(count, first_pass, [*start, tf.zeros(packed.shape, dtype)])

    tables, projection_tapes = projected(sides, tables, dtype)
    embeddings = [layouts.spread(table) for table in tables]
    value = loss_value_and_gradients(*embeddings, log_scale, layouts, **loss_options)
    upstream = dict(zip(sides, (value.image_embeddings, value.text_embeddings)))

    # Pass 2.
    reached: set[int] = set()

    def add(sums, side: Side, tape: tf.GradientTape, target, output_gradient):
        sums = list(sums)
        own = [sources[k] for k in side.trained]
        found = tape.gradient(target, own, output_gradients=tf.cast(output_gradient, target.dtype))
        for k, gradient in zip(side.trained, found):
            if gradient is not None:
                reached.add(k)
                gradient = tf.cast(tf.convert_to_tensor(gradient), sums[k].dtype)
                sums[k] += layouts.like(gradient, variables[k])
        return sums

    def second_pass(i, *sums):
        for side in sides:
            if side.twice:
                with tf.GradientTape() as tape:
                    target, _ = embed(side, i)
                sums = add(sums, side, tape, target, cut(upstream[side], i))
        return sums

    sums = [layouts.like(tf.zeros(v.shape, wide(v.dtype)), v) for v in variables]
    for side, (tape, rows) in (tapes | projection_tapes).items():
        sums = add(sums, side, tape, rows, upstream[side])
    if count > 1 and any(side.twice for side in sides):
        sums = list(_for(count, second_pass, sums))
    check_reached(reached, paths, variables)
    if TEMPERATURE in paths:
        k = paths.index(TEMPERATURE)
        sums[k] += tf.cast(value.log_inverse_temperature, sums[k].dtype)
    return ContrastiveGradients(
        value.loss, sums, statistics.mean(tf.expand_dims(statistic_sum, 0), OneReplica()), value.metrics
    )
