"""Warm start: what a stage takes over from an earlier run, and a full account of what it did not.

Every parameter of the new model is either loaded or declared fresh, and every array of the old run is either loaded or
declared ignored. Anything unexplained is an error: silent partial loading is how a staged recipe goes wrong.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from basic_tf.parallel import weights
from basic_tf.training import checkpoints


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Where the weights come from and which differences are meant.

    stage: the name of an earlier stage of the same recipe, or a path to a stage folder of any run.
    fresh: regular expressions (full match) of parameters that start anew.
    ignored: regular expressions (full match) of arrays of the old run that are left behind.
    averaged: takes the averaged weights where the old run kept them.
    resized: for stages at another picture size: called with (path, array, new shape) where a shape differs, returns the
    array in the new shape, or None where the shape must not differ (towers.resolution.resized_for_tower).
    """

    stage: str
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    averaged: bool = True
    resized: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The account: parameter paths by what happened to them. resized: those of `loaded` that had another shape."""

    source: str
    loaded: list[str]
    fresh: list[str]
    ignored: list[str]
    resized: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """A few lines for people, one group of paths (up to two levels) a row."""
        rows = [f"warm start from {self.source}"]
        for verb in ("loaded", "resized", "fresh", "ignored"):
            paths = getattr(self, verb)
            if verb == "resized" and not paths:
                continue
            groups: dict[str, int] = {}
            for path in paths:
                group = "/".join(path.split("/")[:2]) if path.count("/") > 1 else path.split("/")[0]
                groups[group] = groups.get(group, 0) + 1
            shown = ", ".join(f"{group} ({count})" for group, count in groups.items())
            rows.append(f"  {verb:8}{len(paths):5} parameters  {shown}")
        return rows


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def account(
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
    fresh: tuple[str, ...],
    ignored: tuple[str, ...],
    source: str,
    resized: Callable | None = None,
) -> tuple[Report, dict[str, np.ndarray]]:
    """(the account, the arrays of what is loaded in their new shapes); `resized` as in `WarmStart`.

    shapes: of the new model's parameters by path. Raises checkpoints.CheckpointError if a path is unexplained, a shape
    differs, or a pattern matches nothing.
    """
    report = Report(source, [], [], [])
    problems, loaded = [], {}
    for path, shape in shapes.items():
        if _matches(fresh, path):
            report.fresh.append(path)
            continue
        array = arrays.get(path)
        if array is None:
            problems.append(f"parameter {path} is not in {source} and no `fresh` pattern covers it")
            continue
        if resized and tuple(array.shape) != shape:
            changed = resized(path, array, shape)
            if changed is not None:
                array = changed
                report.resized.append(path)
        if tuple(array.shape) != shape:
            hint = (
                "; a stage at another picture size needs WarmStart.resized = @ResizedForTower"
                if path.endswith("/relative_bias") and not resized
                else ""
            )
            problems.append(
                f"{path} has shape {tuple(array.shape)} in {source}, this model has {shape}{hint}"
            )
        else:
            report.loaded.append(path)
            loaded[path] = array
    for path in arrays:
        if path in loaded:
            continue
        if _matches(ignored, path) or path in report.fresh:
            report.ignored.append(path)
        else:
            problems.append(
                f"array {path} of {source} has no place in this model and no `ignored` pattern covers it"
            )
    for kind, patterns, paths in (("fresh", fresh, shapes), ("ignored", ignored, arrays)):
        for pattern in patterns:
            if not any(re.fullmatch(pattern, path) for path in paths):
                problems.append(f"the {kind} pattern {pattern!r} matches nothing")
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise checkpoints.CheckpointError(f"warm start from {source} does not add up:\n  {shown}")
    return report, loaded


def apply(
    parameters: dict[str, tf.Variable],
    arrays: dict[str, np.ndarray],
    fresh: tuple[str, ...],
    ignored: tuple[str, ...],
    source: str,
    resized: Callable | None = None,
) -> Report:
    """Assigns `arrays` to `parameters` by path and returns the account; arguments and errors as for `account`."""
    shapes = {path: tuple(variable.shape) for path, variable in parameters.items()}
    report, loaded = account(shapes, arrays, fresh, ignored, source, resized)
    for path, array in loaded.items():
        weights.assign_array(parameters[path], array)
    return report


def check(
    spec: WarmStart, shapes: Mapping[str, tuple[int, ...]], earlier: Mapping[str, tuple[int, ...]]
) -> None:
    """`account` before there are any arrays. shapes, earlier: of this model's parameters, of those it starts from."""
    # An array of one number in every shape: it holds no memory.
    arrays = {path: np.broadcast_to(np.float32(0), shape) for path, shape in earlier.items()}
    account(shapes, arrays, spec.fresh, spec.ignored, f"stage {spec.stage}", spec.resized)
