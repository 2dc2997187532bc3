"""A classifier with its loss, traced as the last piece of an image tower: logits, cross-entropy, their gradients."""

import tensorflow as tf

from basic_tf.planning.block_trace import BlockTrace, Reader, placeholders, untouched_variable


class _Given:
    """Stands where the task's image tower was: its features are there, its classifier is the tower's own."""

    def __init__(self, tower, features: tf.Tensor):
        self.forward = lambda images, training, noise: (features, [])
        self.logits = tower.logits


class Head:
    """The loss is the task's own step, so the plan follows its code.

    task: a classification task without microbatches, for this alone: it loses its tower. classes: columns of the labels.
    """

    def __init__(self, task, classes: int):
        self._task, self._tower = task, task.model.image_tower
        self.classes = classes

    def trace(self, features: tf.TensorSpec, sharded: frozenset[str] = frozenset()) -> BlockTrace:
        """Everything from the features [B, D] to the gradients of them and of the weights, in `forward`.

        sharded: as in `block_trace.trace`.
        """
        weights, found, rows = {}, [], features.shape[0]

        def make(spec):
            weights[spec.path] = untouched_variable(spec.shape, self._tower.variable_dtype, spec.trainable)
            return weights[spec.path]

        for block in self._tower.head_blocks:
            block.stand_in(make)

        def traced():
            given, labels, examples, key = data = placeholders([
                features,
                tf.TensorSpec([rows, self.classes], tf.float32),
                tf.TensorSpec([rows], tf.int32),
                tf.TensorSpec([2], tf.uint32),
            ])  # fmt: skip
            self._task.model.image_tower = _Given(self._tower, given)
            # The pictures are not looked at; the step asks them for the rows of the batch.
            batch = {"images": given, "labels": labels, "examples": examples}
            result = self._task.step(batch, key, [given, *weights.values()], None)
            graph = tf.compat.v1.get_default_graph()
            copied = {
                inside.op.name
                for handle, inside in graph.captures
                if any(handle is w.handle for path, w in weights.items() if path in sharded)
            }
            reader = Reader(graph, [*result.gradients, *result.metrics.values()], data, [], copied)
            into, *own = map(reader.buffer_of, result.gradients)
            loss = reader.buffer_of(result.metrics["loss"])
            found.append(
                BlockTrace(
                    reader.sizes,
                    *reader.ops,
                    [reader.buffer_of(given)],
                    [loss],
                    [],
                    [into],
                    own,
                    reader.operations,
                )
            )
            return tf.constant(0)

        tf.function(traced, autograph=False).get_concrete_function()
        return found[0]
