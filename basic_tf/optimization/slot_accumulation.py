"""Microbatch gradients go straight into AdaFactorW's slots: no whole-model gradient buffer exists.

(BASIC, arXiv 2111.10050, its accumulation of gradients in the optimizer's slots; how it corrects the second
moment is reconstructed, not quoted.) A step's gradient is g = g_1 + ... + g_N, the contributions of N
microbatches. With c_i = N g_i, g is the mean of the c_i.

First moment, linear and so exact:  m <- k m + ((1 - b1) / N) c_i,  k = b1 for the first i, else 1.

Second moment. AdaFactorW wants the mean over columns (and over rows) of g^2. The same means of
(1/N) sum c_i^2 are too large by those of (1/N) sum (c_i - g)^2, in expectation (1 - 1/N) Var[c]. What is done
about it, by `correction`:

  sketch      Row r of a matrix gradient has sum_j g_rj^2 = E[(sum_j s_j g_rj)^2] for independent random signs
              s_j. The inner sum is linear in g, so it is accumulated over the microbatches exactly: K sign
              vectors, drawn by the project's hash anew in each step, need K numbers per row and per column
              instead of a matrix. The estimate is unbiased for any N and any distribution of the c_i, never
              negative, and has a relative standard deviation of at most sqrt(2 / K) in a step; the moving
              average of the slot reduces that. (Alon, Matias and Szegedy 1996, "tug of war" sketch.)
              Parameters without a factored second moment are small: their gradients are summed exactly, and
              so are those whose sketch would not be smaller than themselves.
  pieces      The paper's form, with R pieces of each microbatch in the role of its R replicas. Each has a
              gradient d_r, c_i = mean d_r, Var[c_i] is estimated as samplevar(d) / R, and (1 - 1/N) of it is
              subtracted. Unbiased when the pieces are independent. Single estimates may be negative: the
              slot is clamped at 0 after the step, and an element whose second moment is 0 waits. R gradients
              of a microbatch exist at once, which on one device costs what it saves: for comparison.
  uncorrected (1/N) sum c_i^2 as it is.

A parameter that gets one contribution only (N = 1, the temperature, the projection of a frozen tower) is
updated as ever.
"""

import tensorflow as tf

from basic_tf import randomness
from basic_tf.optimization import rounding
from basic_tf.optimization.update_rule import COLUMNS, MOMENTUM, ROWS
from basic_tf.precision import wide

CORRECTIONS = ("sketch", "pieces", "uncorrected")
_COUNT, _SUM = "contributions", "sum"


class SlotAccumulation:
    """One step of an AdaFactorW whose gradient arrives in contributions; made by `AdaFactorW.accumulation`.

    Usage (a `contrastive.accumulation.Accumulator`):
        state = accumulation.start([N, N, 1, ...])        # contributions that each variable will get
        state = accumulation.add(state, {0: [g], 1: [g]}) # as often as that; inside tf.while_loop or not
        accumulation.apply(state)                         # second moments and weights, once

    The state is small: it holds no tensor of a matrix' size. The momentum slots are assigned in `add`, and
    read again: right in eager mode and in a tf.function on one device, where reads and assignments keep
    their order; refused under DTensor and with several replicas.

    Arithmetic is float32 (float64 for float64 parameters). Into bfloat16 momentum every contribution is
    rounded stochastically, whatever the optimizer's `momentum_rounding`: to nearest, most would be lost.
    """

    def __init__(
        self, optimizer, variables, step, correction: str = "sketch", sketch_width: int = 16, pieces: int = 4
    ):
        check(optimizer, correction, sketch_width, pieces)
        self.pieces = pieces if correction == "pieces" else 1
        self._optimizer, self._rule, self._step = optimizer, optimizer.rule, step
        self._correction, self._width = correction, sketch_width
        self._paths = [optimizer.path_of(variable) for variable in variables]
        missing = [path for path in optimizer.trained_paths() if path not in self._paths]
        if missing:
            raise ValueError(
                f"slots cannot accumulate without {', '.join(missing[:5])} ({len(missing)} trained parameters "
                "were not given); give every trained variable"
            )
        parameters = [optimizer.parameter(path) for path in self._paths]
        if tf.distribute.get_strategy().num_replicas_in_sync > 1 or any(
            hasattr(parameter, "layout") for parameter in parameters
        ):
            raise ValueError(
                "accumulation in slots assigns and reads a slot several times in a step, which is right on one "
                "device only; use the runtime one_device, or gradient buffers"
            )
        self._shapes = [tuple(parameter.shape) for parameter in parameters]
        self._dtypes = [wide(parameter.dtype) for parameter in parameters]
        self._key = randomness.step_key(optimizer.seed, step)

    def kinds(self, counts: list[int]) -> list[str]:
        """How each variable is accumulated: "sum" (exactly, in a buffer), "sketch", or "slots" (in place)."""
        found = []
        for path, shape, count in zip(self._paths, self._shapes, counts, strict=True):
            if not isinstance(count, int):
                raise ValueError(
                    "the number of microbatches is known only when the step runs; accumulation in slots needs it "
                    "when the step is traced: give batches of a fixed size"
                )
            if count == 1:
                found.append(_SUM)
            elif self._correction != "sketch":
                found.append("slots")
            else:
                found.append("sketch" if sketched(self._rule, path, shape, self._width) else _SUM)
        return found

    def start(self, counts: list[int]) -> list[dict[str, tf.Tensor]]:
        """The state before the first contribution. counts: how many contributions each variable will get."""
        self._counts, self._kinds = list(counts), self.kinds(counts)
        state = []
        for path, kind, shape, dtype in zip(self._paths, self._kinds, self._shapes, self._dtypes):
            own = {_COUNT: tf.zeros([], tf.int32)}
            if kind == _SUM:
                own[_SUM] = tf.zeros(shape, dtype)
            elif kind == "sketch":
                row_axis, column_axis = self._rule.factored_axes(path, shape)
                for name, lost in ((ROWS, column_axis), (COLUMNS, row_axis)):
                    kept = [size for axis, size in enumerate(shape) if axis != lost]
                    own[name] = tf.zeros([*kept, self._width], dtype)
            state.append(own)
        return state

    def add(self, state: list, found: dict[int, list]) -> list:
        """Takes one more contribution to some variables: index -> gradients of its pieces (None: zero)."""
        state = list(state)
        for k, gradients in found.items():
            kind, shape, dtype, own = self._kinds[k], self._shapes[k], self._dtypes[k], dict(state[k])
            parts = [tf.cast(tf.convert_to_tensor(g), dtype) for g in gradients if g is not None]
            parts += [tf.zeros(shape, dtype)] * (len(gradients) - len(parts))
            gradient = tf.add_n(parts) if len(parts) > 1 else parts[0]
            assigned = []
            # Nothing of a parameter's size may be read, cast or drawn before the gradient is there: executors run
            # whatever is ready, and would do so for all parameters at once.
            with tf.control_dependencies([gradient]):
                if kind == _SUM:
                    own[_SUM] += gradient
                else:
                    assigned.append(self._add_to_momentum(k, gradient, own[_COUNT]))
                if kind == "sketch":
                    row_axis, column_axis = self._rule.factored_axes(self._paths[k], shape)
                    for name, axis in ((ROWS, column_axis), (COLUMNS, row_axis)):
                        own[name] += tf.tensordot(gradient, self._signs(k, name, shape[axis]), [[axis], [0]])
                elif kind == "slots":
                    assigned += self._add_to_second_moment(k, gradient, parts, own[_COUNT])
            # Whoever needs the new state waits for the slots.
            with tf.control_dependencies([op for op in assigned if op is not None]):
                own[_COUNT] = own[_COUNT] + 1
            state[k] = own
        return state

    def _signs(self, k: int, name: str, size: int) -> tf.Tensor:
        """[size, K] of +1 and -1, the same in every call of a step."""
        noise = randomness.Noise(self._key, tf.zeros([1], tf.int32))
        words = randomness.bits(noise, f"{self._paths[k]}/{name}/sketch", size * self._width)
        highest = tf.cast(tf.bitwise.right_shift(words, tf.constant(31, tf.uint32)), tf.int32)
        return tf.reshape(tf.cast(1 - 2 * highest, self._dtypes[k]), [size, self._width])

    def _kept(self, beta: float, count: tf.Tensor, dtype) -> tf.Tensor:
        return tf.where(count == 0, tf.constant(beta, dtype), tf.ones([], dtype))

    def _add_to_momentum(self, k: int, gradient: tf.Tensor, count: tf.Tensor):
        rule, path = self._rule, self._paths[k]
        slot = self._optimizer.slots_of(path)[MOMENTUM]
        old = tf.cast(slot.read_value(), gradient.dtype)
        new = self._kept(rule.beta1, count, gradient.dtype) * old + (1.0 - rule.beta1) * gradient
        stored = rounding.narrow(new, slot.dtype, "stochastic", self._key, f"{path}/{MOMENTUM}", count)
        return slot.assign(stored, read_value=False)

    def _add_to_second_moment(self, k: int, gradient, parts, count) -> list:
        rule, path, number = self._rule, self._paths[k], self._counts[k]
        statistics = rule.statistics(path, tf.square(number * gradient))
        if len(parts) > 1:
            pieces = len(parts)
            # d_r = R N p_r for pieces p_r that sum up to g_i; their mean is c_i.
            squares = tf.add_n([tf.square(pieces * number * part - number * gradient) for part in parts])
            variance = rule.statistics(path, squares / ((pieces - 1) * pieces))
            factor = excess(number)
            statistics = {name: value - factor * variance[name] for name, value in statistics.items()}
        assigned = []
        for name, statistic in statistics.items():
            slot = self._optimizer.slots_of(path)[name]
            kept = self._kept(rule.beta2, count, gradient.dtype)
            new = kept * slot.read_value() + ((1.0 - rule.beta2) / number) * statistic
            assigned.append(slot.assign(new, read_value=False))
        return assigned

    def apply(self, state: list) -> None:
        """The end of the step: second moments and weights, from the state after the last contribution."""
        rate = self._optimizer.learning_rate(self._step)
        before = []
        for k, (path, kind, own) in enumerate(zip(self._paths, self._kinds, state)):
            # One parameter after the other, for the same reason.
            with tf.control_dependencies(before):
                if kind == _SUM:
                    self._optimizer.apply_one(path, own[_SUM], self._step, rate, self._key)
                else:
                    assigned = self._apply_to(k, own, rate)
                    before = [op for op in assigned if op is not None]

    def _apply_to(self, k: int, own: dict[str, tf.Tensor], rate: tf.Tensor) -> list:
        optimizer, rule, path, kind = self._optimizer, self._rule, self._paths[k], self._kinds[k]
        slot, variable, setting = optimizer.slots_of(path), optimizer.parameter(path), optimizer.setting(path)
        moment = tf.cast(slot[MOMENTUM].read_value(), self._dtypes[k])
        if kind == "sketch":
            statistics = self._statistics_of_sketches(k, own)
            old = {name: slot[name].read_value() for name in statistics}
            second = rule.averaged(statistics, old, rule.beta2)
        else:
            second = {
                name: tf.maximum(variable.read_value(), tf.zeros([], variable.dtype))
                for name, variable in slot.items()
                if name != MOMENTUM
            }
        roots = rule.roots(path, self._shapes[k], second)
        if self._correction == "pieces":
            for root in roots:  # without an estimate, the quotient would be m / eps
                moment = tf.where(root > 0, moment, tf.zeros([], moment.dtype))
        new_value = rule.moved(
            path,
            variable.read_value(),
            rule.adam_direction(moment, roots, self._step),
            rate * setting.learning_rate_factor,
            optimizer.weight_decay if setting.decay else 0.0,
            self._key,
        )
        assigned = [slot[name].assign(value, read_value=False) for name, value in second.items()]
        return [*assigned, variable.assign(new_value, read_value=False)]

    def _statistics_of_sketches(self, k: int, own: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Means over columns and over rows of g^2, estimated."""
        row_axis, column_axis = self._rule.factored_axes(self._paths[k], self._shapes[k])
        return {
            name: tf.reduce_sum(tf.square(own[name]), -1) / (self._width * self._shapes[k][axis])
            for name, axis in ((ROWS, column_axis), (COLUMNS, row_axis))
        }


def excess(contributions: int) -> float:
    """E[(1/N) sum c_i^2] - E[g^2], in units of Var[c]: the sample's mean takes 1/N of the variance with it."""
    return 1.0 - 1.0 / contributions


def sketched(rule, path: str, shape: tuple[int, ...], width: int) -> bool:
    """Whether a parameter gets a sketch of `width` K: it is factored, and the sketch is smaller than it is."""
    return (
        rule.factored_axes(path, shape) is not None
        and sketch_size(rule, path, shape, width) < tf.TensorShape(shape).num_elements()
    )


def sketch_size(rule, path: str, shape: tuple[int, ...], width: int) -> int:
    """Numbers in a factored parameter's row and column sketches."""
    elements = tf.TensorShape(shape).num_elements()
    return width * sum(elements // shape[axis] for axis in rule.factored_axes(path, shape))


def state_bytes(
    rule, shapes: dict[str, tuple[int, ...]], width: int = 16, itemsize: int = 4
) -> dict[str, int]:
    """Bytes carried through a step with correction "sketch": `sketches`, and exact `sums` of the others."""
    total = {"sketches": 0, "sums": 0}
    for path, shape in shapes.items():
        if sketched(rule, path, shape, width):
            total["sketches"] += itemsize * sketch_size(rule, path, shape, width)
        else:
            total["sums"] += itemsize * tf.TensorShape(shape).num_elements()
    return total


def check(optimizer, correction: str = "sketch", sketch_width: int = 16, pieces: int = 4) -> None:
    """Raises ValueError, in one line, if this optimizer cannot accumulate in its slots."""
    rule = optimizer.rule
    if correction not in CORRECTIONS:
        raise ValueError(f"the correction is {correction!r}; choose one of {', '.join(CORRECTIONS)}")
    if optimizer.global_clip_norm is not None:
        raise ValueError(
            f"global_clip_norm is {optimizer.global_clip_norm}, but with accumulation in slots the gradient's norm is "
            "unknown until the end of the step; set it to None (update_clip works), or use gradient buffers"
        )
    if rule.big_vision:
        raise ValueError(
            "big_vision averages normalised updates, which are not linear in the gradient: they cannot be "
            "accumulated in slots; set big_vision=False, or use gradient buffers"
        )
    if not rule.beta1:
        raise ValueError(
            "beta1 is 0: there is no momentum slot to accumulate in; set beta1, or use gradient buffers"
        )
    if rule.momentum_dtype not in (None, "float32", "float64", "bfloat16"):
        raise ValueError(
            f"momentum_dtype is {rule.momentum_dtype!r}: small increments would be lost in it; use bfloat16 "
            "(rounded stochastically) or float32"
        )
    if correction == "sketch" and rule.second_moment == "full":
        raise ValueError(
            "a sketch gives row and column means, not the full second moment of every element; use "
            'second_moment="factored", or another correction'
        )
    if sketch_width < 1 or pieces < 2:
        raise ValueError(
            f"sketch_width is {sketch_width} and pieces is {pieces}; they must be at least 1 and at least 2"
        )
