"""Where a tool keeps what it fetches, what it compares with, and that it does not write over what it reads."""

import fnmatch
import glob
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from basic_tf.data.shards import is_local
from tools.pairs.files import matching
from tools.sources.likeness import EvaluationPictures


def cache_folder(output_dir: str, cache_dir: str | None) -> Path:
    """The local folder for packages: --cache_dir, or OUTPUT_DIR/cache. ValueError if neither is local."""
    if cache_dir is None and not is_local(output_dir):
        raise ValueError(f"--output_dir={output_dir} is not local: name a local folder with --cache_dir")
    return Path(cache_dir or posixpath.join(output_dir, "cache"))


def evaluation_pictures(patterns: Sequence[str], similarity: float) -> EvaluationPictures | None:
    """The pictures of evaluation sets that no record may resemble; None without patterns. FileNotFoundError."""
    return EvaluationPictures(matching(patterns), similarity) if patterns else None


def refuse_overwriting(inputs: Sequence[str], output_dir: str, name: str) -> None:
    """ValueError if writing the dataset `name` would replace one of the input files, by whatever path it is named."""
    shards = f"{glob.escape(name)}-?????-of-?????.tfrecord*"
    for path in inputs:
        folder, file = posixpath.split(_resolved(path))
        own = file in (f"{name}.json", f"{name}.rejects.jsonl") or fnmatch.fnmatch(file, shards)
        if own and folder == _resolved(output_dir):
            raise ValueError(
                f"the new dataset {name} in --output_dir={output_dir} would replace its own input {path}: name another "
                "folder"
            )


def _resolved(path: str) -> str:
    return os.path.realpath(path) if is_local(path) else path.rstrip("/")
