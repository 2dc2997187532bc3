"""AdaFactorW's arithmetic: a pure function from old values to new values. It owns no variable.

So the same lines serve a plain step, `tf.distribute`'s update half, DTensor, and the application of one
block's gradient at a time while the backward pass still runs.

The rule (BASIC's optimizer is described as AdaFactor and AdamW joined; its order is that of Adam). With g the
gradient, t = step + 1:

    m = b1 m + (1 - b1) g             first moment of the raw gradient; stored bfloat16, used in float32
    R = b2 R + (1 - b2) mean_columns(g^2)
    C = b2 C + (1 - b2) mean_rows(g^2)
    v = R C^T / mean(R)               AdaFactor's factored second moment (arXiv 1804.04235, section 3)
    u = [m / (1 - b1^t)] / (sqrt(v / (1 - b2^t)) + eps)
    u = u / max(1, RMS(u) / clip)     AdaFactor's update clipping
    W = W - lr (u + decay W)          AdamW's decoupled decay, not multiplied by the weight's own scale

Big_vision's rule ("modified Adafactor" of Scaling ViT, arXiv 2106.04560; `optax.adafactor` with an absolute
learning rate) has another order: normalise, clip, then average the *normalised* updates:

    b2_t = min(b2, 1 - t^-0.8)                   eps is added to g^2, there is no bias correction
    u = g / sqrt(v);  u = u / max(1, RMS(u) / clip);  m = b1 m + (1 - b1) u;  W = W - lr (m + decay W)
"""

import dataclasses
import math
import numbers
import re

import numpy as np
import tensorflow as tf

from basic_tf.optimization import rounding, slots
from basic_tf.precision import wide

MOMENTUM = "momentum"
SECOND_MOMENT = "second_moment"
ROWS = "second_moment_rows"
COLUMNS = "second_moment_columns"


def _scalar(number, dtype: tf.DType) -> tf.Tensor:
    """A number in the arithmetic's dtype. (`tf.cast` rounds a Python number to float32 first.)"""
    return tf.cast(number, dtype) if tf.is_tensor(number) else tf.constant(number, dtype)


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """What the update is, without learning rate and decay, which differ between parameters.

    What is factored. The two largest axes of a parameter become rows and columns when both have at least
    `factor_min_dim` entries. All other axes keep factors of their own: a [kh, kw, in, out] convolution has a
    row and a column factor for each (kh, kw), as if it were kh * kw matrices. Averaging over the positions
    instead would save nothing that counts (the factors are (in + out) / (in * out) of the kernel) and would
    say that the centre and the corner of a kernel see gradients of one scale, which they do not. Depthwise
    kernels [3, 3, C, 1], biases, norms and scalars have no two such axes and keep a full second moment; so
    does everything whose path matches `unfactored` (relative-bias tables, which outgrow `factor_min_dim` at
    high resolution).

    Attributes:
      beta1: decay of the first moment; 0 means no first moment and no slot for it.
      beta2: decay of the second moment; with `big_vision`, its upper bound.
      eps: added to the root (Adam), or to the squared gradient with `big_vision`.
      update_clip: largest RMS of a parameter's update; None switches clipping off.
      momentum_dtype: dtype of the first moment's slot; None is the arithmetic's own.
      momentum_rounding, weight_rounding: "nearest" or "stochastic", into bfloat16 slots and bfloat16 weights.
      second_moment: "factored" or "full".
      factor_min_dim: smallest size of both factored axes.
      unfactored: regular expression; full match of a parameter path.
      bias_correction: Adam's.
      big_vision: the other order.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    update_clip: float | None = 1.0
    momentum_dtype: str | None = "bfloat16"
    momentum_rounding: str = "nearest"
    weight_rounding: str = "nearest"
    second_moment: str = "factored"
    factor_min_dim: int = 32
    unfactored: str | None = r"(.*/)?[^/]*relative[^/]*(/.*)?"
    bias_correction: bool = True
    big_vision: bool = False

    def __post_init__(self):
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not 0.0 <= value < 1.0:
                raise ValueError(f"{name} is {value}; it must be a number, at least 0 and below 1")
        if self.eps <= 0:
            raise ValueError(f"eps is {self.eps}; it must be positive (1e-8 is Adam's, 1e-30 big_vision's)")
        if self.update_clip is not None and self.update_clip <= 0:
            raise ValueError(
                f"update_clip is {self.update_clip}; give a positive RMS, or None for no clipping"
            )
        if self.second_moment not in ("factored", "full"):
            raise ValueError(f'second_moment is {self.second_moment!r}; choose "factored" or "full"')
        for name in ("momentum_rounding", "weight_rounding"):
            if getattr(self, name) not in rounding.MODES:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(rounding.MODES)}"
                )
        if self.momentum_dtype is not None and not tf.as_dtype(self.momentum_dtype).is_floating:
            raise ValueError(f"momentum_dtype is {self.momentum_dtype!r}; it must be a floating-point type")

    @property
    def stochastic(self) -> bool:
        """Whether `update` needs a noise key."""
        return "stochastic" in (self.momentum_rounding, self.weight_rounding)

    def factored_axes(self, path: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """(row axis, column axis) of a parameter, or None if its second moment is kept in full."""
        if self.second_moment == "full" or len(shape) < 2:
            return None
        if self.unfactored is not None and re.fullmatch(self.unfactored, path):
            return None
        largest = np.argsort(shape, kind="stable")[-2:]
        if shape[largest[0]] < self.factor_min_dim:
            return None
        row, column = sorted(int(axis) for axis in largest)
        return row, column

    def slot_specs(self, path: str, shape: tuple[int, ...], dtype="float32") -> dict[str, slots.SlotSpec]:
        """The slots of one parameter by their short names; nothing is allocated (the planner sums these)."""
        shape = tuple(int(size) for size in shape)
        computed = wide(dtype).name
        axes = tuple(range(len(shape)))
        specs = {}
        if self.beta1:
            specs[MOMENTUM] = slots.SlotSpec(shape, self.momentum_dtype or computed, axes)
        factored = self.factored_axes(path, shape)
        if factored is None:
            specs[SECOND_MOMENT] = slots.SlotSpec(shape, computed, axes)
        else:
            for name, averaged in ((ROWS, factored[1]), (COLUMNS, factored[0])):
                kept = tuple(axis for axis in axes if axis != averaged)
                specs[name] = slots.SlotSpec(tuple(shape[axis] for axis in kept), computed, kept)
        return specs

    def statistics(self, path: str, squared: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the second-moment slots average, by short name: g^2, or its means over columns and over rows.

        Linear in `squared`, so it may be summed over microbatches.
        """
        factored = self.factored_axes(path, tuple(squared.shape))
        if factored is None:
            return {SECOND_MOMENT: squared}
        row_axis, column_axis = factored
        return {ROWS: tf.reduce_mean(squared, column_axis), COLUMNS: tf.reduce_mean(squared, row_axis)}

    def averaged(self, statistics, values, beta2) -> dict[str, tf.Tensor]:
        """The moving averages one step on, in the dtype of the statistics. values: old slots by short name."""
        new = {}
        for name, statistic in statistics.items():
            dtype = statistic.dtype
            keep, add = _scalar(beta2, dtype), _scalar(1.0 - beta2, dtype)
            new[name] = keep * tf.cast(values[name], dtype) + add * statistic
        return new

    def roots(self, path: str, shape: tuple[int, ...], second: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """sqrt(v) as a tuple of factors whose product broadcasts to the shape. second: slots by short name.

        Two factors rather than their product: 1/sqrt(v) then overflows later, and one whole-size tensor less
        exists.
        """
        if SECOND_MOMENT in second:
            return (tf.sqrt(second[SECOND_MOMENT]),)
        row_axis, column_axis = self.factored_axes(path, shape)
        rows, columns = second[ROWS], second[COLUMNS]
        # `rows` has lost the column axis only, which lies behind the row axis: the row axis has kept its
        # number.
        mean = tf.reduce_mean(rows, row_axis, keepdims=True)
        relative = rows / tf.where(mean > 0, mean, tf.ones_like(mean))  # no gradient so far: 0, not NaN
        return tf.expand_dims(tf.sqrt(relative), column_axis), tf.expand_dims(tf.sqrt(columns), row_axis)

    def _clipped(self, direction: tf.Tensor) -> tf.Tensor:
        if self.update_clip is None:
            return direction
        rms = tf.sqrt(tf.reduce_mean(tf.square(direction)))
        return direction / tf.maximum(tf.ones_like(rms), rms / self.update_clip)

    def direction(self, path: str, gradient: tf.Tensor, values: dict[str, tf.Tensor], step):
        """The update before learning rate and decay.

        gradient: the parameter's shape, in the arithmetic's dtype. values: old slots by short name.
        step: updates made before this one (int or integer scalar tensor). Returns (direction, new slots in
          the
        arithmetic's dtype).
        """
        dtype = gradient.dtype
        if self.big_vision:
            return self._big_vision_direction(path, gradient, values, step)
        new = self.averaged(self.statistics(path, tf.square(gradient)), values, self.beta2)
        moment = gradient
        if self.beta1:
            moment = self.beta1 * tf.cast(values[MOMENTUM], dtype) + (1.0 - self.beta1) * gradient
        direction = self.adam_direction(moment, self.roots(path, tuple(gradient.shape), new), step)
        return direction, (new | {MOMENTUM: moment} if self.beta1 else new)

    def adam_direction(self, moment: tf.Tensor, roots: tuple[tf.Tensor, ...], step) -> tf.Tensor:
        """The update before learning rate and decay, from the new moments. roots: from `roots`."""
        count = tf.cast(step, moment.dtype) + 1
        if self.bias_correction:
            # expm1: 1 - 0.999^1 in float32 would be wrong by 5e-5.
            if self.beta2:
                roots = (*roots[:-1], roots[-1] * tf.math.rsqrt(-tf.math.expm1(count * math.log(self.beta2))))
            if self.beta1:
                moment = moment / -tf.math.expm1(count * math.log(self.beta1))
        root = roots[0] if len(roots) == 1 else roots[0] * roots[1]
        return self._clipped(moment / (root + self.eps))

    def _big_vision_direction(self, path, gradient, values, step):
        dtype = gradient.dtype
        count = tf.cast(step, dtype) + 1
        beta2 = tf.minimum(tf.constant(self.beta2, dtype), 1.0 - tf.pow(count, tf.constant(-0.8, dtype)))
        new = self.averaged(self.statistics(path, tf.square(gradient) + self.eps), values, beta2)
        direction = gradient
        for root in self.roots(path, tuple(gradient.shape), new):
            direction = direction / root
        direction = self._clipped(direction)
        if self.beta1:
            # JAX multiplies a bfloat16 array by a Python number rounded to bfloat16, and under jit in
            # float32: the momentum of a bfloat16 slot decays by 0.8984375, not by 0.9.
            slot = values[MOMENTUM]
            decay = float(np.asarray(self.beta1, tf.as_dtype(slot.dtype).as_numpy_dtype))
            direction = decay * tf.cast(slot, dtype) + (1.0 - self.beta1) * direction
            new[MOMENTUM] = direction
        return direction, new

    def update(
        self,
        path: str,
        value: tf.Tensor,
        gradient: tf.Tensor,
        values: dict[str, tf.Tensor],
        step,
        learning_rate,
        weight_decay=0.0,
        noise_key: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """One update of one parameter.

        Args:
          path: the parameter's path; it decides what is factored and names the rounding's random stream.
          value: the parameter. gradient: of the same shape, any floating dtype.
          values: the slots by short name, as `slot_specs` lists them.
          step: updates made before this one (int or integer scalar tensor).
          learning_rate, weight_decay: numbers or scalar tensors; the decay is multiplied by the learning
            rate.
          noise_key: uint32 [2], needed for stochastic rounding.

        Returns:
          The new value in the parameter's dtype and the new slots in their own dtypes.
        """
        dtype = wide(value.dtype)
        direction, new = self.direction(path, tf.cast(gradient, dtype), values, step)
        new_value = self.moved(path, value, direction, learning_rate, weight_decay, noise_key)
        narrowed = {
            name: rounding.narrow(
                slot, values[name].dtype, self.momentum_rounding, noise_key, f"{path}/{name}"
            )
            for name, slot in new.items()
        }
        return new_value, narrowed

    def moved(self, path, value, direction, learning_rate, weight_decay=0.0, noise_key=None) -> tf.Tensor:
        """The parameter after W = W - lr (direction + decay W), in its own dtype; arguments as for `update`."""
        dtype = direction.dtype
        wide = tf.cast(value, dtype)
        rate = _scalar(learning_rate, dtype)
        # A Python zero is skipped, so that an undecayed weight costs nothing.
        decayed = (
            direction
            if isinstance(weight_decay, (int, float)) and weight_decay == 0
            else direction + _scalar(weight_decay, dtype) * wide
        )
        return rounding.narrow(wide - rate * decayed, value.dtype, self.weight_rounding, noise_key, path)
