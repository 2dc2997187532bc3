"""What a stage optimises: the replica half of a step, for classification and for contrastive learning.

Both return gradients that are this replica's share of the gradient of the mean loss over the *global* batch: the sum over
replicas and microbatches is the gradient, and there is no other 1/N anywhere.
"""

import abc
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import tensorflow as tf

from basic_tf import randomness
from basic_tf.contrastive.blockwise import contrastive_step_by_block
from basic_tf.contrastive.gradients import contrastive_gradients
from basic_tf.contrastive.loss import check_options
from basic_tf.contrastive.microbatches import cut_rows, divisors
from basic_tf.data.labels import class_count
from basic_tf.precision import wide


class StepResult(NamedTuple):
    """The replica half of a step.

    gradients: one per trained variable, this replica's share. statistics: BatchNorm batch statistics, already averaged
    over the global batch (empty under the policies `frozen` and `layer`). metrics: scalars, already global.
    """

    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    metrics: dict[str, tf.Tensor]


class Task(abc.ABC):
    """A model with a loss. `model` offers `add_seed`, `parameters()`, `statistic_variables` and `update_statistics`.

    unit: what an example is, on the progress line. shown: the metrics that stand there.
    apply_by_block: whether the trainer calls `step_by_block` (contrastive tasks alone have it) instead of `step`.
    accumulate_in_slots: how the optimizer's slots take the gradients of microbatches (optimization.slot_accumulation);
    None: gradient buffers. given_features: whether batches hold the image tower's features in place of pictures, so that
    it is not run (the stage sets it). has_bounds: whether `constrain` does anything; a mesh cannot run a function that
    does nothing.
    """

    given_features: bool = False
    has_bounds: bool = False
    accumulate_in_slots: str | None = None
    model: object
    unit: str
    shown: tuple[str, ...]
    apply_by_block: bool = False
    _microbatch: int | None = None

    @property
    def microbatch(self) -> int | None:
        """Rows in memory at once on a replica; None: all of them."""
        return self._microbatch

    def parameters(self) -> dict[str, tf.Variable]:
        """Every weight by path, BatchNorm's moving statistics included."""
        return self.model.parameters()

    @abc.abstractmethod
    def step(self, batch: dict[str, tf.Tensor], noise_key, variables, collectives) -> StepResult:
        """The replica half: this replica's rows of the batch -> gradients of the global loss.

        variables: tf.Variables of what is trained. collectives: a parallel.runtime.Collectives, or None.
        """

    def check_rows(self, rows: int, trained: Iterable[str]) -> None:
        """Raises ValueError if `rows`, the rows of the global batch on one replica, cannot be cut into microbatches, or
        those into the groups of ghost BatchNorm. trained: paths of what is trained.
        """
        size, name = self.microbatch, type(self).__name__
        if size is not None and (size < 1 or rows % size):
            raise ValueError(
                f"{name}.microbatch = {size} does not divide the {rows} rows of a replica; "
                f"use one of {', '.join(map(str, divisors(rows)))}"
            )
        moved = any(path.startswith("image_tower/") for path in trained)
        group = self.model.image_tower.group_size if moved else 1
        if (size or rows) % group:
            fitting = " or ".join(map(str, divisors(rows, group)))
            what = f"{name}.microbatch = {size}" if size else f"a batch of {rows} rows on a replica"
            advice = f"{name}.microbatch = {fitting}" if fitting else "another Stage.batch_size"
            raise ValueError(
                f"{what} cannot be cut into ghost BatchNorm's groups of {group}; use {advice}, or another CoAtNet.ghost_size"
            )

    def check_devices(self, runtime) -> None:  # noqa: B027 (most tasks work on all)
        """Raises ValueError for an option that the step refuses on this parallel.runtime.Runtime. Nothing by default."""

    def constrain(self) -> None:  # noqa: B027 (most tasks have no bounds)
        """Puts variables back into their bounds; the update half calls it after the optimizer. Nothing by default."""

    @abc.abstractmethod
    def multiply_adds_per_example(self, trained: set[str]) -> float:
        """Multiply-adds of one training step per example (forward, backward, second pass), for the progress line."""


class ImageClassifier:
    """An image tower with a classifier head, under the same parameter paths as the dual encoder's image tower."""

    def __init__(self, image_tower):
        self.image_tower = image_tower

    def add_seed(self, seed: int) -> None:
        """Adds a run's seed to the tower's own, before its weights are made."""
        self.image_tower.add_seed(seed)

    def parameters(self) -> dict[str, tf.Variable]:
        """Weights by path, prefixed with `image_tower/`."""
        return {f"image_tower/{path}": variable for path, variable in self.image_tower.parameters().items()}

    @property
    def statistic_variables(self):
        """BatchNorm's moving means and variances."""
        return self.image_tower.statistic_variables

    def update_statistics(self, statistics) -> None:
        """Moves the averages once."""
        self.image_tower.update_statistics(statistics)


class Classification(Task):
    """Stage 1: the image tower as a classifier (basic_paper section 4.1).

    loss: "sigmoid" (multi-label, summed over classes; CoAtNet's JFT recipe) or "softmax" (cross-entropy against the
    labels, normalised to a distribution). label_smoothing: sigmoid targets become y (1 - e) + e / 2; softmax targets
    y (1 - e) + e / classes. metadata: the dataset's json; its label_names are the classes.
    """

    unit = "pictures"
    shown = ("loss", "precision_at_1")

    def __init__(
        self,
        metadata: dict,
        image_tower: Callable,
        loss: str = "sigmoid",
        label_smoothing: float = 1e-4,
        microbatch: int | None = None,
    ):
        if loss not in ("sigmoid", "softmax"):
            raise ValueError(f"Classification.loss is {loss!r}; it can be 'sigmoid' or 'softmax'")
        self.model = ImageClassifier(image_tower(num_classes=class_count(metadata)))
        self._loss = loss
        self._smoothing = label_smoothing
        self._microbatch = microbatch

    def _losses(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """[B, C], [B, C] -> [B]."""
        labels = tf.cast(labels, logits.dtype)
        if self._loss == "sigmoid":
            targets = labels * (1 - self._smoothing) + self._smoothing / 2
            return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), axis=1)
        targets = tf.math.divide_no_nan(labels, tf.reduce_sum(labels, axis=1, keepdims=True))
        targets = targets * (1 - self._smoothing) + self._smoothing / labels.shape[1]
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def _part(self, images, labels, noise, variables, global_batch):
        tower = self.model.image_tower
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            features, statistics = tower.forward(images, training=True, noise=noise)
            logits = tower.logits(features)
            loss = tf.reduce_sum(self._losses(logits, labels)) / tf.cast(global_batch, logits.dtype)
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # A product with one-hot rows and not tf.gather(batch_dims=1), which no mesh can lay out.
        best = tf.one_hot(
            tf.argmax(logits, axis=1, output_type=tf.int32), logits.shape[1], dtype=labels.dtype
        )
        hits = tf.reduce_sum(labels * best, axis=1) > 0
        precision = tf.reduce_sum(tf.cast(hits, loss.dtype)) / tf.cast(global_batch, loss.dtype)
        # Summed in at least float32, over microbatches here and over replicas later, whatever the weights are.
        gradients = [tf.cast(tf.convert_to_tensor(g), wide(g.dtype)) for g in gradients]
        return gradients, statistics, loss, precision

    def step(self, batch, noise_key, variables, collectives) -> StepResult:
        """Gradients of the mean loss over the global batch, microbatch by microbatch."""
        images, labels, examples = batch["images"], batch["labels"], batch["examples"]
        replicas = collectives.replicas if collectives else 1
        mesh = collectives if collectives and collectives.global_view else None
        global_batch = images.shape[0] * (1 if mesh else replicas)
        rows = global_batch // replicas
        microbatches = cut_rows(rows, self._microbatch)
        parts = microbatches.count

        def cut(x, index):
            return mesh.microbatch(x, index, parts) if mesh else microbatches.rows(x, index)

        def like(values, variables):
            return [mesh.like(value, v) for value, v in zip(values, variables)] if mesh else values

        def part(index):
            noise = randomness.Noise(noise_key, cut(examples, index))
            images_, labels_ = cut(images, index), cut(labels, index)
            gradients, *rest = self._part(images_, labels_, noise, variables, global_batch)
            return like(gradients, variables), *rest

        if parts == 1:
            gradients, statistics, loss, precision = part(0)
        else:
            zero = tf.zeros([], wide(variables[0].dtype))
            start = (
                like([tf.zeros(v.shape, wide(v.dtype)) for v in variables], variables),
                [tf.zeros(v.shape, v.dtype) for v in self.model.statistic_variables],
                zero,
                zero,
            )

            def body(index, totals):
                return index + 1, tf.nest.map_structure(tf.add, totals, part(index))

            _, (gradients, statistics, loss, precision) = tf.while_loop(
                lambda index, _: index < parts, body, (tf.constant(0), start), parallel_iterations=1
            )
        # On a mesh the statistics of a microbatch are those of all its devices already.
        statistics = [value / (parts * (1 if mesh else replicas)) for value in statistics]
        if collectives:
            statistics, loss, precision = collectives.sum((statistics, loss, precision))
        return StepResult(gradients, statistics, {"loss": loss, "precision_at_1": precision})

    def multiply_adds_per_example(self, trained: set[str]) -> float:
        """Three forwards' worth: one forward, two for the backward pass."""
        del trained
        return 3.0 * sum(self.model.image_tower.multiply_adds().values())


class Contrastive(Task):
    """Stages 2 and 3: the two-direction contrastive loss with Algorithm 1's exact gradient.

    A tower none of whose weights is trained is run in inference mode, once, and keeps no tape. metadata is not needed: the
    captions are in the records. apply_by_block: each block's gradient is applied as the backward pass produces it, so that
    no whole-model gradient exists (`contrastive.blockwise`): for models whose weights and slots all but fill one device.
    accumulate_in_slots: "sketch" (or "pieces", "uncorrected") sends the gradients of the microbatches straight into the
    optimizer's slots, on one device: no gradient buffer, for an approximate second moment (docs/slot_accumulation.md).
    None: buffers, exact. negatives: "batch", or "microbatch": the mean of a loss over each microbatch by itself, which is
    what accumulating gradients without Algorithm 1 gives; for comparison, on one device. cache_features: a frozen image
    tower's features are computed once and kept in the stage's folder (training/frozen_features.py). tile,
    label_smoothing, max_inverse_temperature: see `contrastive.gradients.contrastive_gradients`.
    """

    unit = "pairs"
    shown = ("loss", "temperature", "image_to_text_accuracy")

    def __init__(
        self,
        metadata: dict | None,
        model: Callable,
        microbatch: int | None = None,
        tile: int | tuple[int, int] = 2048,
        label_smoothing: float = 0.0,
        max_inverse_temperature: float | None = 100.0,
        apply_by_block: bool = False,
        accumulate_in_slots: str | None = None,
        negatives: str = "batch",
        cache_features: bool = False,
    ):
        del metadata
        self.cache_features = cache_features
        if negatives not in ("batch", "microbatch"):
            raise ValueError(f"Contrastive.negatives is {negatives!r}; it can be 'batch' or 'microbatch'")
        if negatives == "microbatch" and (apply_by_block or accumulate_in_slots or not microbatch):
            raise ValueError(
                "Contrastive.negatives = 'microbatch' needs Contrastive.microbatch, and neither apply_by_block nor "
                "accumulate_in_slots"
            )
        if accumulate_in_slots and (apply_by_block or not microbatch):
            what = (
                "Contrastive.apply_by_block is set" if apply_by_block else "Contrastive.microbatch is not set"
            )
            raise ValueError(
                f"Contrastive.accumulate_in_slots is {accumulate_in_slots!r}, but {what}: there is nothing to accumulate; "
                "set it to None"
            )
        check_options(tile, label_smoothing, max_inverse_temperature)
        self.has_bounds = max_inverse_temperature is not None
        self.apply_by_block = apply_by_block
        self.accumulate_in_slots = accumulate_in_slots
        self.model = model()
        if getattr(self.model.image_tower, "head_blocks", None):
            raise ValueError(
                "the image tower of a contrastive task has a classifier (CoAtNet.num_classes is bound), which the loss "
                "does not depend on; leave num_classes to the classification task, which sets it"
            )
        self._microbatch = microbatch
        self._separate = negatives == "microbatch"
        self._options = {
            "tile": tile,
            "label_smoothing": label_smoothing,
            "max_inverse_temperature": max_inverse_temperature,
        }

    def check_devices(self, runtime) -> None:
        """A loss over each microbatch by itself is for one device."""
        if self._separate and runtime.collectives is not None:
            raise ValueError(
                f"Contrastive.negatives = 'microbatch' works on one device; this run has the runtime {runtime.name}. Use "
                "--runtime=one_device, or negatives = 'batch'"
            )

    def step(self, batch, noise_key, variables, collectives, accumulator=None) -> StepResult:
        """Gradients of the mean contrastive loss over the global batch; with an accumulator, its state instead."""
        if self._separate:
            return self._step_of_separate_losses(batch, noise_key, variables, collectives)
        result = contrastive_gradients(
            self.model,
            batch["images"],
            batch["token_ids"],
            self._microbatch,
            noise_key=noise_key,
            examples=batch["examples"],
            variables=variables,
            collectives=collectives,
            accumulator=accumulator,
            **self._options,
        )
        metrics = {"loss": result.loss, "temperature": self._temperature(), **result.metrics}
        return StepResult(list(result.gradients), list(result.statistics), metrics)

    def _step_of_separate_losses(self, batch, noise_key, variables, collectives) -> StepResult:
        """The mean over the microbatches of loss, gradients, statistics and metrics of each as a batch of its own."""
        if collectives:
            raise ValueError("Contrastive.negatives = 'microbatch' works on one device")
        cut = cut_rows(batch["examples"].shape[0], self._microbatch)

        def part(index):
            names = ("images", "token_ids", "examples")
            rows = {name: cut.rows(batch[name], index) for name in names}
            result = contrastive_gradients(
                self.model,
                rows["images"],
                rows["token_ids"],
                noise_key=noise_key,
                examples=rows["examples"],
                variables=variables,
                **self._options,
            )
            gradients = [tf.convert_to_tensor(gradient) for gradient in result.gradients]
            return result.loss, gradients, list(result.statistics), dict(result.metrics)

        total = part(tf.constant(0))
        _, total = tf.while_loop(
            lambda index, _: index < cut.count,
            lambda index, total: (index + 1, tf.nest.map_structure(tf.add, total, part(index))),
            (tf.constant(1), total),
            parallel_iterations=1,
        )
        loss, gradients, statistics, metrics = tf.nest.map_structure(lambda value: value / cut.count, total)
        return StepResult(
            gradients, statistics, {"loss": loss, "temperature": self._temperature(), **metrics}
        )

    def _temperature(self) -> tf.Tensor:
        return tf.exp(-tf.convert_to_tensor(self.model.log_inverse_temperature))

    def step_by_block(self, batch, noise_key, trained: list[str], apply: Callable) -> StepResult:
        """`step` on one device, eagerly: apply({path: gradient}) for each trained path; the result holds none."""
        temperature = self._temperature()  # before the update
        result = contrastive_step_by_block(
            self.model,
            batch["images"],
            batch["token_ids"],
            apply,
            trained,
            self._microbatch,
            noise_key=noise_key,
            examples=batch["examples"],
            **self._options,
        )
        metrics = {"loss": result.loss, "temperature": temperature, **result.metrics}
        return StepResult([], list(result.statistics), metrics)

    @property
    def tile(self) -> int | tuple[int, int]:
        """Tile of the loss: see `contrastive.loss.contrastive_loss`."""
        return self._options["tile"]

    def constrain(self) -> None:
        """Clips the temperature (CLIP: 1 / tau <= 100): above the bound its gradient is zero, it would never come back."""
        largest = self._options["max_inverse_temperature"]
        if largest is None:
            return
        variable = self.model.log_inverse_temperature
        bound = tf.constant(math.log(largest), variable.dtype)
        variable.assign(tf.minimum(tf.convert_to_tensor(variable), bound))

    def multiply_adds_per_example(self, trained: set[str]) -> float:
        """Per tower: three forwards' worth if trained, one if frozen, one more for Algorithm 1's first pass."""
        total = 0.0
        for name in ("image_tower", "text_tower"):
            if name == "image_tower" and self.given_features:
                continue
            trains = any(path.startswith(name + "/") for path in trained)
            passes = (4 if self._microbatch or self.apply_by_block else 3) if trains else 1
            total += passes * sum(getattr(self.model, name).multiply_adds().values())
        return total
