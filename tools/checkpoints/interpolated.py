"""Run folders that hold interpolated weights."""

import os

import tensorflow as tf

from basic_tf import runs
from basic_tf.evaluation.interpolation import check_alpha, check_same_model, interpolated
from basic_tf.training import checkpoints, stage_run

PREFIX = "alpha-"  # of the folders' names; the number follows


def write(start: str, end: str, alphas: list[float], output_dir: str) -> dict:
    """A run folder `alpha-0.50` in `output_dir` for each alpha, readable by evaluate, export and predict.

    start, end: stage folders (<run>/<stage>). Raises checkpoints.CheckpointError or ValueError, in one line, if one has
    no checkpoint, if they are different models or have different tokenizers, or if a folder is taken.
    """
    if not alphas or len(set(alphas)) != len(alphas):
        raise ValueError(f"the alphas are {alphas}; expected one or more different numbers")
    for alpha in alphas:  # before anything is written
        check_alpha(alpha)
    start, end = start.rstrip("/"), end.rstrip("/")
    first, second = _checkpoint(start), _checkpoint(end)
    run, stage = os.path.split(end)
    if not tf.io.gfile.exists(os.path.join(run, runs.CONFIG)):
        raise checkpoints.CheckpointError(
            f"{end} is no stage folder of a run: {run or '.'} has no {runs.CONFIG}"
        )
    vocabularies = [_bytes(os.path.join(os.path.dirname(folder), runs.TOKENIZER)) for folder in (start, end)]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"{start} and {end} have different tokenizers: their text towers cannot be interpolated"
        )
    weights = [stage_run.trained_arrays(checkpoint) for checkpoint in (first, second)]
    check_same_model(*weights)
    names = [f"{alpha:.2f}" if round(alpha, 2) == alpha else str(alpha) for alpha in alphas]
    folders = [os.path.join(output_dir, f"{PREFIX}{name}") for name in names]
    for folder in folders:
        if tf.io.gfile.exists(folder):
            raise ValueError(f"{folder} exists already; name another --output_dir, or delete it")
    for alpha, folder in zip(alphas, folders):
        arrays = interpolated(*weights, alpha)
        origin = {"alpha": alpha, "start": first.path, "end": second.path}
        checkpoints.save(
            stage_run.checkpoint_folder(os.path.join(folder, stage)),
            second.step,
            {f"parameters/{path}": array for path, array in arrays.items()},
            {"stage": stage, "seed": second.metadata.get("seed"), "interpolation": origin},
        )
        for name in (runs.CONFIG, runs.TOKENIZER, runs.VERSIONS):
            if tf.io.gfile.exists(os.path.join(run, name)):
                tf.io.gfile.copy(os.path.join(run, name), os.path.join(folder, name))
    parameters = sum(array.size for array in weights[0].values())
    return {"folders": folders, "parameters": parameters, "start": first.path, "end": second.path}


def _checkpoint(folder: str) -> checkpoints.Checkpoint:
    found = checkpoints.load_latest(stage_run.checkpoint_folder(folder))
    if found is None:
        raise checkpoints.CheckpointError(
            f"{folder} holds no checkpoint; name a stage folder, such as runs/demo/finetune"
        )
    return found


def _bytes(path: str) -> bytes | None:
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()
