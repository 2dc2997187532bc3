"""AdaFactorW: the optimizer as the trainer sees it. It owns the slots; the arithmetic is in `update_rule`."""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from basic_tf import randomness
from basic_tf.optimization import rules as rules_module
from basic_tf.optimization import schedules, slot_accumulation
from basic_tf.optimization import slots as slots_module
from basic_tf.optimization.update_rule import UpdateRule
from basic_tf.precision import wide

_DEFAULT = "default"


def global_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """The 2-norm over all gradients, summed in at least float32; float32 (or float64) scalar."""
    dtype = wide(*(gradient.dtype for gradient in gradients))
    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tf.cast(gradient, dtype))) for gradient in gradients]))


class AdaFactorW:
    """AdaFactor's memory with AdamW's decay and order.

    State is 0.5 (bfloat16 momentum) plus less than 0.01 (row and column factors) of the float32 parameter
    bytes; Adam has 2. Nothing is random except stochastic rounding, which draws from the project's hash by
    (seed, step, slot path).

    Usage:
        optimizer = AdaFactorW(schedule, rules=table)
        with runtime.scope():
            optimizer.build(model.parameters())
        ...  # in the update half of a step
        optimizer.apply(gradients, variables, step)

    Args:
      learning_rate: a number, or a schedule (callable: step -> float32 scalar).
      beta1, beta2, eps, momentum_dtype, second_moment, factor_min_dim, bias_correction, momentum_rounding,
        weight_rounding, unfactored: see `update_rule.UpdateRule`. eps None is 1e-8, or 1e-30 with
          `big_vision`.
      weight_decay: decoupled, multiplied by the learning rate, on the parameters whose rule says so.
      update_clip: largest RMS of a parameter's update; "default" is 1.0, or off with `big_vision`; None is
        off.
      big_vision: big_vision's rule ("modified Adafactor") instead. Its weight decay there is not multiplied
        by the peak learning rate: divide a decay from there by that rate.
      global_clip_norm: gradients are scaled down together to this norm; None is off.
      rules: a `RuleTable`, resolved against the parameters at `build`; or an already resolved mapping path ->
        Rule. None trains everything, with the default decay.
      seed: of stochastic rounding.
    """

    def __init__(
        self,
        learning_rate: float | Callable,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.01,
        eps: float | None = None,
        update_clip: float | str | None = _DEFAULT,
        momentum_dtype: str | None = "bfloat16",
        second_moment: str = "factored",
        factor_min_dim: int = 32,
        bias_correction: bool = True,
        big_vision: bool = False,
        global_clip_norm: float | None = None,
        rules: "rules_module.RuleTable | Mapping[str, rules_module.Rule] | None" = None,
        momentum_rounding: str = "nearest",
        weight_rounding: str = "nearest",
        unfactored: str | None = _DEFAULT,
        seed: int = 0,
    ):
        if isinstance(update_clip, str):
            if update_clip != _DEFAULT:
                raise ValueError(f'update_clip is {update_clip!r}; give a number, None, or "default"')
            update_clip = None if big_vision else 1.0
        if global_clip_norm is not None and global_clip_norm <= 0:
            raise ValueError(
                f"global_clip_norm is {global_clip_norm}; give a positive norm, or None for no clipping"
            )
        if weight_decay < 0:
            raise ValueError(f"weight_decay is {weight_decay}; it must not be negative")
        if unfactored == _DEFAULT:
            unfactored = None if big_vision else UpdateRule.unfactored
        self.rule = UpdateRule(
            beta1=beta1,
            beta2=beta2,
            eps=eps if eps is not None else (1e-30 if big_vision else 1e-8),
            update_clip=update_clip,
            momentum_dtype=momentum_dtype,
            momentum_rounding=momentum_rounding,
            weight_rounding=weight_rounding,
            second_moment=second_moment,
            factor_min_dim=factor_min_dim,
            unfactored=unfactored,
            bias_correction=bias_correction,
            big_vision=big_vision,
        )
        self.weight_decay = weight_decay
        self.global_clip_norm = global_clip_norm
        self._learning_rate = learning_rate
        self._rules = rules
        self.seed = seed
        self._rate_dtype = tf.float32
        self._built = False

    @property
    def step(self) -> tf.Variable:
        """int64: the optimizer's own count of updates, for callers that keep none; not among `slots()`."""
        self._require_built()
        return self._step

    def learning_rate(self, step) -> tf.Tensor:
        """The scheduled learning rate of the update that follows `step` updates; scalar, float64 in a float64 run."""
        rate = self._learning_rate
        if isinstance(rate, schedules.Schedule):
            rate = rate(step, self._rate_dtype)
        elif callable(rate):
            rate = rate(step)
        return tf.cast(rate, self._rate_dtype) if tf.is_tensor(rate) else tf.constant(rate, self._rate_dtype)

    def build(self, parameters: Mapping[str, object]) -> None:
        """Creates the slots, all zero, under the active strategy scope.

        parameters: path -> Keras, TensorFlow or DTensor variable. Parameters that a rule freezes, and
          variables that are
        not trainable (moving statistics), get no slots and are never touched.

        Raises ValueError on a second call, on a parameter that no rule covers and on a rule that matches
        nothing.
        """
        if self._built:
            raise ValueError("this optimizer was built already; make a new one for another set of parameters")
        if isinstance(self._rules, rules_module.RuleTable):
            resolved = self._rules.resolve(parameters)
        elif self._rules is None:
            resolved = rules_module.RuleTable([rules_module.Rule(".*")]).resolve(parameters)
        else:
            missing = [path for path in parameters if path not in self._rules]
            if missing:
                raise ValueError(
                    f"the resolved rules lack {', '.join(missing[:5])} ({len(missing)} parameters in all)"
                )
            resolved = {path: rules_module.decided(self._rules[path], path) for path in parameters}
        self._paths = slots_module.identities(parameters)
        self._kept_alive = list(parameters.values())  # an identity is only unique while its object lives
        self._settings = {
            path: rule
            for path, rule in resolved.items()
            if not rule.frozen and getattr(parameters[path], "trainable", True)
        }
        self._parameters = {path: slots_module.underlying(parameters[path]) for path in self._settings}
        if any(variable.dtype == tf.float64 for variable in self._parameters.values()):
            self._rate_dtype = tf.float64
        self._slots = {}
        for path, variable in self._parameters.items():
            specs = self.rule.slot_specs(path, tuple(variable.shape), variable.dtype)
            self._slots[path] = {
                name: slots_module.create(f"{path}/{name}", spec, variable) for name, spec in specs.items()
            }
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="optimizer_step")
        self._built = True

    def _require_built(self) -> None:
        if not self._built:
            raise ValueError("the optimizer has no slots yet; call build(parameters) first")

    def trained_paths(self) -> list[str]:
        """The paths that `apply` updates, in the order of `build`."""
        self._require_built()
        return list(self._settings)

    def slots(self) -> dict[str, tf.Variable]:
        """Every slot by `<parameter path>/<slot name>`, in the order of the parameters."""
        self._require_built()
        return {f"{path}/{name}": slot for path, own in self._slots.items() for name, slot in own.items()}

    def slots_of(self, path: str) -> dict[str, tf.Variable]:
        """One parameter's slots by short name."""
        self._require_built()
        return dict(self._slots[path])

    def path_of(self, variable) -> str:
        """The path under which `build` saw a variable; ValueError for another."""
        self._require_built()
        if id(variable) not in self._paths:
            raise ValueError(
                f"{slots_module.path_of(variable)}: not among the parameters this optimizer was built with"
            )
        return self._paths[id(variable)]

    def parameter(self, path: str) -> tf.Variable:
        """The TensorFlow variable of a trained parameter."""
        return self._parameters[path]

    def setting(self, path: str) -> "rules_module.Rule":
        """The rule of a trained parameter."""
        return self._settings[path]

    def accumulation(self, variables: Sequence, step, **options) -> slot_accumulation.SlotAccumulation:
        """One step whose gradient arrives in parts and is accumulated in the slots, without a buffer.

        variables: every trained one, in the order of the caller's gradients. step: updates made before this one.
        options: correction, sketch_width, pieces; see `slot_accumulation`. Raises ValueError where this cannot be.
        """
        self._require_built()
        return slot_accumulation.SlotAccumulation(self, variables, step, **options)

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], dtype="float32") -> int:
        """Bytes of all slots for parameters of these shapes; nothing is allocated."""
        return sum(
            spec.bytes
            for path, shape in shapes.items()
            for spec in self.rule.slot_specs(path, shape, dtype).values()
        )

    def apply(self, gradients, variables: Sequence | None = None, step=None) -> None:
        """Updates weights and slots.

        Args:
          gradients: one for each of `variables`, or a mapping path -> gradient (then `variables` is not
            needed). Dense or IndexedSlices; whole-batch gradients, already summed over replicas. None is
            allowed for parameters that are frozen, and only for those.
          variables: the variables the gradients belong to; a part of the built parameters will do (block-wise
            application), if `step` is given and no `global_clip_norm` is set.
          step: updates made before this one (int, or an integer scalar tensor that the caller advances).
            None: the optimizer's own `step` is used and advanced.

        Raises ValueError for a missing gradient, an unknown variable or a gradient of another shape.
        """
        if not self._built:
            if variables is None:
                raise ValueError(
                    "the optimizer has no slots yet; call build(parameters) before apply(mapping)"
                )
            named = {slots_module.path_of(variable): variable for variable in variables}
            if len(named) < len(variables):
                raise ValueError(
                    f"{len(variables)} variables have {len(named)} names between them; call build(path -> variable), with "
                    "paths of your own, before apply"
                )
            with tf.init_scope():
                self.build(named)
        by_path = self._gradients_by_path(gradients, variables)
        whole = len(by_path) == len(self._settings)
        if not whole and (step is None or self.global_clip_norm is not None):
            missing = [path for path in self._settings if path not in by_path]
            raise ValueError(
                f"gradients came for {len(by_path)} of {len(self._settings)} trained parameters (none for "
                f"{', '.join(missing[:5])}); applying a part needs an explicit step and global_clip_norm=None"
            )
        own_step = step is None
        if own_step:
            step = self._step.read_value()
        if self.global_clip_norm is not None:
            norm = global_norm(list(by_path.values()))
            scale = self.global_clip_norm / tf.maximum(norm, tf.constant(self.global_clip_norm, norm.dtype))
            by_path = {path: gradient * tf.cast(scale, gradient.dtype) for path, gradient in by_path.items()}
        rate = self.learning_rate(step)
        noise_key = randomness.step_key(self.seed, step) if self.rule.stochastic else None
        for path, gradient in by_path.items():
            self.apply_one(path, gradient, step, rate, noise_key)
        if own_step:
            self._step.assign(step + 1)

    def apply_one(self, path: str, gradient: tf.Tensor, step, rate: tf.Tensor, noise_key) -> None:
        """Updates one parameter: reads each of its variables once, computes, then assigns.

        rate: from `learning_rate(step)`. noise_key: uint32 [2], or None without stochastic rounding.
        """
        variable, own, setting = self._parameters[path], self._slots[path], self._settings[path]
        new_value, new_slots = self.rule.update(
            path,
            tf.convert_to_tensor(variable),
            gradient,
            {name: tf.convert_to_tensor(slot) for name, slot in own.items()},
            step,
            rate * setting.learning_rate_factor,
            self.weight_decay if setting.decay else 0.0,
            noise_key,
        )
        for name, slot in own.items():
            slot.assign(new_slots[name])
        variable.assign(new_value)

    def _gradients_by_path(self, gradients, variables) -> dict[str, tf.Tensor]:
        """The trained parameters' gradients, dense, checked, in the order given."""
        if isinstance(gradients, Mapping):
            pairs = list(gradients.items())
            known = set(self._paths.values())
            unknown = [path for path, _ in pairs if path not in known]
        else:
            gradients, variables = list(gradients), list(variables or ())
            if len(gradients) != len(variables):
                raise ValueError(
                    f"{len(gradients)} gradients for {len(variables)} variables; give one for each"
                )
            pairs = [(self._paths.get(id(v)), g) for v, g in zip(variables, gradients)]
            unknown = [slots_module.path_of(v) for (path, _), v in zip(pairs, variables) if path is None]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown[:5])}: not among the parameters this optimizer was built with; "
                "build() must see every variable that apply() gets"
            )
        by_path = {}
        for path, gradient in pairs:
            if path not in self._settings:
                continue
            if gradient is None:
                raise ValueError(
                    f"{path} is trained but has no gradient: the loss does not depend on it. Freeze it by "
                    "a rule, or compute the loss from it"
                )
            if path in by_path:
                raise ValueError(f"{path} has two gradients; add them up first")
            gradient = tf.convert_to_tensor(gradient)
            if not gradient.shape.is_compatible_with(self._parameters[path].shape):
                raise ValueError(
                    f"{path} has shape {tuple(self._parameters[path].shape)} but its gradient "
                    f"{tuple(gradient.shape)}"
                )
            by_path[path] = tf.ensure_shape(gradient, self._parameters[path].shape)
        return by_path
