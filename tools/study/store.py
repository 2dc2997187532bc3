"""What finished runs of the study say: the study.json in each run's folder."""

import json
import os
from collections.abc import Mapping

STUDY = "study.json"


def read(folder: str, name: str) -> dict | None:
    """The study.json of a finished run; None if there is none."""
    path = os.path.join(folder, name, STUDY)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def finished(folder: str) -> dict[str, dict]:
    """study.json of every finished run by name."""
    found = {}
    for root, _, files in os.walk(folder):
        if STUDY in files:
            name = os.path.relpath(root, folder)
            found[name] = read(folder, name)
    return found


def figures_of(found: Mapping[str, dict]) -> dict[str, dict]:
    """The figures of each run by its name."""
    return {name: one.get("figures", {}) for name, one in found.items()}
