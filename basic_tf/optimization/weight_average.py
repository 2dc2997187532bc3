"""An exponential moving average of the weights, for evaluation and export."""

import math
from collections.abc import Mapping

import tensorflow as tf

from basic_tf.optimization import slots as slots_module

WARM_UPS = ("ratio", "zero_debiased")


class WeightAverage:
    """average = d average + (1 - d) weight, once per update, in float32 (float64 for float64 weights).

    An average that starts at the first weights remembers them for 1 / (1 - d) updates. Two ways out, by
    `warm_up`:
      ratio: starts at the weights, d_t = min(d, (1 + t) / (10 + t)) with t the updates of the average so far;
      zero_debiased: starts at zero, constant d, divided by 1 - d^t when read (before the first update: the
        weights).

    Args:
      decay: d, in [0, 1); 0.9999 is usual for long runs.
      warm_up: "ratio" or "zero_debiased".
    """

    def __init__(self, decay: float = 0.9999, warm_up: str = "ratio"):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        if warm_up not in WARM_UPS:
            raise ValueError(f"warm_up is {warm_up!r}; choose one of {', '.join(WARM_UPS)}")
        self.decay = decay
        self.warm_up = warm_up
        self._averages: dict[str, tf.Variable] | None = None

    def build(self, parameters: Mapping[str, object]) -> None:
        """Creates one average per parameter under the active strategy scope. parameters: path -> variable."""
        if self._averages is not None:
            raise ValueError("this average was built already; make a new one for another set of parameters")
        self._parameters = {path: slots_module.underlying(p) for path, p in parameters.items()}
        self._averages = {}
        for path, variable in self._parameters.items():
            dtype = slots_module.arithmetic_dtype(variable.dtype)
            shape = tuple(variable.shape)
            spec = slots_module.SlotSpec(shape, dtype.name, tuple(range(len(shape))))
            self._averages[path] = slots_module.create(f"{path}/average", spec, variable)
        if self.warm_up == "ratio":
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

        step: updates of the average before this one (int or integer scalar tensor). parameters: path ->
          tensor, for a
        caller that already holds the new weights; None reads the variables. Under DTensor the new weights
        must be given when they were assigned in the same function (a variable is not read after its
        assignment).
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
        if self.warm_up == "zero_debiased":
            return tf.constant(1.0 - self.decay, dtype)
        return tf.maximum(tf.constant(1.0 - self.decay, dtype), 9.0 / (tf.cast(step, dtype) + 10.0))

    def averaged(self, step) -> dict[str, tf.Tensor]:
        """path -> averaged weight in the parameter's dtype. step: updates of the average so far."""
        self._require_built()
        result = {}
        for path, average in self._averages.items():
            value = tf.convert_to_tensor(average)
            if self.warm_up == "zero_debiased":
                count = tf.cast(step, value.dtype)
                log_decay = math.log(self.decay) if self.decay else -math.inf
                share = -tf.math.expm1(count * log_decay)
                weight = tf.cast(tf.convert_to_tensor(self._parameters[path]), value.dtype)
                value = tf.where(count > 0, value / tf.where(count > 0, share, tf.ones_like(share)), weight)
            result[path] = tf.cast(value, self._parameters[path].dtype)
        return result
