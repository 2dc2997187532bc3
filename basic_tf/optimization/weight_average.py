"""An exponential moving average of the weights, for evaluation and export."""

from collections.abc import Mapping

import tensorflow as tf

from basic_tf.optimization import slots as slots_module
from basic_tf.precision import wide


class WeightAverage:
    """average = d average + (1 - d) weight, once per update, in float32 (float64 for float64 weights).

    It starts at the first weights, and would remember them for 1 / (1 - d) updates; so d grows at first, as
    d_t = min(d, (1 + t) / (10 + t)) with t the updates so far (the usual warm-up of tf.train's average).

    Args:
      decay: d, in [0, 1); 0.9999 is usual for long runs.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self._averages: dict[str, tf.Variable] | None = None

    def build(self, parameters: Mapping[str, object]) -> None:
        """Creates one average per parameter under the active strategy scope. parameters: path -> variable."""
        if self._averages is not None:
            raise ValueError("this average was built already; make a new one for another set of parameters")
        self._parameters = {path: slots_module.underlying(p) for path, p in parameters.items()}
        self._averages = {}
        for path, variable in self._parameters.items():
            dtype = wide(variable.dtype)
            shape = tuple(variable.shape)
            spec = slots_module.SlotSpec(shape, dtype.name, tuple(range(len(shape))))
            self._averages[path] = slots_module.create(f"{path}/average", spec, variable)
        for path, average in self._averages.items():
            average.assign(tf.cast(tf.convert_to_tensor(self._parameters[path]), average.dtype))

    def slots(self) -> dict[str, tf.Variable]:
        """Every average by `<parameter path>/average`. With the count of updates it is the whole state."""
        self._require_built()
        return {f"{path}/average": average for path, average in self._averages.items()}

    def _require_built(self) -> None:
        if self._averages is None:
            raise ValueError("the average has no slots yet; call build(parameters) first")

    def update(self, step, parameters: Mapping[str, object] | None = None) -> None:
        """Moves every average towards its weight.

        step: updates of the average before this one (int or integer scalar tensor). parameters: path -> tensor, for a
        caller that already holds the new weights; None reads the variables. Under DTensor the new weights must be
        given when they were assigned in the same function (a variable is not read after its assignment).
        """
        self._require_built()
        if parameters is not None:
            missing = [path for path in self._averages if path not in parameters]
            if missing:
                raise ValueError(f"weights are missing for {', '.join(missing[:5])} ({len(missing)} in all)")
        source = self._parameters if parameters is None else parameters
        for path, average in self._averages.items():
            dtype = average.dtype
            weight = tf.cast(tf.convert_to_tensor(slots_module.underlying(source[path])), dtype)
            # d in the arithmetic's dtype: 1 - 0.9999 in float32 would be wrong by 1e-3 of itself.
            distance = tf.cast(self._one_minus_decay(step, dtype), dtype)
            old = tf.convert_to_tensor(average)
            average.assign(old + distance * (weight - old))

    def _one_minus_decay(self, step, dtype) -> tf.Tensor:
        return tf.maximum(tf.constant(1.0 - self.decay, dtype), 9.0 / (tf.cast(step, dtype) + 10.0))

    def averaged(self) -> dict[str, tf.Tensor]:
        """path -> averaged weight in the parameter's dtype."""
        self._require_built()
        return {
            path: tf.cast(tf.convert_to_tensor(average), self._parameters[path].dtype)
            for path, average in self._averages.items()
        }
