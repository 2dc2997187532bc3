"""Writing the SavedModel and its description."""

import json
import posixpath
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from basic_tf.data.images import ImageAugmentation
from basic_tf.serving import decoding
from basic_tf.serving.module import ServingModule

METADATA_FILE = "basic.json"  # lies in the SavedModel's folder, so that it travels with it
FORMAT = 1


def export(
    model,
    tokenizer,
    preprocessing: ImageAugmentation | int,
    output_dir: str,
    templates: Sequence[str] = ("{}",),
    provenance: dict | None = None,
    overwrite: bool = False,
) -> str:
    """Writes the SavedModel folder `output_dir` (local or gs://) and returns its path.

    The folder appears under its name only when it is complete. templates: the prompts of `classify_names` and
    of predict.py. provenance: anything a reader should find in basic.json (run folder, stage, step, config).
    Raises FileExistsError if the folder exists and `overwrite` is false.
    """
    output_dir = output_dir.rstrip("/")
    check_output(output_dir, overwrite)
    module = ServingModule(model, tokenizer, preprocessing, templates)
    signatures = module.signatures()
    embedding_dim = int(signatures["encode_text"].structured_outputs["embeddings"].shape[-1])
    writing = output_dir + ".writing"
    if tf.io.gfile.exists(writing):
        tf.io.gfile.rmtree(writing)
    tf.saved_model.save(module, writing, signatures=signatures)
    metadata = {
        "format": FORMAT,
        "image_size": module.image_size,
        "view": decoding.description(module.view),
        "embedding_dim": embedding_dim,
        "temperature": float(np.exp(-float(module.log_inverse_temperature.numpy()))),
        "templates": list(templates),
        "signatures": sorted(signatures),
        "versions": versions(),
        "provenance": provenance or {},
    }
    with tf.io.gfile.GFile(posixpath.join(writing, METADATA_FILE), "w") as file:
        file.write(_json(metadata))
    if tf.io.gfile.exists(output_dir):
        tf.io.gfile.rmtree(output_dir)
    tf.io.gfile.rename(writing, output_dir)
    return output_dir


def check_output(output_dir: str, overwrite: bool) -> None:
    """FileExistsError if the folder exists and may not, or should not, be replaced; makes the folder it will lie in."""
    if not tf.io.gfile.exists(output_dir):
        if parent := posixpath.dirname(output_dir.rstrip("/")):
            tf.io.gfile.makedirs(parent)
        return
    if not overwrite:
        raise FileExistsError(f"{output_dir} exists; choose another --output_dir or pass --overwrite")
    if tf.io.gfile.listdir(output_dir) and not tf.io.gfile.exists(
        posixpath.join(output_dir, "saved_model.pb")
    ):
        raise FileExistsError(f"{output_dir} exists and is no SavedModel folder: it will not be replaced")


def _json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def versions() -> dict[str, str]:
    """The versions that made the export."""
    import keras
    import tensorflow_text

    return {
        "python": sys.version.split()[0],
        "tensorflow": tf.__version__,
        "tensorflow_text": tensorflow_text.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def load(saved_model: str):
    """The loaded SavedModel. ValueError if its files are damaged or incomplete."""
    try:
        return tf.saved_model.load(saved_model)
    except (tf.errors.OpError, OSError, IndexError) as error:  # IndexError: variables that are cut short
        raise ValueError(
            f"{saved_model} cannot be loaded, its files are damaged or incomplete ({str(error).splitlines()[0]}); copy or "
            "export it again"
        ) from error


def load_metadata(saved_model: str) -> dict:
    """The description in a SavedModel folder. Errors say what is missing."""
    path = posixpath.join(saved_model, METADATA_FILE)
    if not tf.io.gfile.exists(posixpath.join(saved_model, "saved_model.pb")):
        raise FileNotFoundError(
            f"{saved_model} is not a SavedModel folder (no saved_model.pb in it); make one with "
            "`python -m basic_tf.export --model_dir=... --output_dir=...`"
        )
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{saved_model} has no {METADATA_FILE}: it was not written by basic_tf.export"
        )
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())
