"""What a run folder has written down about itself, read without a model: results.json, metrics.jsonl, versions.json."""

import dataclasses
import json
import os
import statistics

import tensorflow as tf

from basic_tf.monitoring.metrics_log import read_metrics


class MissingError(Exception):
    """A file that a part of a document is made from is not there, or is not whole."""


def read_json(path: str) -> dict:
    """A JSON file, local or gs://. MissingError if it is not there or is no JSON object."""
    if not tf.io.gfile.exists(path):
        raise MissingError(f"there is no {path}")
    with tf.io.gfile.GFile(path) as file:
        text = file.read()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise MissingError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise MissingError(f"{path}: expected a JSON object, received a {type(content).__name__}")
    return content


@dataclasses.dataclass(frozen=True)
class StageLog:
    """One stage of a run: its name, its lines of metrics.jsonl by kind, in order."""

    name: str
    train: list[dict]
    evaluations: list[dict]

    @property
    def steps(self) -> int:
        """Steps done, as far as they are logged."""
        return max((line["step"] for line in self.train), default=0)

    @property
    def seconds(self) -> float | None:
        """Training time without evaluation and saving; None if it was not timed."""
        return max(
            (line["training_seconds"] for line in self.train if "training_seconds" in line), default=None
        )

    def median(self, name_or_end: str) -> float | None:
        """The median over the log of the metric of this name, or of the first whose name ends so."""
        found = ([line[key] for key in line if key.endswith(name_or_end)] for line in self.train)
        values = [of_line[0] for of_line in found if of_line and of_line[0] is not None]
        return statistics.median(values) if values else None


class Run:
    """A run folder. folder: as people name it, e.g. runs/demo; local or gs://."""

    def __init__(self, folder: str):
        self.folder = folder.rstrip("/")
        if not tf.io.gfile.isdir(self.folder):
            raise MissingError(f"there is no run folder {self.folder}")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return os.path.basename(self.folder)

    def results(self) -> dict:
        """results.json as basic_tf.evaluate writes it."""
        path = os.path.join(self.folder, "results.json")
        content = read_json(path)
        for key in ("zero_shot", "summary", "retrieval", "provenance"):
            if key not in content:
                raise MissingError(f"{path} has no {key!r}; make it with python -m basic_tf.evaluate")
        return content

    def stages(self) -> list[StageLog]:
        """The stages in the order in which they were trained (that of their checkpoints and of config.gin)."""
        found = []
        for entry in tf.io.gfile.listdir(self.folder):
            name = entry.rstrip("/")
            path = os.path.join(self.folder, name, "metrics.jsonl")
            if tf.io.gfile.exists(path):
                lines = read_metrics(path)
                train = [line for line in lines if line["kind"] == "train"]
                evaluations = [line for line in lines if line["kind"] == "evaluation"]
                found.append(StageLog(name, train, evaluations))
        if not found:
            raise MissingError(f"{self.folder} has no stage with a metrics.jsonl")
        order = self._recipe()
        return sorted(found, key=lambda stage: (order.find(f"@{stage.name}/Stage"), stage.name))

    def _recipe(self) -> str:
        """The value of Recipe.stages in config.gin, as text: the names stand there in their order."""
        path = os.path.join(self.folder, "config.gin")
        if not tf.io.gfile.exists(path):
            return ""
        with tf.io.gfile.GFile(path) as file:
            return file.read().partition("Recipe.stages")[2]

    def source(self) -> str:
        """One line that says where figures come from: the folder, the stage and step, the revision, the machine."""
        parts = [f"`{self.folder}`"]
        provenance = self.results()["provenance"]
        if "stage" in provenance:
            parts.append(f"stage {provenance['stage']}, step {provenance.get('step')}")
        try:
            versions = read_json(os.path.join(self.folder, "versions.json"))
        except MissingError:
            return ", ".join(parts)
        if versions.get("revision"):
            parts.append(f"revision {versions['revision']}")
        if "seed" in versions.get("options", {}):
            parts.append(f"seed {versions['options']['seed']}")
        if "machine" in versions:
            parts.append(versions["machine"])
        return ", ".join(parts)
