"""What Algorithm 1 is made of, on one device, on replicas and on a mesh: the two sides and their statistics."""

import tensorflow as tf

from basic_tf.contrastive.loss import Collectives
from basic_tf.contrastive.microbatches import Rows
from basic_tf.randomness import Noise

TEMPERATURE = "log_inverse_temperature"


class Side:
    """One tower and its projection: how it embeds rows, and which of the variables it trains.

    A tower none of whose weights is trained runs in inference mode (its BatchNorm too). If its projection is
    trained, and the model offers `<side>_features` and `project_<side>`, the features [B, width] are
    computed once and kept.
    """

    def __init__(self, model, name: str, source: Rows, paths: list[str], training: bool):
        self.source = source
        # A variable without a known path may belong to either side.
        other = {"image": "text_", "text": "image_"}[name]
        own = [k for k, path in enumerate(paths) if path != TEMPERATURE and not path.startswith(other)]
        self.trained = own
        tower_trained = any(not paths[k].startswith(f"{name}_projection/") for k in own)
        self.training = training and tower_trained
        self._embed = getattr(model, f"{name}_embeddings")
        features, self.project = (
            getattr(model, f"{name}_features", None),
            getattr(model, f"project_{name}", None),
        )
        self.keeps_features = (
            bool(own) and not tower_trained and features is not None and self.project is not None
        )
        self._first = features if self.keeps_features else self._embed
        self.twice = bool(own) and not self.keeps_features

    def embed(self, rows, noise: Noise | None):
        """(unit rows, or features where those are kept, in the type of the model; statistics)."""
        return self._first(rows, self.training, noise if self.training else None)


class Statistics:
    """BatchNorm statistics as one row per microbatch: a loop can carry that before it knows how many there
    are."""

    def __init__(self, dtype: tf.DType):
        self.dtype = dtype
        self.like: list = []

    def pack(self, statistics: list) -> tf.Tensor:
        """One row of all statistics of a microbatch."""
        self.like = [(s.shape, s.dtype) for s in statistics]
        flat = [tf.reshape(tf.cast(s, self.dtype), [-1]) for s in statistics]
        return tf.concat([tf.zeros([0], self.dtype), *flat], 0)

    def mean(self, rows: tf.Tensor, collectives: Collectives) -> list[tf.Tensor]:
        """rows [microbatches, ...] -> the mean of each statistic over microbatches and replicas."""
        if not self.like:
            return []
        mean = tf.reduce_mean(rows, 0)
        if collectives.replicas > 1:
            mean = collectives.sum(mean) / collectives.replicas
        parts = tf.split(mean, [shape.num_elements() for shape, _ in self.like])
        return [tf.cast(tf.reshape(part, shape), dtype) for part, (shape, dtype) in zip(parts, self.like)]


def tensor_of(variable):
    """The tf.Variable inside a Keras variable: what a tape knows."""
    value = getattr(variable, "value", None)
    return variable if value is None or callable(value) else value


def check_reached(reached: set[int], paths: list[str], variables: list) -> None:
    """Raises ValueError for variables whose gradient is none: weight decay alone would move them, in silence.

    reached: those that a tape found a gradient for; the temperature's comes from the loss.
    """
    missing = [
        path or variables[k].name for k, path in enumerate(paths) if k not in reached and path != TEMPERATURE
    ]
    if missing:
        raise ValueError(
            f"the contrastive loss does not depend on {', '.join(missing[:5])} ({len(missing)} in all); freeze it by a "
            "rule, or leave it out of the variables to differentiate"
        )


def paths_of(parameters: dict, variables: list) -> list[str]:
    """The parameter path of each variable; '' for one that the model does not list."""
    paths = {id(tensor_of(variable)): path for path, variable in parameters.items()}
    return [paths.get(id(tensor_of(v)), "") for v in variables]


def projected(sides: list[Side], tables: list[tf.Tensor], dtype: tf.DType) -> tuple[list[tf.Tensor], dict]:
    """What pass 1 kept of each side as embeddings [B, D], and {side: (tape, embeddings)} of those that kept features."""
    embeddings, tapes = [], {}
    for side, table in zip(sides, tables):
        if side.keeps_features:
            with tf.GradientTape() as tape:
                table = tf.cast(side.project(table), dtype)
            tapes[side] = tape, table
        embeddings.append(table)
    return embeddings, tapes
