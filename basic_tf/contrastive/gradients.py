"""Algorithm 1 of BASIC (arXiv 2111.10050): the full-batch contrastive gradient under limited memory.

A batch of B pairs is embedded in N microbatches of M without keeping activations (pass 1). The loss over all
B rows gives its gradient with respect to every embedding, and to the temperature. Pass 2 embeds each
microbatch once more with a tape and pulls its rows of that gradient back into the weights. The sum over
microbatches is the gradient of the full batch: 1 / B is in the loss, and there is no other factor anywhere.

It is exact because both passes compute the same function: random layers draw from (key, layer, index of the
example in the global batch), and BatchNorm statistics come from fixed groups of examples and move once, in
the caller's hand.
"""

from typing import NamedTuple

import tensorflow as tf

from basic_tf.contrastive.accumulation import Accumulator, GradientSums
from basic_tf.contrastive.loops import one_after_the_other
from basic_tf.contrastive.loss import DEFAULT_TILE, Collectives, OneReplica
from basic_tf.contrastive.loss import contrastive_loss_value_and_gradients as loss_value_and_gradients
from basic_tf.contrastive.microbatches import Microbatches, count_rows, cut_rows
from basic_tf.contrastive.sides import (
    TEMPERATURE,
    Side,
    Statistics,
    check_reached,
    paths_of,
    projected,
    tensor_of,
)
from basic_tf.randomness import Noise


class ContrastiveGradients(NamedTuple):
    """One evaluation of the contrastive objective.

    loss: scalar, the mean over the global batch, equal on all replicas.
    gradients: this replica's share for each of the variables, dense, at least float32; the sum over replicas
      is the gradient. With an accumulator: its state after the last contribution.
    statistics: one tensor for each variable of `model.statistic_variables`, the mean over microbatches and
    replicas,
      for one call of `model.update_statistics`; empty unless BatchNorm is `ghost` and the tower is trained.
    metrics: scalars over the global batch, see `basic_tf.contrastive.loss.LossAndGradients`.
    """

    loss: tf.Tensor
    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    metrics: dict[str, tf.Tensor]


def _check(accumulator: Accumulator, cut: Microbatches, paths: list[str], variables, reuse_last: bool):
    """Raises ValueError, in one line, where an accumulator cannot have what it needs."""
    unknown = [variables[k].name for k, path in enumerate(paths) if not path]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:3])}: not among model.parameters(), so its tower is unknown, and an "
            "accumulator must get one contribution of each microbatch; differentiate the model's own parameters"
        )
    if accumulator.pieces > 1 and reuse_last:
        raise ValueError("reuse_last keeps a microbatch whole, but the accumulator wants pieces; choose one")
    if isinstance(cut.size, int) and cut.count != 1 and cut.size % accumulator.pieces:
        raise ValueError(
            f"a microbatch of {cut.size} pairs cannot be cut into {accumulator.pieces} pieces; "
            "choose a multiple of the pieces"
        )


def contrastive_gradients(
    model,
    images,
    token_ids,
    microbatch: int | None = None,
    *,
    noise_key: tf.Tensor | None = None,
    first_example: tf.Tensor | int | None = None,
    examples: tf.Tensor | None = None,
    variables: list | None = None,
    training: bool = True,
    tile: int | tuple[int, int] = DEFAULT_TILE,
    label_smoothing: float = 0.0,
    max_inverse_temperature: float | None = 100.0,
    precision: str = "float32",
    collectives: Collectives | None = None,
    reuse_last: bool = False,
    batch: int | None = None,
    accumulator: Accumulator | None = None,
) -> ContrastiveGradients:
    """The loss of the whole batch and its exact gradient, one microbatch in memory at a time (Algorithm 1).

    Costs one forward more than a plain step (4/3); with one microbatch it is the plain step. The graph does
    not grow with the number of microbatches. A tower none of whose weights is among `variables` runs once,
    in inference mode.

    Args:
      model: a `DualEncoder`, or anything with its methods.
      images: uint8 or float [B, H, W, 3], the rows of this replica; or a function of the microbatch index
        (an int32 scalar tensor) that returns [microbatch, H, W, 3].
      token_ids: int32 [B, T], or a function like that of the images.
      microbatch: M, pairs embedded at once; it must divide B. None: all of them.
      noise_key: uint32 [2] from `randomness.step_key`; None switches dropout and stochastic depth off.
      first_example: index in the global batch of this replica's first row; None: replica index x B.
      examples: int32 [B], the index of every row in the global batch, where the rows are not consecutive.
      variables: what to differentiate; None: `model.trainable_variables`.
      training: handed to the towers.
      tile, label_smoothing, max_inverse_temperature, precision, collectives: see `contrastive_loss`. Where the
        collectives have a `global_view` (a DTensor mesh), the rows are those of the global batch, `microbatch` is
        still the number of pairs that one device embeds at once, and `examples` must be given; of `tile` only
        (rows, columns) counts there, and bounds the columns.
      reuse_last: keep the activations of the last microbatch through the loss, so that it runs once: 4N - 1
        instead of 4N units of work, for a graph about twice as large and those activations held beside the
        loss tiles.
      batch: B, needed only where images and token_ids are both functions.
      accumulator: takes the gradients of the microbatches as the second pass makes them; None: they are
        summed in buffers. See `basic_tf.contrastive.accumulation`.

    Raises:
      ValueError: where the rows do not match, or the microbatch does not divide them; for options that make no
        sense; for variables that the loss does not depend on; where an accumulator cannot have what it needs.
    """
    if getattr(collectives, "global_view", False):
        from basic_tf.contrastive import global_view

        if accumulator is not None or reuse_last:
            raise ValueError("an accumulator and reuse_last need one device; a mesh has neither")
        options = {
            "tile": tile,
            "label_smoothing": label_smoothing,
            "max_inverse_temperature": max_inverse_temperature,
            "precision": precision,
        }
        variables = list(model.trainable_variables if variables is None else variables)
        return global_view.contrastive_gradients(
            model, images, token_ids, microbatch, collectives,
            noise_key=noise_key, examples=examples, variables=variables, training=training, **options,
        )  # fmt: skip
    collectives = collectives or OneReplica()
    images, token_ids = (x if callable(x) else tf.convert_to_tensor(x) for x in (images, token_ids))
    pairs = count_rows(images, token_ids, batch)
    cut = cut_rows(pairs, microbatch)
    known = model.parameters()  # builds the model, before its variables are asked for
    variables = list(model.trainable_variables if variables is None else variables)
    paths = paths_of(known, variables)
    sources = [tensor_of(v) for v in variables]
    log_scale = tf.convert_to_tensor(tensor_of(model.log_inverse_temperature))
    dtype = log_scale.dtype
    if examples is None:
        first = collectives.replica_index() * pairs if first_example is None else first_example
        examples = tf.cast(first, tf.int32) + tf.range(pairs)
    else:
        examples = tf.convert_to_tensor(examples)
        if isinstance(pairs, int) and examples.shape.rank is not None and examples.shape != [pairs]:
            raise ValueError(
                f"examples are {tuple(examples.shape)}; expected one index for each of the {pairs} pairs"
            )
    sides = [Side(model, "image", images, paths, training), Side(model, "text", token_ids, paths, training)]
    statistics = Statistics(dtype)

    def noise(i) -> Noise | None:
        return None if noise_key is None else Noise(noise_key, cut.rows(examples, i))

    def embed(side: Side, i):
        rows, found = side.embed(cut.rows(side.source, i), noise(i))
        if rows.dtype == tf.float64 and dtype != tf.float64:
            raise ValueError(
                "the embeddings are float64 but log_inverse_temperature is float32: make both float64."
            )
        return tf.cast(rows, dtype), found

    # Pass 1: rows of all microbatches, no tape.
    one = isinstance(cut.count, int) and cut.count == 1
    hold = (one or reuse_last) and any(side.twice for side in sides)
    looped = cut.count - 1 if hold else cut.count

    widths = []  # what an array of a loop does not know of its rows

    def first_pass(i, *arrays):
        outcomes = [embed(side, i) for side in sides]
        widths[:] = [rows.shape[-1] for rows, _ in outcomes]  # the function is traced before its loop is left
        packed = statistics.pack([s for _, found in outcomes for s in found])
        return [
            array.write(i, rows) for array, rows in zip(arrays, [*(rows for rows, _ in outcomes), packed])
        ]

    parts: list[list[tf.Tensor]] = [[], [], []]  # image rows, text rows, packed statistics
    if not (hold and one):
        arrays = [tf.TensorArray(dtype, looped, infer_shape=False) for _ in range(3)]
        arrays = one_after_the_other(looped, first_pass, arrays)
        rows = [tf.ensure_shape(array.concat(), [None, width]) for array, width in zip(arrays, widths)]
        parts = [[rows[0]], [rows[1]], [arrays[2].stack()]]
    held: dict[Side, tuple[tf.GradientTape, tf.Tensor]] = {}
    if hold:
        found_last = []
        for side, part in zip(sides, parts):
            with tf.GradientTape() as tape:
                rows, found = embed(side, tf.convert_to_tensor(cut.count - 1))
            part.append(rows)
            found_last += found
            if side.twice:
                held[side] = tape, rows
        parts[2].append(statistics.pack(found_last)[tf.newaxis])
    tables = [tf.concat(part, 0) if len(part) > 1 else part[0] for part in parts]
    statistic_rows = tables.pop()

    tables, projection_tapes = projected(sides, tables, dtype)
    # The arrays of a loop do not know how many rows they hold; the loss and its tiles like to.
    embeddings = [tf.reshape(table, [pairs, table.shape[-1] or tf.shape(table)[-1]]) for table in tables]

    value = loss_value_and_gradients(
        *embeddings,
        log_scale,
        tile=tile,
        label_smoothing=label_smoothing,
        max_inverse_temperature=max_inverse_temperature,
        precision=precision,
        collectives=collectives,
    )
    upstream = dict(zip(sides, (value.image_embeddings, value.text_embeddings)))

    # Pass 2: pull the rows of the loss gradient back, one microbatch at a time.
    sink = GradientSums(variables) if accumulator is None else accumulator
    pieces = 1 if one else sink.pieces
    if accumulator is not None:
        _check(accumulator, cut, paths, variables, reuse_last and not one)
    looping = {k for side in sides if side.twice and not one for k in side.trained}
    reached = set()
    state = sink.start([cut.count if k in looping else 1 for k in range(len(variables))])

    def pull(side: Side, tape: tf.GradientTape, target, output_gradient) -> list:
        own = [sources[k] for k in side.trained]
        return tape.gradient(target, own, output_gradients=tf.cast(output_gradient, target.dtype))

    def add(state, side: Side, found: list[list]):
        reached.update(k for k, gradients in zip(side.trained, zip(*found)) if gradients[0] is not None)
        return sink.add(state, dict(zip(side.trained, zip(*found))))

    def piece(rows, number: int):
        size = cut.size // pieces
        return rows if pieces == 1 else rows[number * size : (number + 1) * size]

    def second_pass(i, *state):
        state = list(state)
        for side in sides:
            if not side.twice:
                continue
            found: list[list] = []
            for number in range(pieces):
                # The towers, and the pieces, take turns: the activations of one of them are alive at a time.
                before = tf.nest.flatten([state, found], expand_composites=True)
                with tf.control_dependencies([tensor for tensor in before if tensor is not None]):
                    rows = tf.identity(piece(cut.rows(side.source, i), number))
                own = noise(i)
                with tf.GradientTape() as tape:
                    target, _ = side.embed(rows, own and own._replace(examples=piece(own.examples, number)))
                found.append(pull(side, tape, target, piece(cut.rows(upstream[side], i), number)))
            state = add(state, side, found)
        return state

    for side, (tape, rows) in held.items():
        found = pull(side, tape, rows, cut.rows(upstream[side], cut.count - 1))
        state = add(state, side, [found])
    for side, (tape, rows) in projection_tapes.items():
        state = add(state, side, [pull(side, tape, rows, upstream[side])])
    if not (hold and one) and any(side.twice for side in sides):
        state = one_after_the_other(looped, second_pass, state)
    check_reached(reached, paths, variables)
    if TEMPERATURE in paths:
        state = sink.add(list(state), {paths.index(TEMPERATURE): [value.log_inverse_temperature]})
    gradients = list(state)
    if accumulator is None:
        for gradient, variable in zip(gradients, variables):
            gradient.set_shape(variable.shape)
    return ContrastiveGradients(
        value.loss, gradients, statistics.mean(statistic_rows, collectives), value.metrics
    )


def microbatched_gradients(
    model, images, token_ids, microbatch: int | None = None, **options
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """(loss, gradients in the order of `model.trainable_variables`); arguments as for
    `contrastive_gradients`."""
    result = contrastive_gradients(model, images, token_ids, microbatch, **options)
    return result.loss, result.gradients
