"""What finished runs of the study say: the study.json in each run's folder, or the record of them all in one file."""

import json
import os
from collections.abc import Mapping

STUDY = "study.json"
_RECORDED_LOSSES = 100


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


def write_record(path: str, found: Mapping[str, dict]) -> None:
    """All that is known of the runs, one line each. Of a stage's losses about a hundred, evenly spaced."""
    lines = []
    for name, one in sorted(found.items()):
        stages = {
            stage: of | {"losses": _thinned(of["losses"])} for stage, of in one.get("stages", {}).items()
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(one | {'stages': stages} if stages else one)}")
    with open(path, "w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def read_record(path: str) -> dict[str, dict]:
    """What `write_record` wrote; empty if there is none."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def adopt(folder: str, path: str, only: str = "") -> list[str]:
    """Runs of a record (their names begin with `only`) become finished runs of the folder, where it has not finished them
    itself; the names of those. ValueError if there is no record.

    Runs of text towers belong to the image tower that they were trained on, and another machine's tower is another one in
    its last digits: adopt those only where none of them is still to be made.
    """
    record = read_record(path)
    if not record:
        raise ValueError(f"there is no record of runs in {path}; make_report writes one beside its document")
    names = [name for name in record if name.startswith(only) and read(folder, name) is None]
    for name in names:
        write(folder, name, record[name])
    return names


def write(folder: str, name: str, content: Mapping) -> None:
    """Makes a run a finished one. content: what `read` gives, but for the name."""
    os.makedirs(os.path.join(folder, name), exist_ok=True)
    path = os.path.join(folder, name, STUDY)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump({"name": name, **content}, file, indent=1)
        file.write("\n")
    os.replace(path + ".new", path)


def _thinned(losses: Mapping[str, float]) -> dict[str, float]:
    every = -(-len(losses) // _RECORDED_LOSSES)
    return dict(list(losses.items())[:: max(1, every)])
