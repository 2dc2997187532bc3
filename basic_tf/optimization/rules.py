"""One total table per stage: parameter path -> frozen or learning-rate factor, weight decay, layout.

The table is total in both directions: a parameter that no rule covers is an error, and so is a rule that
matches nothing. A typing error in a path then stops the run before it starts instead of training what should
be frozen.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence

MODEL_AXIS = "model"
SMALLEST_SHARDED = 16_384

# A kernel is called a kernel; an embedding is called one, or is a table of a layer that is called one.
_DECAYED = re.compile(r"(.*/)?([^/]*kernel|[^/]*embeddings?(/[^/]+)?|positions|tokens)")
_NEVER_DECAYED = re.compile(r"(.*/)?[^/]*relative[^/]*(/.*)?")


class RuleError(ValueError):
    """A rule table does not fit the parameters."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What holds for the parameters whose whole path matches `pattern`.

    Attributes:
      pattern: regular expression, matched against the whole path ("image_tower/.*").
      frozen: never updated; no optimizer slots.
      learning_rate_factor: multiplies the scheduled learning rate (and with it the decay).
      decay: whether weight decay applies; None means the default: kernels and embeddings, not biases, norms,
        relative-bias tables or the temperature.
      layout: None for `default_layout`, or one entry per dimension: None (whole) or "model" (sharded). ()
        replicates.
    """

    pattern: str
    frozen: bool = False
    learning_rate_factor: float = 1.0
    decay: bool | None = None
    layout: tuple[str | None, ...] | None = None

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise RuleError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        if self.learning_rate_factor < 0:
            raise RuleError(
                f"rule {self.pattern!r}: learning_rate_factor {self.learning_rate_factor} is negative"
            )
        if self.frozen and self.learning_rate_factor != 1.0:
            raise RuleError(f"rule {self.pattern!r} is frozen and has a learning_rate_factor; choose one")
        if self.layout is not None:
            object.__setattr__(self, "layout", tuple(self.layout))
            if set(self.layout) - {None, MODEL_AXIS} or self.layout.count(MODEL_AXIS) > 1:
                raise RuleError(
                    f"rule {self.pattern!r}: layout {self.layout} may hold None, and {MODEL_AXIS!r} once"
                )


def decays_by_default(path: str) -> bool:
    """Whether weight decay applies where a rule does not say: to kernels and embeddings only."""
    return bool(_DECAYED.fullmatch(path)) and not _NEVER_DECAYED.fullmatch(path)


def decided(rule: Rule, path: str) -> Rule:
    """The rule as it holds for one path: with `decay` filled in."""
    return rule if rule.decay is not None else dataclasses.replace(rule, decay=decays_by_default(path))


class RuleTable:
    """Rules in order; the first whose pattern matches a whole path holds for it."""

    def __init__(self, rules: Sequence[Rule]):
        self.rules = tuple(rules)
        if not self.rules:
            raise RuleError('a rule table needs at least one rule; Rule(".*") covers everything')

    def resolve(self, paths: Iterable[str]) -> dict[str, Rule]:
        """Every path with its rule, `decay` filled in.

        Raises RuleError, naming all that is wrong at once: paths that no rule covers, rules that match no
        path, and rules that match paths but come after others that take all of them.
        """
        paths = list(paths)
        resolved, used = {}, set()
        for path in paths:
            for number, rule in enumerate(self.rules):
                if re.fullmatch(rule.pattern, path):
                    resolved[path] = decided(rule, path)
                    used.add(number)
                    break
        problems = []
        uncovered = [path for path in paths if path not in resolved]
        if uncovered:
            more = f" and {len(uncovered) - 5} more" if len(uncovered) > 5 else ""
            problems.append(
                f"no rule covers {', '.join(uncovered[:5])}{more}; add a rule for them, or a last Rule('.*')"
            )
        for number, rule in enumerate(self.rules):
            if number not in used:
                problems.append(self._why_unused(rule, paths))
        if problems:
            raise RuleError("; ".join(problems))
        return resolved

    @staticmethod
    def _why_unused(rule: Rule, paths: list[str]) -> str:
        hidden = sum(bool(re.fullmatch(rule.pattern, path)) for path in paths)
        if hidden:
            return f"rule {rule.pattern!r} never applies: earlier rules take all {hidden} paths it matches"
        plain = re.sub(r"\.\*|\.\+", "", rule.pattern).replace("\\", "")
        prefixes = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 2)}
        close = difflib.get_close_matches(plain.strip("/"), sorted(prefixes), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else f"; the paths begin {', '.join(paths[:3])}"
        return f"rule {rule.pattern!r} matches no parameter{hint}"


def everything() -> RuleTable:
    """All parameters are trained alike (stages 1 and 3, and training from scratch)."""
    return RuleTable([Rule(".*")])


def frozen_image_tower() -> RuleTable:
    """Stage 2: the pretrained image tower stands still; text tower, projections and temperature learn."""
    return RuleTable([Rule("image_tower/.*", frozen=True), Rule(".*")])


def slower_image_tower(factor: float) -> RuleTable:
    """Stage 3 with a gentler hand: the image tower's learning rate is multiplied by `factor`."""
    return RuleTable([Rule("image_tower/.*", learning_rate_factor=factor), Rule(".*")])


def default_layout(
    path: str, shape: Sequence[int], model_axis_size: int, smallest: int = SMALLEST_SHARDED
) -> tuple[str | None, ...]:
    """Where a parameter is cut: its largest dimension that the model axis divides (the later one of equals).

    Returns one entry per dimension, None (whole) or "model". Parameters of fewer than `smallest` elements,
    and those no
    dimension of which can be divided evenly, are replicated: all None. path: not used by the default; it is
      here so that
    a caller may replace this function.
    """
    del path
    whole: list[str | None] = [None] * len(shape)
    elements = 1
    for size in shape:
        elements *= size
    if model_axis_size <= 1 or elements < smallest:
        return tuple(whole)
    divisible = [axis for axis, size in enumerate(shape) if size and size % model_axis_size == 0]
    if divisible:
        whole[max(divisible, key=lambda axis: (shape[axis], axis))] = MODEL_AXIS
    return tuple(whole)


def layout_of(
    path: str, shape: Sequence[int], rule: Rule, model_axis_size: int, smallest: int = SMALLEST_SHARDED
) -> tuple[str | None, ...]:
    """A parameter's layout: its rule's, checked against the shape, or the default.

    Raises RuleError when the rule's layout has another rank or cuts a dimension that the model axis does not
    divide.
    """
    if rule.layout is None:
        return default_layout(path, shape, model_axis_size, smallest)
    if rule.layout == ():
        return (None,) * len(shape)
    if len(rule.layout) != len(shape):
        raise RuleError(
            f"{path} has {len(shape)} dimensions {tuple(shape)} but the layout of rule {rule.pattern!r} has "
            f"{len(rule.layout)}: {rule.layout}"
        )
    for axis, name in enumerate(rule.layout):
        if name == MODEL_AXIS and shape[axis] % model_axis_size:
            raise RuleError(
                f"{path}: rule {rule.pattern!r} cuts dimension {axis} of {tuple(shape)} into "
                f"{model_axis_size} parts, which does not come out even; choose another dimension or mesh"
            )
    return rule.layout
