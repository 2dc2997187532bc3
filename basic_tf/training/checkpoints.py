"""Checkpoints: a flat map from path to logical array, whole or not there at all.

A checkpoint is a folder `step-000000120/` with safetensors files and a `manifest.json`. It knows nothing of the runtime,
the mesh or Keras' object graph, so any run can read any other's.

The failure protocol, in the order in which things happen:
1. The arrays are written into a folder with a temporary name (local disks) or under the final name (object stores,
   where a folder cannot be renamed in one move).
2. The manifest, which lists every file with its size and SHA-256, is written last. Without it there is no checkpoint.
3. Local: files and folder are flushed to the disk, then the folder is renamed, which is atomic. A kill before that
   leaves a `.tmp-` folder that the next save sweeps away; a kill after it leaves a complete checkpoint.
4. Only then are checkpoints beyond `keep` deleted, oldest first, and never the one just written.
Reading goes newest first; a damaged checkpoint is named in a warning and the one before it is used. A run that goes on from
there sets the damaged one aside, so that it does not count among those to keep. If all are damaged nothing is: starting anew
in their place is for a person to decide.
"""

import dataclasses
import hashlib
import json
import os
import re

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf
from absl import logging

from basic_tf.data.shards import is_local
from basic_tf.parallel import weights

_FOLDER = re.compile(r"^step-(\d{9})$")
_MANIFEST = "manifest.json"
_FILE_BYTES = 1 << 30
# safetensors.numpy writes bfloat16 but cannot read it back, hence our own table for reading.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U32": np.uint32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


# A file that is not there, or that its file system knows to be broken.
_GONE = (tf.errors.NotFoundError, tf.errors.DataLossError)


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another model."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. arrays: path -> array; metadata: plain JSON (step, stage, clock)."""

    step: int
    arrays: dict[str, np.ndarray]
    metadata: dict
    path: str


def _flush_to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parts(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Splits the map into files of about a gibibyte, so that writing needs little memory beside the arrays."""
    parts, size = [{}], 0
    for path in sorted(arrays):
        array = arrays[path]
        if size and size + array.nbytes > _FILE_BYTES:
            parts.append({})
            size = 0
        # safetensors writes raw buffers: a transposed view must be laid out first, and a scalar kept a scalar.
        array = np.asarray(array)
        parts[-1][path] = np.ascontiguousarray(array).reshape(array.shape)
        size += array.nbytes
    return parts


def save(folder: str, step: int, arrays: dict[str, np.ndarray], metadata: dict, keep: int = 3) -> str:
    """Writes checkpoint `step` into `folder` and returns its path; see the module's head for the protocol."""
    final = os.path.join(folder, f"step-{step:09d}")
    local = is_local(folder)
    tf.io.gfile.makedirs(folder)
    for name in tf.io.gfile.listdir(folder):
        if name.rstrip("/").startswith(".tmp-"):
            tf.io.gfile.rmtree(os.path.join(folder, name))
    target = os.path.join(folder, f".tmp-{step:09d}") if local else final
    if tf.io.gfile.exists(final):
        # An earlier, damaged or superseded copy of the same step. Its manifest goes first: it stops being a checkpoint.
        if tf.io.gfile.exists(os.path.join(final, _MANIFEST)):
            tf.io.gfile.remove(os.path.join(final, _MANIFEST))
        tf.io.gfile.rmtree(final)
    tf.io.gfile.makedirs(target)
    parts = _parts(arrays)
    files = {}
    for number, part in enumerate(parts):
        name = f"arrays-{number:05d}-of-{len(parts):05d}.safetensors"
        data = safetensors.numpy.save(part)
        with tf.io.gfile.GFile(os.path.join(target, name), "wb") as file:
            file.write(data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"step": step, "files": files, "arrays": len(arrays), "metadata": metadata}
    with tf.io.gfile.GFile(os.path.join(target, _MANIFEST), "w") as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True))
    if local:
        for name in (*files, _MANIFEST):
            _flush_to_disk(os.path.join(target, name))
        _flush_to_disk(target)
        os.rename(target, final)
        _flush_to_disk(folder)
    others = [other for other in steps(folder) if other != step]
    for old in others[: max(0, len(others) + 1 - keep)] if keep else []:
        tf.io.gfile.rmtree(os.path.join(folder, f"step-{old:09d}"))
    return final


def steps(folder: str) -> list[int]:
    """The steps of which a manifest exists, ascending. They may still turn out damaged when read."""
    return [
        step
        for step in _folder_steps(folder)
        if tf.io.gfile.exists(os.path.join(folder, f"step-{step:09d}", _MANIFEST))
    ]


def _folder_steps(folder: str) -> list[int]:
    if not tf.io.gfile.isdir(folder):
        return []
    matches = (_FOLDER.match(name.rstrip("/")) for name in tf.io.gfile.listdir(folder))
    return sorted(int(match.group(1)) for match in matches if match)


def load(folder: str, step: int) -> Checkpoint:
    """Reads one checkpoint. Raises CheckpointError that names the file and what is wrong with it."""
    path = os.path.join(folder, f"step-{step:09d}")
    manifest_path = os.path.join(path, _MANIFEST)
    try:
        with tf.io.gfile.GFile(manifest_path, "r") as file:
            manifest = json.loads(file.read())
        expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
        count, metadata = manifest["arrays"], manifest["metadata"]
    # Nothing else of TensorFlow's errors: what cannot be reached for the moment, or by this user, is not damaged.
    except (*_GONE, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest_path} cannot be read: {type(error).__name__}") from error
    arrays = {}
    for name, (size, digest) in expected.items():
        file_path = os.path.join(path, name)
        try:
            with tf.io.gfile.GFile(file_path, "rb") as file:
                data = file.read()
        except _GONE as error:
            raise CheckpointError(f"{file_path} cannot be read: {type(error).__name__}") from error
        if len(data) != size:
            raise CheckpointError(f"{file_path} has {len(data)} bytes, its manifest says {size}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(f"{file_path} does not have the SHA-256 that its manifest names")
        arrays.update(decode(data))
    if len(arrays) != count:
        raise CheckpointError(f"{path} holds {len(arrays)} arrays, its manifest says {count}")
    return Checkpoint(step, arrays, metadata, path)


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name."""
    return {
        name: np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
        for name, view in safetensors.deserialize(data)
    }


def load_latest(folder: str, set_damaged_aside: bool = False) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none. Damaged ones are named in warnings.

    set_damaged_aside: where a whole one is found, damaged newer ones are renamed to `.damaged-step-...`; for the process
    that saves into this folder. Raises CheckpointError if there are checkpoints and all are damaged.
    """
    found, damaged = _folder_steps(folder), {}
    for step in reversed(found):
        path = os.path.join(folder, f"step-{step:09d}")
        try:
            checkpoint = load(folder, step)
        except CheckpointError as error:
            logging.warning("Damaged checkpoint: %s. Falling back to the one before it.", error)
            # In an object store, a save that was cut short leaves a folder that never was a checkpoint.
            if is_local(folder) or tf.io.gfile.exists(os.path.join(path, _MANIFEST)):
                damaged[path] = str(error)
            continue
        for path in damaged if set_damaged_aside else ():
            aside = os.path.join(folder, ".damaged-" + os.path.basename(path))
            if tf.io.gfile.exists(aside):
                tf.io.gfile.rmtree(aside)
            tf.io.gfile.rename(path, aside)
            logging.warning("%s is now %s; delete it at will.", path, aside)
        return checkpoint
    if _folder_steps(folder) != found:
        return load_latest(folder, set_damaged_aside)  # a training has meanwhile replaced what was being read
    if damaged:
        raise CheckpointError(
            f"{folder} holds {len(damaged)} checkpoint{'s' * (len(damaged) > 1)}, and none can be read "
            f"({'; '.join(damaged.values())}); put back what is missing, or delete the folder to start anew"
        )
    return None


def assign(arrays: dict[str, np.ndarray], variables: dict[str, tf.Variable], source: str) -> None:
    """Puts every array into the variable of the same path; both sides must have exactly the same paths and shapes."""
    missing = sorted(set(variables) - set(arrays))
    extra = sorted(set(arrays) - set(variables))
    if missing or extra:
        raise CheckpointError(
            f"{source} is of another model: {_some('it lacks', missing)}{_some('it has', extra)}"
            "point --model_dir at another folder, or train with the configuration it was made with"
        )
    wrong = [
        f"{path} {tuple(arrays[path].shape)} instead of {tuple(variable.shape)}"
        for path, variable in variables.items()
        if tuple(arrays[path].shape) != tuple(variable.shape)
    ]
    if wrong:
        raise CheckpointError(f"{source} is of another model: {_some('shapes differ:', wrong)}")
    for path, variable in variables.items():
        weights.assign_array(variable, arrays[path])


def _some(verb: str, paths: list[str]) -> str:
    if not paths:
        return ""
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return f"{verb} {shown}; "
