"""A contrastive update without a whole-model gradient: each block's gradient is applied as soon as it is known.

Algorithm 1 of BASIC (arXiv 2111.10050) with its loops exchanged. `gradients.py` walks the microbatches and
carries the gradients of all weights; here every block is walked once, with all its microbatches:

1. Forward, without a tape: of each microbatch the inputs of each block stay (the boundary states).
2. The loss over all B rows gives the gradient of every embedding, and of the temperature.
3. Backward, from the last block to the first: a block runs again under a tape, for one microbatch after the
   other; its gradient, summed over them, goes to `apply`, parameter by parameter, and is gone.

A block's weights may change once all its microbatches are through: the blocks below do not read them. So
weights, slots, the boundary states and one block are all that is ever held. The arithmetic is that of a plain
step with the gradients of the whole batch, and costs one forward more (4/3).

Boundary states are B x (sum of the blocks' inputs): 95 MB for a picture of 224 px in CoAtNet-7.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import tensorflow as tf

from basic_tf.contrastive.loss import DEFAULT_TILE
from basic_tf.contrastive.loss import contrastive_loss_value_and_gradients as loss_value_and_gradients
from basic_tf.contrastive.microbatches import Microbatches, Rows, count_rows, cut_rows
from basic_tf.contrastive.sides import TEMPERATURE, tensor_of
from basic_tf.precision import wide
from basic_tf.randomness import Noise

Apply = Callable[[dict[str, tf.Tensor]], None]


class BlockwiseStep(NamedTuple):
    """What is left of a step whose gradients have been applied; see `gradients.ContrastiveGradients`."""

    loss: tf.Tensor
    statistics: list[tf.Tensor]
    metrics: dict[str, tf.Tensor]


class _Walk:
    """One tower and its projection, for all microbatches of a step: up once, then down once."""

    def __init__(self, model, name: str, trained: Collection[str], training: bool):
        self.tower = getattr(model, f"{name}_tower")
        self.project = getattr(model, f"project_{name}")
        self.projection = {
            path: tensor_of(variable)
            for path, variable in model.parameters().items()
            if path in trained and path.startswith(f"{name}_projection/")
        }
        self.blocks = []  # (block, its trained variables by path)
        for block in self.tower.blocks:
            paths = {f"{name}_tower/{path}": variable for path, variable in block.parameters().items()}
            self.blocks.append((block, {p: tensor_of(v) for p, v in paths.items() if p in trained}))
        with_weights = [k for k, (_, variables) in enumerate(self.blocks) if variables]
        # The backward pass ends at the lowest block that is trained. If none is, the tower is in inference mode.
        self.lowest = with_weights[0] if with_weights else len(self.blocks)
        self.tower_trained = bool(with_weights)
        self.training = training and self.tower_trained
        self.inputs: list[list] = [[] for _ in self.blocks]  # of each block: its input for each microbatch

    @property
    def paths(self) -> set[str]:
        """Every trained path that this walk reaches."""
        return {path for _, variables in self.blocks for path in variables} | set(self.projection)

    def _noise(self, noise: Noise | None) -> Noise | None:
        return noise if self.training else None

    def up(self, rows: tf.Tensor, noise: Noise | None) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """One microbatch without a tape: (features [M, width], statistics)."""
        state, statistics = self.tower.encode_inputs(rows), []
        for k, (block, _) in enumerate(self.blocks):
            if k >= self.lowest:
                self.inputs[k].append(state)
            state, found = block.apply(state, self.training, self._noise(noise))
            statistics += found
        return state, statistics

    def down(self, gradients: tf.Tensor, cut: Microbatches, noise: Callable, apply: Apply) -> None:
        """Pulls d loss / d features [B, width] back and applies every gradient on the way."""
        upstream = [[cut.rows(gradients, i)] for i in range(cut.count)]
        while len(self.inputs) > self.lowest:
            (block, variables), inputs = self.blocks[len(self.inputs) - 1], self.inputs.pop()
            totals: list[tf.Tensor] = []
            for i in range(cut.count):
                found, upstream[i] = _pull_back(
                    block,
                    list(variables.values()),
                    inputs[i],
                    upstream[i],
                    self.training,
                    self._noise(noise(i)),
                    further=len(self.inputs) > self.lowest,
                )
                inputs[i] = None  # the last reference: the boundary state is freed
                _add(totals, found)
            _apply_all(list(variables), totals, apply)


def _pull_back(block, variables, inputs, upstream, training, noise, further) -> tuple[list, list]:
    """One block of one microbatch under a tape.

    upstream: d loss / d output, one for each float tensor of the block's output. Returns (gradients of the
    variables, gradients of the float tensors of the inputs; none of them if `further` is false).
    """
    floats = _floats(inputs) if further else []
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*variables, *floats])
        outputs = _floats(block.apply(inputs, training, noise)[0])
    found = tape.gradient(
        outputs,
        [*variables, *floats],
        output_gradients=[tf.cast(g, output.dtype) for g, output in zip(upstream, outputs, strict=True)],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return found[: len(variables)], found[len(variables) :]


def _floats(state) -> list[tf.Tensor]:
    return [tensor for tensor in tf.nest.flatten(state) if tensor.dtype.is_floating]


def _add(totals: list[tf.Tensor], found: list) -> None:
    """Adds one microbatch's gradients to the sums, in at least float32, freeing each as it goes."""
    first = not totals
    for k in range(len(found)):
        gradient, found[k] = tf.convert_to_tensor(found[k]), None
        if first:
            totals.append(gradient)
        else:
            dtype = wide(gradient.dtype)
            totals[k] = tf.cast(totals[k], dtype) + tf.cast(gradient, dtype)


def _apply_all(paths: list[str], gradients: list[tf.Tensor], apply: Apply) -> None:
    """One parameter after the other, so that each gradient is freed before the next update needs room."""
    for path in paths:
        apply({path: gradients.pop(0)})


def contrastive_step_by_block(
    model,
    images: Rows,
    token_ids: Rows,
    apply: Apply,
    trained: Collection[str],
    microbatch: int | None = None,
    *,
    noise_key: tf.Tensor | None = None,
    first_example: int = 0,
    examples: tf.Tensor | None = None,
    training: bool = True,
    tile: int | tuple[int, int] = DEFAULT_TILE,
    label_smoothing: float = 0.0,
    max_inverse_temperature: float | None = 100.0,
    precision: str = "float32",
    batch: int | None = None,
) -> BlockwiseStep:
    """One training step on one device that never holds more than one block's gradient.

    `apply` receives exactly what `contrastive_gradients` would have returned (up to the rounding of sums),
    one parameter at a time, from the top of each tower to its bottom. Call it eagerly: inside a tf.function
    it would unroll blocks x microbatches, and the order of execution, on which its memory rests, would be lost.

    Args:
      model: a `DualEncoder`: towers with `blocks` and `encode_inputs`, and `project_image`, `project_text`.
      images, token_ids, microbatch, noise_key, first_example, examples, training, batch: as for
        `contrastive_gradients`. More microbatches need less memory for one block's activations; the boundary
        states grow with B alone.
      apply: receives {path: whole-batch gradient}, and may update that parameter at once, e.g.
        `lambda gradient: optimizer.apply(gradient, step=step)` with `global_clip_norm=None` (a norm over all
        gradients would need all of them).
      trained: the paths to differentiate, e.g. `optimizer.trained_paths()`. A tower of which none is trained
        runs in inference mode.
      tile, label_smoothing, max_inverse_temperature, precision: see `contrastive_loss`.

    Returns:
      The loss and metrics of the weights before the update, and BatchNorm statistics for one
      `model.update_statistics`.

    Raises:
      ValueError: for trained paths that no block holds, for rows that do not match, for a microbatch that
        does not divide them.
      RuntimeError: inside a tf.function.
    """
    if not tf.executing_eagerly():
        raise RuntimeError("contrastive_step_by_block runs eagerly: call it outside any tf.function")
    images, token_ids = (x if callable(x) else tf.convert_to_tensor(x) for x in (images, token_ids))
    pairs = count_rows(images, token_ids, batch)
    cut = cut_rows(pairs, microbatch)
    model.parameters()  # builds the model
    walks = [_Walk(model, name, trained, training) for name in ("image", "text")]
    unknown = sorted(set(trained) - walks[0].paths - walks[1].paths - {TEMPERATURE})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:5])} ({len(unknown)} in all): no block of a tower and no projection holds this; "
            "the contrastive loss does not depend on it. Freeze it by a rule"
        )
    if examples is None:
        examples = first_example + tf.range(pairs)

    def noise(i: int) -> Noise | None:
        return None if noise_key is None else Noise(noise_key, cut.rows(examples, i))

    log_scale = tf.convert_to_tensor(tensor_of(model.log_inverse_temperature))
    embeddings, tapes, statistics = [], [], []
    for walk, source in zip(walks, (images, token_ids)):
        outcomes = [walk.up(cut.rows(source, i), noise(i)) for i in range(cut.count)]
        features = tf.concat([rows for rows, _ in outcomes], 0)
        statistics += [tf.add_n(parts) / cut.count for parts in zip(*(found for _, found in outcomes))]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*walk.projection.values(), features])
            rows = tf.cast(walk.project(features), log_scale.dtype)
        embeddings.append(rows)
        tapes.append((tape, features))

    value = loss_value_and_gradients(
        *embeddings,
        log_scale,
        tile=tile,
        label_smoothing=label_smoothing,
        max_inverse_temperature=max_inverse_temperature,
        precision=precision,
    )
    upstream = (value.image_embeddings, value.text_embeddings)
    for walk, (tape, features), rows, gradient in zip(walks, tapes, embeddings, upstream):
        *found, gradients = tape.gradient(
            rows, [*walk.projection.values(), features], output_gradients=tf.cast(gradient, rows.dtype)
        )
        _apply_all(list(walk.projection), found, apply)
        if walk.tower_trained:
            walk.down(gradients, cut, noise, apply)
    if TEMPERATURE in trained:
        apply({TEMPERATURE: value.log_inverse_temperature})
    return BlockwiseStep(value.loss, statistics, value.metrics)
